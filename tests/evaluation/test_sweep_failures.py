"""One bad cell of a sweep stops no other: it is named, the exit code says so, and a second call tries it again."""

import importlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli.main import main
from flowpolicy.evaluation.arms import Arm
from flowpolicy.evaluation.evaluate import Task
from flowpolicy.evaluation.sweep import Grid, sweep
from flowpolicy.launch.local import Outcome, run_all
from flowpolicy.samplers import Jump
from flowpolicy_envs.toy import make_env
from tests.catalogue import toy_run
from tests.evaluation.test_compare import lines

pytest.importorskip("gymnasium")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Untrained toy policies good/ and bad/ as the current folder; latency is measured three times only."""
    for name in ("good", "bad"):
        toy_run(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("flowpolicy.evaluation.sweep")
    monkeypatch.setattr(module, "measure_latency", partial(module.measure_latency, warmup=0, repeats=3))
    return tmp_path


WORDS = ["sweep", "checkpoints=[good,bad]", "episodes=3", "out=out"]


def damaged_weights(policy: Path) -> None:
    file = policy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def damaged_config(policy: Path) -> None:
    file = policy / "config.json"
    file.write_text(file.read_text()[:50])


@pytest.mark.parametrize("damage", [damaged_weights, damaged_config])
def test_a_checkpoint_that_does_not_load_is_named_and_tried_again(here: Path, capsys: pytest.CaptureFixture, damage):
    policy = here / "bad/checkpoints/000010/policy"
    shutil.copytree(policy, here / "kept")
    damage(policy)
    assert main(WORDS) == 1
    (failed,) = json.loads(Path("out/sweep.json").read_text())["failed"]
    assert failed["name"] == "bad" and str(policy) in failed["error"]
    assert failed["error"] in Path("out/sweep.html").read_text().replace("&#x27;", "'").replace("&quot;", '"')
    said = f"failed: bad on {failed['task_id']}: {failed['error']}"
    assert said in Path("out/sweep.md").read_text()
    assert said.replace("`edited=True`", "edited=true") in capsys.readouterr().out.splitlines()  # in the verb's words
    (task,) = json.loads(Path("out/sweep.json").read_text())["tasks"]
    assert [(arm["name"], arm["n"]) for arm in task["arms"]] == [("good", 3)]
    shutil.copytree(here / "kept", policy, dirs_exist_ok=True)
    assert main(WORDS) == 0
    (task,) = json.loads(Path("out/sweep.json").read_text())["tasks"]
    assert [(arm["name"], arm["n"]) for arm in task["arms"]] == [("good", 3), ("bad", 3)]
    assert len(lines(Path("out/results.jsonl"))) == 6 and "failed" not in Path("out/sweep.md").read_text()


def dies(render: bool = False) -> None:
    os._exit(3)


def breaks(render: bool = False) -> None:
    raise KeyError("no such joint")


@pytest.mark.parametrize(
    ("workers", "make", "said"), [(1, breaks, "no such joint"), (2, dies, "a worker process died")]
)
def test_a_simulator_that_fails_ends_its_own_cells_only(here: Path, workers: int, make, said: str):
    whole = partial(make_env, max_episode_steps=20)
    checkpoint = Checkpoint.open(here / "good")
    arms = [
        Arm("bad", Jump(), Path(), checkpoint, Task("toy", "broken", make)),
        Arm("good", Jump(), Path(), checkpoint, Task("toy", "two-ways", whole)),
    ]
    found = sweep(arms, out=here / "out", grid=Grid([500, 600], episodes=12, workers=workers), progress=False)
    (failure,) = found.failed
    assert (failure.name, failure.task_id) == ("bad", "broken") and said in failure.error
    (comparison,) = found.comparisons
    assert (comparison.task_id, [arm.n for arm in comparison.arms]) == ("two-ways", [24]) and not found.waits
    mended = [arms[0], arms[1]]
    mended[0] = Arm("bad", Jump(), Path(), checkpoint, Task("toy", "broken", whole))
    again = sweep(mended, out=here / "out", grid=Grid([500, 600], episodes=12), progress=False)
    assert not again.failed and [arm.n for one in again.comparisons for arm in one.arms] == [24, 24]


def test_when_no_cell_can_be_run_that_is_an_error(here: Path):
    checkpoint = Checkpoint.open(here / "good")
    arm = Arm("bad", Jump(), Path(), checkpoint, Task("toy", "broken", breaks))
    with pytest.raises(ValueError, match="no such joint"):
        sweep([arm], out=here / "out", grid=Grid([0], episodes=2), progress=False)


def test_a_part_does_not_wait_for_a_cell_that_failed_in_another(here: Path, capsys: pytest.CaptureFixture):
    damaged_weights(here / "bad/checkpoints/000010/policy")
    assert main([*WORDS, "seeds=[100000,200000]", "part=2/2"]) == 1
    assert not Path("out/sweep.html").exists() and "part 2/2 is done, others are not" in capsys.readouterr().out
    assert main([*WORDS, "seeds=[100000,200000]", "part=1/2"]) == 1
    (task,) = json.loads(Path("out/sweep.json").read_text())["tasks"]
    assert [arm["name"] for arm in task["arms"]] == ["good"]


def job(number: int) -> int:
    """Picklable; 1 raises, 2 takes its process with it."""
    if number == 1:
        raise ValueError("one")
    if number == 2:
        os._exit(1)
    return 2 * number


def test_every_job_has_an_outcome_and_what_is_skipped_has_none():
    found = {one.job: one for one in run_all(job, range(5), workers=2, skip=lambda number: number == 3)}
    died = "a worker process died (simulator crash or out of memory)"
    assert found == {0: Outcome(0, 0, ""), 1: Outcome(1, None, "one"), 2: Outcome(2, None, died), 4: Outcome(4, 8, "")}
