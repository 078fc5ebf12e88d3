"""`flowpolicy train` end to end on the toy task, in seconds."""

import json
import os
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowpolicy.checkpoint import Checkpoint, load_policy
from flowpolicy.cli import config
from flowpolicy.cli.main import main
from flowpolicy.data.collect import collect_episodes
from flowpolicy_envs.experts.toy import make_expert
from tests.helpers import named


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.zarr"
    collect_episodes(partial(make_expert), path, episodes=4, attrs={"task": "toy"})
    return path


def _train(demos: Path, out: Path, *words: str) -> int:
    return main(["train", "task=toy", f"dataset.path={demos}", f"out={out}", "policy.net.width=32", *words])


def test_debug_runs_every_stage_and_writes_the_whole_run_folder(demos: Path, tmp_path: Path) -> None:
    assert _train(demos, tmp_path / "run", "debug=true") == 0
    run = tmp_path / "run"
    assert {".hydra", "run.json", "metrics.jsonl", "checkpoints"} <= {path.name for path in run.iterdir()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {5, 10, 15, 20}
    scored = [line for line in lines if "eval/success_once" in line]
    assert [line["eval/success_once_n"] for line in scored] == [2.0, 2.0]
    assert all(0.0 <= line["eval/success_at_end"] <= line["eval/success_once"] for line in scored)
    record = Checkpoint.open(run).record
    assert (
        record["num_steps"] == 1
        and record["task"]["id"] == "two-ways"
        and record["weights"] == "ema"
        and len(record["dataset"]["hash"]) >= 16
    )
    assert load_policy(run).embodiment.robot == "point mass"
    assert named(run / "checkpoints/last") == "000020"


def test_a_second_run_into_the_same_folder_is_refused_and_resume_is_not(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _train(demos, tmp_path / "run", "debug=true") == 0
    before = (tmp_path / "run/metrics.jsonl").read_text()
    assert _train(demos, tmp_path / "run", "debug=true") == 2
    assert "resume=true" in capsys.readouterr().err
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    assert _train(demos, tmp_path / "run", "debug=true", "resume=true") == 0


def test_a_refused_resume_leaves_the_record_of_the_run_alone(demos: Path, tmp_path: Path) -> None:
    assert _train(demos, tmp_path / "run", "debug=true") == 0
    kept = [tmp_path / "run/run.json", *(tmp_path / "run/.hydra").iterdir()]
    before = [file.read_bytes() for file in kept]
    assert _train(demos, tmp_path / "run", "debug=true", "resume=true", "seed=1") == 2
    assert [file.read_bytes() for file in kept] == before


def test_debug_without_a_simulator_runs_the_other_stages(demos: Path, tmp_path: Path) -> None:
    assert _train(demos, tmp_path / "run", "debug=true", "task.env=null") == 0
    assert "eval/" not in (tmp_path / "run/metrics.jsonl").read_text()


def test_runs_of_the_same_second_get_folders_of_their_own(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    noon = SimpleNamespace(now=lambda: datetime(2030, 1, 1, 12))
    monkeypatch.setattr("flowpolicy.cli.train.datetime", noon)
    words = ["train", "task=toy", f"dataset.path={demos}", "policy.net.width=32", "debug=true", "task.env=null"]
    assert main([*words, "-m", "seed=0,1"]) == 0
    folders = sorted((tmp_path / "runs/toy/two-ways").iterdir())
    assert [folder.name for folder in folders] == ["2030-01-01_12-00-00", "2030-01-01_12-00-00_2"]
    assert [Checkpoint.open(folder).record["seed"] for folder in folders] == [0, 1]


def test_a_resumed_run_goes_on_in_the_same_wandb_run(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    class Wandb:
        def __init__(self, directory, *, project, config, run_id) -> None:
            given.append(run_id)
            self.run_id = run_id or "abc123"

        def log(self, step, metrics) -> None: ...

        def sync(self) -> None: ...

        def truncate_after(self, step, *, evaluation=False) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr("flowpolicy.cli.start.WandbTracker", Wandb)
    for words in (["wandb.enabled=true"], ["resume=true"], ["wandb.enabled=true", "resume=true"]):
        assert _train(demos, tmp_path / "run", "debug=true", "task.env=null", *words) == 0
        assert json.loads((tmp_path / "run/run.json").read_text())["wandb_run_id"] == "abc123"
    assert given == [None, "abc123"]


def test_multirun_trains_every_combination(demos: Path, tmp_path: Path) -> None:
    assert _train(demos, Path("${oc.env:OUT}/${seed}"), "debug=true", "-m", "seed=0,1") == 2  # OUT is not set
    os.environ["OUT"] = str(tmp_path)
    try:
        assert _train(demos, Path("${oc.env:OUT}/${seed}"), "debug=true", "-m", "seed=0,1") == 0
    finally:
        del os.environ["OUT"]
    weights = [load_policy(tmp_path / seed).state_dict()["head.net.input.weight"] for seed in ("0", "1")]
    assert float((weights[0] - weights[1]).abs().max()) > 1e-3


def test_heads_yaml_defaults_are_the_constructors() -> None:
    """Numbers stand in both places so that they can be overridden; they must not drift apart."""
    import inspect

    from flowpolicy.heads.consistency import ConsistencyHead
    from flowpolicy.heads.diffusion import DiffusionHead
    from flowpolicy.heads.flow_matching import FlowMatchingHead
    from flowpolicy.heads.meanflow import MeanFlowHead
    from flowpolicy.nets.mlp import ResidualMLP
    from flowpolicy.nets.unet1d import UNet1D
    from flowpolicy.trainers.imitation import TrainerSettings

    def numbers(name: str, part: str) -> dict:
        cfg = config.plain(config.load("train", ["dataset.path=x", f"policy/{part}={name}"]))["policy"][part]
        return {key: value for key, value in cfg.items() if not key.startswith("_")}

    for cls, name, part in (
        (MeanFlowHead, "meanflow", "head"),
        (FlowMatchingHead, "flow_matching", "head"),
        (DiffusionHead, "diffusion", "head"),
        (ConsistencyHead, "consistency", "head"),
        (ResidualMLP, "mlp", "net"),
        (UNet1D, "unet1d", "net"),
    ):
        signature = inspect.signature(cls).parameters
        defaults = {key: p.default for key, p in signature.items() if p.default is not inspect.Parameter.empty}
        assert numbers(name, part) == {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}, name
    trainer = config.plain(config.load("train", ["dataset.path=x"]))["trainer"]
    assert TrainerSettings.from_dict(trainer) == TrainerSettings()
