# ruff: noqa: F811
"""One evaluation is one folder, whole or not there: killed ones go on, others are refused, finished ones stay."""

import json
import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import pytest

from flowpolicy.cli.main import main
from flowpolicy.evaluation import evaluate as module
from flowpolicy.evaluation.evaluate import evaluate
from flowpolicy.files import write_atomic
from flowpolicy.locks import only_writer
from flowpolicy.report.compare_page import LOOK
from flowpolicy.rollout.video import require_video
from tests.catalogue import toy_run
from tests.evaluation.test_evaluate import TASK, lines, measured, run  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("measured")
TIMES = ("latency_ms", "env_steps_per_s")


class Killed(BaseException):
    """As a signal would: nothing below main catches it."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def roll(run: Path, out: Path, **changes: Any) -> dict[str, Any]:
    settings = {"episodes": 6, "envs": 1, "progress": False} | changes
    (found,) = evaluate(run, TASK, outs={1: out}, **settings)
    return found.summary


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch, name: str = "append_rows") -> None:
    """The next call ends at the count-th use of a function."""
    from flowpolicy.evaluation import journal

    where = journal if hasattr(journal, name) else module
    real, calls = getattr(where, name), []

    def wrapped(*arguments: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) > count:
            raise Killed
        return real(*arguments, **words)

    monkeypatch.setattr(where, name, wrapped)


@pytest.mark.parametrize(
    ("count", "name"),  # the first picture is drawn before the first episode, to see whether it can be
    [(1, "append_rows"), (4, "append_rows"), (0, "describe"), (1, "write_chunks"), (0, "replace_folder")],
)
def test_a_killed_evaluation_goes_on_and_ends_as_an_unbroken_one(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    name: str,
) -> None:
    whole = roll(run, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(count, patch, name)
        roll(run, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()  # nothing that could pass for a result
    (unfinished,) = tmp_path.glob(".eval.unfinished")
    kept = lines(unfinished / "results.jsonl")
    with (unfinished / "results.jsonl").open("a") as half:
        half.write('{"task": "poi')
    rolled = []
    real = module.run_episodes
    monkeypatch.setattr(module, "run_episodes", lambda *a, **k: rolled.extend(a[2]) or real(*a, **k))
    again = roll(run, tmp_path / "eval")
    assert len(kept) == (count if name == "append_rows" else 6)
    assert rolled == list(range(100_000 + len(kept), 100_006))
    assert {k: v for k, v in again.items() if k not in TIMES} == {k: v for k, v in whole.items() if k not in TIMES}
    for file in ("results.jsonl", "chunks.json", "asked.json"):
        assert (tmp_path / "eval" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert not unfinished.exists()


def test_a_finished_evaluation_is_not_done_again(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = roll(run, tmp_path / "eval")
    before = contents(tmp_path / "eval")
    monkeypatch.setattr(module, "make_vector_env", None)
    assert roll(run, tmp_path / "eval", envs=2) == first and contents(tmp_path / "eval") == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start_seed": 7}, "start_seed 100000, now 7; choose another `out=`"),
        ({"episodes": 4}, "episodes 6, now 4"),
        ({"episodes": 8}, "episodes 6, now 8"),
    ],
)
@pytest.mark.parametrize("unfinished", [False, True])
def test_another_evaluation_leaves_the_folder_alone(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    said: str,
    unfinished: bool,
) -> None:
    with monkeypatch.context() as patch:
        if unfinished:
            killed_after(2, patch)
        try:
            roll(run, tmp_path / "eval")
        except Killed:
            assert unfinished
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)):
        roll(run, tmp_path / "eval", **changes)
    assert contents(tmp_path) == before


def test_other_weights_and_other_rules_are_another_evaluation(run: Path, tmp_path: Path) -> None:
    roll(run, tmp_path / "eval")
    with pytest.raises(ValueError, match=r"was begun with settings.limit nothing, now 3; choose another"):
        evaluate(run, TASK._replace(settings={"limit": 3}), outs={1: tmp_path / "eval"}, episodes=6, envs=1)


def test_a_folder_of_something_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    write_atomic(tmp_path / "notes.txt", "mine")
    with pytest.raises(ValueError, match="holds .*, and does not say what was asked of it; choose another `out=`"):
        roll(run, tmp_path)
    (tmp_path / "empty").mkdir()
    assert roll(run, tmp_path / "empty")["n"] == 6
    with pytest.raises(ValueError, match=r"notes.txt is a file"):
        roll(run, tmp_path / "notes.txt")


def test_an_evaluation_has_one_writer(run: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path, "eval.lock"), pytest.raises(ValueError, match="is being written by another command"):
        roll(run, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()
    assert roll(run, tmp_path / "eval")["n"] == 6


def command(arguments: list[str], out: Any) -> None:
    """`flowpolicy evaluate` in a process of its own; its exit code."""
    out.put(main(["evaluate", *arguments]))


@pytest.mark.slow
@pytest.mark.ci
def test_of_two_commands_at_once_one_is_refused_or_finds_it_done(tmp_path: Path) -> None:
    folder = toy_run(tmp_path / "run")
    words = [f"checkpoint={folder}", "episodes=200", "envs=1", f"out={tmp_path / 'eval'}"]
    spawn = multiprocessing.get_context("spawn")
    codes: Any = spawn.Queue()
    processes = [spawn.Process(target=command, args=(words, codes)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted([codes.get(), codes.get()]) in ([0, 0], [0, 2])
    assert (
        json.loads((tmp_path / "eval/summary.json").read_text())["n"]
        == 200
        == len(lines(tmp_path / "eval/results.jsonl"))
    )


@pytest.mark.slow
@pytest.mark.ci
def test_kills_at_many_moments_leave_a_folder_that_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    folder = toy_run(tmp_path / "run")
    words = [f"checkpoint={folder}", "episodes=60", "envs=1"]
    assert main(["evaluate", *words, f"out={tmp_path / 'whole'}"]) == 0
    spawn = multiprocessing.get_context("spawn")
    codes: Any = spawn.Queue()
    lasted = 0.0  # of a whole call: the first one is not killed, into a folder of its own
    for moment in range(8):
        process = spawn.Process(
            target=command, args=([*words, f"out={tmp_path / ('eval' if moment else 'first')}"], codes)
        )
        start = time.monotonic()
        process.start()
        process.join(timeout=lasted * moment / 7 if moment else 120.0)
        process.kill()
        process.join()
        lasted = max(lasted, time.monotonic() - start)
        assert not (tmp_path / "eval").exists() or (tmp_path / "eval/summary.json").is_file()
    assert main(["evaluate", *words, f"out={tmp_path / 'eval'}"]) == 0
    assert (tmp_path / "eval/results.jsonl").read_bytes() == (tmp_path / "whole/results.jsonl").read_bytes()
    assert not list(tmp_path.glob(".eval.unfinished"))


def test_the_command_of_the_page_of_a_comparison_writes_to_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        require_video()
    except (ImportError, ValueError):
        pytest.skip("nothing to film with")
    monkeypatch.chdir(tmp_path)
    folder = toy_run(tmp_path / "run")
    assert main(["evaluate", f"checkpoint={folder}", "episodes=3", "envs=1"]) == 0
    before = contents(folder / "evaluation")
    (said,) = re.findall(r"evaluate with `([^`]*)`", LOOK)
    words = said.replace("DIR", str(folder)).replace("SEED", "100001").split()
    assert main(["evaluate", *words, "envs=1"]) == 0
    assert contents(folder / "evaluation") == before
    (video,) = (tmp_path / "look/100001/videos").iterdir()
    assert video.name.startswith("100001_")


def test_recordings_are_added_to_a_finished_evaluation(tmp_path: Path) -> None:
    try:
        require_video()
    except (ImportError, ValueError):
        pytest.skip("nothing to film with")
    words = [f"checkpoint={toy_run(tmp_path / 'run')}", "episodes=2", "envs=1", f"out={tmp_path / 'eval'}"]
    assert main(["evaluate", *words]) == 0
    before = contents(tmp_path / "eval")
    assert main(["evaluate", *words, "video=1"]) == 0
    after = contents(tmp_path / "eval")
    (added,) = set(after) - set(before)
    assert added.startswith("videos/100000_") and {name: after[name] for name in before} == before
