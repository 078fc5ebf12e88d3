"""`flowpolicy evaluate`: the checkpoint names its task; bad input is one line, exit code 2 and no files."""

import json
from pathlib import Path

import pytest
import torch

from flowpolicy.checkpoint import create_policy, save_policy
from flowpolicy.cli.main import main
from flowpolicy.embodiment import load_embodiment
from tests.catalogue import toy_run
from tests.helpers import rerecord

pytest.importorskip("gymnasium")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with an untrained checkpoint of the toy task, which allows 20 steps."""
    monkeypatch.chdir(tmp_path)
    return toy_run(tmp_path / "run")


def test_the_task_comes_from_the_checkpoint_and_the_folder_from_the_run(run: Path, capsys: pytest.CaptureFixture):
    assert main(["evaluate", f"checkpoint={run}", "episodes=2", "envs=1", "num_steps=[1,2]"]) == 0
    outs = [run / "evaluation" / "000010" / f"steps_{k}" for k in (1, 2)]
    assert capsys.readouterr().out.splitlines()[-2:] == [str(out) for out in outs]
    for k, out in zip((1, 2), outs, strict=True):
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["task"], summary["task_id"], summary["num_steps"], summary["n"]) == ("toy", "two-ways", k, 2)
        lengths = [json.loads(line)["episode_len"] for line in (out / "results.jsonl").read_text().splitlines()]
        assert max(lengths) <= 20  # as in the checkpoint's task, not the yaml's default


def test_overrides_beat_the_checkpoints_task(run: Path):
    words = ["episodes=1", "envs=1", "start_seed=7", "task.max_episode_steps=3", "out=short"]
    assert main(["evaluate", f"checkpoint={run}", *words]) == 0
    (line,) = (run.parent / "short" / "results.jsonl").read_text().splitlines()
    assert (json.loads(line)["seed"], json.loads(line)["episode_len"]) == (7, 3)


def record(run: Path) -> Path:
    return run / "checkpoints" / "000010" / "policy" / "config.json"


def test_another_task_gets_a_folder_of_its_own(run: Path, capsys: pytest.CaptureFixture):
    file = record(run)
    recorded = json.loads(file.read_text())
    file.write_text(json.dumps(recorded | {"task": recorded["task"] | {"id": "three-ways"}}))
    words = ["evaluate", f"checkpoint={run}", "task=toy", "episodes=1", "envs=1", "task.max_episode_steps=3"]
    assert main(words) == 2
    assert "config.json is not as saved" in capsys.readouterr().err
    assert main([*words, "edited=true"]) == 0
    (summary,) = (run / "evaluation").rglob("summary.json")
    assert summary.parent == run / "evaluation" / "000010" / "two-ways" / "steps_1"


def test_parts_of_ones_own_package_are_run_only_when_trusted(run: Path, capsys: pytest.CaptureFixture):
    recorded = json.loads(record(run).read_text())
    recorded["policy"]["encoder"] = {"_target_": "tests.helpers.OwnEncoder", "_partial_": True}
    policy = create_policy(
        recorded["policy"], load_embodiment(record(run).parent / "embodiment.json"), trusted_modules=["tests"]
    )
    save_policy(policy, record(run).parent, facts={"task": recorded["task"]}, overwrite=True)
    words = ["evaluate", f"checkpoint={run}", "episodes=1", "envs=1", "task.max_episode_steps=3", "out=eval"]
    assert main(words) == 2
    assert "pass 'trusted=[tests]'" in capsys.readouterr().err
    assert main([*words, "trusted=[tests]"]) == 0


@pytest.mark.parametrize(
    "task",
    [
        None,
        ["toy"],
        {},
        {"id": "two-ways"},
        {"name": "toy", "id": "${oc.decode:'{_target_: os.system, command: touch ran}'}"},
        {"name": "toy", "env._target_": "os.system"},
        {"name": "../../../evil", "id": "two-ways"},
    ],
)
def test_a_recorded_task_that_is_none_or_no_plain_one_is_not_followed(run: Path, capsys: pytest.CaptureFixture, task):
    recorded = json.loads(record(run).read_text())
    record(run).write_text(json.dumps(recorded | {"task": task}))
    assert main(["evaluate", f"checkpoint={run}", "episodes=1", "envs=1", "out=eval"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "config.json names no task" in lines[0] and "pass task=" in lines[0]
    assert not (run.parent / "ran").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "checkpoint=... is required"),
        (["checkpoint=nowhere"], "no checkpoint at nowhere"),
        (["checkpoint=run", "episode=3"], "episode"),
        (["checkpoint=run", "episodes=0"], "episodes must be at least 1, got 0"),
        (["checkpoint=run", "episodes=many"], "episodes must be a whole number"),
        (["checkpoint=run", "num_steps=0"], "num_steps must be"),
        (["checkpoint=run", "task=nosuchtask"], "nosuchtask"),
        (["checkpoint=run", "task.id=no-such-id"], "no-such-id"),
        (["checkpoint=run", "demonstrations=nowhere.zarr"], "nowhere.zarr does not exist"),
        (["checkpoint=run", "device=cuda"], "no CUDA device"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
):
    if "device=cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = sorted(run.parent.rglob("*"))
    assert main(["evaluate", "envs=1", "out=eval", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowpolicy evaluate: ") and said in lines[0]
    assert sorted(run.parent.rglob("*")) == before


@pytest.mark.parametrize(("recorded", "steps"), [({"num_steps": 4}, 4), ({}, 1)])
def test_the_number_of_steps_is_the_one_of_training(run: Path, recorded: dict, steps: int):
    facts = json.loads(record(run).read_text())
    facts.pop("num_steps", None)
    record(run).write_text(json.dumps(facts | recorded))
    rerecord(record(run))
    assert main(["evaluate", f"checkpoint={run}", "episodes=1", "envs=1", "out=found"]) == 0
    assert json.loads((run.parent / "found" / "summary.json").read_text())["num_steps"] == steps
