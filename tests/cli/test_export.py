"""`flowpolicy export`: bundle and certificate from end to end, exit code 1 on deviation, bad input in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

for needed in ("gymnasium", "onnxscript", "onnx", "onnxruntime"):
    pytest.importorskip(needed)

from flowpolicy.checkpoint import load_policy  # noqa: E402
from flowpolicy.cli.main import main  # noqa: E402
from flowpolicy.deploy.runtime import OnnxPolicy  # noqa: E402
from tests.catalogue import observations, toy_run  # noqa: E402
from tests.helpers import rerecord  # noqa: E402

QUICK = ["warmup=0", "repeats=3"]
FILES = ["certificate.json", "embodiment.json", "policy.json", "policy.onnx", "preprocess.json"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return toy_run(tmp_path / "run")


def test_the_bundle_is_certified_on_real_observations_and_common_seeds(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["num_steps=2", "episodes=3", "start_seed=7", *QUICK]
    assert main(["export", f"checkpoint={run}", "out=bundle", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    out = run.parent / "bundle"
    assert lines[-1] == str(out) and lines[0].startswith("parity passed")
    assert sorted(file.name for file in out.iterdir()) == FILES
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["parity"]["n"] == 256 and certificate["parity"]["max_abs_error"] <= 1e-5
    assert (certificate["closed_loop"]["n"], certificate["closed_loop"]["start_seed"]) == (3, 7)
    facts = json.loads((out / "policy.json").read_text())
    assert facts["checkpoint"] == str(run / "checkpoints" / "000010")
    assert facts["task"] == {"name": "toy", "id": "two-ways"}
    policy, noise = load_policy(run), torch.randn(1, 16, 2)
    obs = observations(policy)
    got = OnnxPolicy(out).predict({key: value.numpy() for key, value in obs.items()}, noise=noise.numpy())
    np.testing.assert_allclose(got, policy.predict(obs, num_steps=2, noise=noise).numpy(), rtol=0, atol=1e-5)


def test_a_certificate_says_that_its_seeds_had_been_seen(run: Path, capsys: pytest.CaptureFixture) -> None:
    rerecord(run / "checkpoints" / "000010" / "policy" / "config.json", selection_seeds=[[50_000, 50_019]])
    assert main(["export", f"checkpoint={run}", "out=bundle", "episodes=3", "start_seed=50018", *QUICK]) == 0
    assert "not a result on unseen episodes, 2 (that chose the checkpoint)" in capsys.readouterr().out
    certificate = json.loads(Path("bundle/certificate.json").read_text())
    assert certificate["closed_loop"]["seen_seeds"] == {"selection": 2}


def test_with_a_dataset_and_without_episodes_no_simulator_is_needed(run: Path) -> None:
    assert main(["data", "collect", "task=toy", "episodes=2", "out=toy.zarr"]) == 0
    rerecord(run / "checkpoints" / "000010" / "policy" / "config.json", task={"name": "gone", "id": "gone"})
    words = [f"checkpoint={run}", "out=bundle", "dataset.path=toy.zarr", "observations=9", "episodes=0", *QUICK]
    assert main(["export", *words]) == 0
    certificate = json.loads(Path("bundle/certificate.json").read_text())
    assert certificate["parity"]["source"] == "9 observations of toy.zarr" and certificate["closed_loop"] is None
    assert main(["export", *words]) == 2  # it exists now
    assert main(["export", *words, "overwrite=true"]) == 0


def test_a_deviation_is_exit_code_1_and_no_bundle(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(run.parent.rglob("*"))
    words = ["tolerance=1e-12", "observations=5", "episodes=0", *QUICK]
    assert main(["export", f"checkpoint={run}", "out=bundle", *words]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("parity FAILED") and "no bundle was written" in said.err
    assert sorted(run.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out=bundle"], "checkpoint=... is required"),
        (["checkpoint=run"], "out=... is required"),
        (["checkpoint=nowhere", "out=bundle"], "no checkpoint at nowhere"),
        (["checkpoint=run", "out=run"], "pass overwrite=true"),
        (["checkpoint=run", "out=run", "overwrite=true"], "will not replace it"),
        (["checkpoint=run", "out=bundle", "format=tensorrt"], "format must be onnx, got tensorrt"),
        (["checkpoint=run", "out=bundle", "num_steps=0"], "num_steps must be at least 1"),
        (["checkpoint=run", "out=bundle", "dataset.path=none.zarr"], "none.zarr does not exist"),
        (["checkpoint=run", "out=bundle", "task=metaworld", "task.id=no-such-id"], "no-such-id"),
        (["checkpoint=run", "out=bundle", "episode=3"], "did you mean episodes?"),
        (["checkpoint=run", "out=bundle", "observations=0"], "observations must be at least 1, got 0"),
        (["checkpoint=run", "out=bundle", "episodes=-1"], "episodes must be at least 0, got -1"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    before = sorted(run.parent.rglob("*"))
    assert main(["export", *QUICK, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowpolicy export: ") and said in lines[0]
    assert sorted(run.parent.rglob("*")) == before
