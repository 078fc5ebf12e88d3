"""`flowpolicy compare` end to end on the toy task: verdicts, files, what a kill leaves, what is refused."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from flowpolicy.checkpoint import Checkpoint
from flowpolicy.cli.main import main
from flowpolicy.evaluation.arms import Arm, arm_names, require_comparable
from flowpolicy.evaluation.compare import Plan
from flowpolicy.evaluation.evaluate import Task
from flowpolicy.locks import only_writer
from flowpolicy.report.compare_page import frontier
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.samplers import Heun, Jump
from flowpolicy.statistics.pairs import compare_pairs
from tests.catalogue import toy_run
from tests.cli.test_report import tags
from tests.helpers import last, rerecord

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good/, poor/ and single/ in it, as the current one; latency is measured three times only."""
    for name in ("good", "poor", "single"):
        shutil.copytree(trained / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("flowpolicy.evaluation.evaluate")
    monkeypatch.setattr(module, "measure_latency", partial(module.measure_latency, warmup=0, repeats=3))
    return tmp_path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare(*words: str, code: int = 0) -> dict[str, Any]:
    """Run it into out/; the content of compare.json."""
    assert main(["compare", *words, "out=out", "envs=1"]) == code
    return json.loads(Path("out/compare.json").read_text())


def test_the_better_policy_beats_the_other_on_common_seeds(here: Path, capsys: pytest.CaptureFixture):
    found = compare("good", "poor", "episodes=30")
    (pair,) = found["pairs"]
    assert pair["winner"] == "good" and pair["test"] == "exact McNemar" and pair["p"] == pair["p_holm"] < 0.05
    good, poor = (lines(Path(f"out/arms/{name}/steps_1/results.jsonl")) for name in ("good", "poor"))
    assert [row["seed"] for row in good] == [row["seed"] for row in poor] == list(range(100_000, 100_030))
    assert pair["counts"]["only_a"] == sum(a["success_once"] and not b["success_once"] for a, b in zip(good, poor))
    assert found["arms"][0]["success_once"] == sum(row["success_once"] for row in good) / 30
    assert found["arms"][0]["latency_ms"]["p50"] > 0 and found["looks"] == [30] and found["gate"] is None
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3].startswith("good beats poor: ") and "30 common seeds" in printed[-3]
    assert printed[-2:] == [str(here / "out/compare.json"), str(here / "out/compare.html")]


def test_the_page_is_one_offline_file_that_says_what_the_json_says(here: Path):
    found = compare("good", "poor", "num_steps=[1,2]", "episodes=20", "sequential=true", "max_episodes=40")
    html = Path("out/compare.html").read_text()
    for _, attributes in tags(html):
        assert not {"src", "href"} & set(attributes)
    assert "http" not in html and html.count("<svg") == 3  # intervals, frontier, evidence
    assert len(found["pairs"]) == 6 and all(pair["sentence"] in unescape(html) for pair in found["pairs"])
    assert [arm["name"] for arm in found["arms"]] == [
        "good · 1 step",
        "good · 2 steps",
        "poor · 1 step",
        "poor · 2 steps",
    ]
    assert "Seeds on which they disagree" in html and "✗ collision" in html
    assert main(["report", "out"]) == 0  # the arms' folders are evaluation folders like any other


def test_each_arm_may_have_its_own_number_of_steps(here: Path):
    found = compare("good:4", "poor", "good", "num_steps=2", "episodes=3", "names=[new,old]")
    assert [(arm["name"], arm["num_steps"]) for arm in found["arms"]] == [
        ("new · 4 steps", 4),
        ("old · 2 steps", 2),
        ("new · 2 steps", 2),
    ]
    assert {row["num_steps"] for row in lines(Path("out/arms/new/steps_4/results.jsonl"))} == {4}


def test_the_outcomes_do_not_depend_on_the_number_of_simulators(here: Path):
    for envs in (1, 2):
        assert main(["compare", "good", "poor", "episodes=7", f"envs={envs}", f"out=with_{envs}"]) == 0
    for name in ("good", "poor"):
        one, two = (Path(f"with_{n}/arms/{name}/steps_1/results.jsonl").read_bytes() for n in (1, 2))
        assert one == two and len(one.splitlines()) == 7


# ---- sequential


def test_a_sequential_comparison_stops_when_every_pair_is_decided(here: Path):
    found = compare("good", "poor", "sequential=true", "episodes=10", "max_episodes=400")
    (pair,) = found["pairs"]
    n = found["arms"][0]["n"]
    assert pair["winner"] == "good" and pair["test"] == "sequential bet" and found["looks"] == []
    assert (n - 10) % 20 == 0 and n < 100  # far fewer than allowed, and a multiple of the looks after the first
    rows = {name: lines(Path(f"out/arms/{name}/steps_1/results.jsonl")) for name in ("good", "poor")}
    before = {k: {row["seed"]: row["success_once"] for row in v[: n - 20]} for k, v in rows.items()}
    assert n == 10 or not compare_pairs(before, sequential=True)[0].winner  # it was not clear one look earlier


def test_an_arm_that_is_decided_runs_no_further(here: Path):
    """good against itself at another number of steps stays open to the end; poor is out long before."""
    found = compare("good", "good:2", "poor", "sequential=true", "episodes=20", "max_episodes=120")
    n = {arm["name"]: arm["n"] for arm in found["arms"]}
    assert n["good · 1 step"] == n["good · 2 steps"] == 120 > n["poor · 1 step"]
    assert [pair["winner"] for pair in found["pairs"]] == [None, "good · 1 step", "good · 2 steps"]
    assert found["pairs"][0]["n"] == [120, 120] and found["pairs"][1]["n"] == [n["poor · 1 step"]] * 2
    assert found["pairs"][0]["further_episodes"] is None or found["pairs"][0]["further_episodes"] > 0


# ---- kills and second calls


def start(*words: str) -> subprocess.Popen:
    """The command in a process of its own, one that a test may kill."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'envs'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flowpolicy", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Raise AssertionError when the process ends before the condition holds."""
    while not condition():
        assert process.poll() is None, "ended too early"
        time.sleep(0.01)


def test_a_killed_comparison_goes_on_and_ends_as_an_unbroken_one(here: Path):
    words = ["compare", "good", "poor", "episodes=40", "envs=1"]
    file = here / "out/arms/good/steps_1/results.jsonl"
    process = start(*words, "out=out")
    wait_until(lambda: file.exists() and file.stat().st_size > 0, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = file.read_bytes()
    assert 10 <= len(kept.splitlines()) < 40 and not Path("out/compare.json").exists()
    with file.open("ab") as half:
        half.write(kept.splitlines()[0][:50])  # as if the kill had come in the middle of a line
    assert main([*words, "out=out"]) == 0 and main([*words, "out=unbroken"]) == 0
    assert file.read_bytes().startswith(kept)
    for name in ("good", "poor"):
        one, two = (Path(f"{out}/arms/{name}/steps_1/results.jsonl").read_bytes() for out in ("out", "unbroken"))
        assert one == two
    broken, whole = (json.loads(Path(f"{out}/compare.json").read_text()) for out in ("out", "unbroken"))
    assert broken["pairs"] == whole["pairs"]


def test_a_second_call_runs_nothing_and_more_episodes_only_the_new_ones(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from flowpolicy.evaluation import arms as module

    run: list[int] = []
    real = module.run_episodes
    monkeypatch.setattr(module, "run_episodes", lambda *a, **k: run.extend(a[2]) or real(*a, **k))
    first = compare("good", "poor", "episodes=8")
    assert sorted(run) == sorted([*range(100_000, 100_008)] * 2)
    run.clear()
    assert compare("good", "poor", "episodes=8") == first and not run
    assert "was tested before" not in Path("out/compare.html").read_text()
    assert compare("good", "poor", "episodes=12")["looks"] == [8, 12]
    assert sorted(run) == sorted([*range(100_008, 100_012)] * 2)
    warning = "This folder was tested before, at 8 episodes, by a test for one look"
    assert warning in capsys.readouterr().out and warning in Path("out/compare.html").read_text()


# ---- recorded episodes


def record(folder: Path, successes: int, seeds: range, **changes: Any) -> Path:
    """An evaluation folder with nothing but results.jsonl, of the first `successes` seeds solved."""
    folder.mkdir()
    facts = {"task": "real", "task_id": "peg", "checkpoint": str(folder), "num_steps": 1} | changes
    rows = [
        facts
        | {
            "seed": s,
            "success_once": i < successes,
            "success_at_end": i < successes,
            "return": 0.0,
            "episode_len": 9,
            "failure": "" if i < successes else "timeout",
        }
        for i, s in enumerate(seeds)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_evaluation_folders_are_compared_without_a_simulator(here: Path):
    record(here / "a", 45, range(50))
    record(here / "b", 38, range(1000, 1050))
    found = compare("a", "b")
    (pair,) = found["pairs"]
    assert pair["test"] == "Barnard" and pair["p"] == pytest.approx(0.068, abs=5e-4) and pair["winner"] is None
    assert pair["further_episodes"] == 62 and [arm["latency_ms"] for arm in found["arms"]] == [None, None]
    assert "No latency was recorded" in Path("out/compare.html").read_text()
    record(here / "c", 38, range(50))
    (pair,) = compare("a", "c")["pairs"]
    assert pair["test"] == "exact McNemar" and pair["counts"] == {"both": 38, "only_a": 7, "only_b": 0, "neither": 5}


def test_a_checkpoint_is_compared_with_an_evaluation_of_the_same_task(here: Path):
    words = ["episodes=6", "envs=1", "out=eval"]
    assert main(["evaluate", "checkpoint=poor", *words]) == 0
    found = compare("good", "eval", "episodes=6")
    assert found["pairs"][0]["counts"] is not None and found["arms"][1]["latency_ms"] is not None
    assert not Path("out/arms/eval").exists()


# ---- as a gate


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["good", "poor", "require=better"], 0),
        (["poor", "good", "require=better"], 1),
        (["poor", "good", "require=not_beaten"], 1),
        (["good", "poor", "require=no_worse"], 0),
        (["poor", "good", "require=no_worse", "margin=0.1"], 1),
        (["poor", "good"], 0),
    ],
)
def test_the_gate_decides_the_exit_code(here: Path, capsys: pytest.CaptureFixture, words: list[str], code: int):
    record(here / "eval_good", 19, range(20))
    record(here / "eval_poor", 5, range(20))
    words = [{"good": "eval_good", "poor": "eval_poor"}.get(word, word) for word in words]
    found = compare(*words, code=code)
    said = capsys.readouterr().out.splitlines()[-3]
    if len(words) > 2:
        assert found["gate"]["passed"] == (code == 0) and found["gate"]["reason"] == said
        assert said.startswith(f"{words[2]}: {'passed' if code == 0 else 'failed'}")


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "wanted at least two arms, got 0"),
        (["good"], "wanted at least two arms, got 1; pass two policies, or one with 'num_steps=[1,4]'"),
        (["good", "good"], "good is there twice"),
        (["good", "nowhere"], "no checkpoint at nowhere"),
        (["good", "poor", "out=null"], "pass out=DIR"),
        (["good", "poor", "episodes=0"], "episodes must be at least 1, got 0"),
        (["good", "poor", "episodes=2.5"], "episodes must be a whole number"),
        (["good", "poor", "alpha=5"], "alpha must be below 1, got 5"),
        (["good", "poor", "require=best"], "require must be one of better, no_worse, not_beaten, got 'best'"),
        (["good", "poor", "require=no_worse", "margin=2"], "margin must be between 0 and 1, got 2"),
        (["good", "poor", "require=no_worse", "sequential=true"], "use sequential=false"),
        (["good", "poor", "sequential=true", "max_episodes=20"], "max_episodes must be at least episodes=100, got 20"),
        (["good", "poor", "episode=3"], "there is no key episode; did you mean episodes?"),
        (["good", "single:4"], "RegressionHead samples in at most 1 step(s), got num_steps=4"),
        (["good:0", "poor"], "sampler jump: num_steps must be a whole number of at least 1"),
        (["good", "poor", "names=[a]"], "names: wanted one for each of the 2 folders, got a"),
        (["good", "poor", "task.id=three-ways"], "toy has id=two-ways"),
        (["good", "peg"], "good is on toy two-ways, peg on real peg; pass task=… task.id=… for all"),
        (["peg", "hammer"], "peg is on real peg, hammer on real hammer"),
        (["peg", "empty"], "wanted episodes of one policy on one task, got no episode"),
        (["peg", "mixed"], "got 2 of them"),
        (["peg", "other", "sequential=true", "episodes=5"], "peg is recorded; pass a checkpoint"),
        (["good", "longer"], "good is evaluated with max_episode_steps=60, longer with max_episode_steps=90"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
):
    record(here / "peg", 3, range(5))
    record(here / "other", 3, range(5))
    record(here / "hammer", 3, range(5), task_id="hammer")
    record(here / "empty", 0, range(0))
    both = record(here / "mixed", 3, range(5)) / "results.jsonl"
    both.write_text(both.read_text() + both.read_text().replace('"num_steps": 1', '"num_steps": 2'))
    shutil.copytree(here / "good", here / "longer", symlinks=True)
    for file in (here / "longer").rglob("config.json"):
        task = json.loads(file.read_text())["task"]
        rerecord(file, task={**task, "max_episode_steps": 90})
    before = sorted(here.rglob("*"))
    assert main(["compare", "out=out", "envs=1", *words]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("flowpolicy compare: ") and said in errors[0], errors
    assert sorted(here.rglob("*")) == before


def test_a_folder_is_for_the_same_policies_and_seeds_only(here: Path, capsys: pytest.CaptureFixture):
    compare("good", "poor", "episodes=2")
    assert main(["compare", "good", "poor", "episodes=2", "start_seed=200000", "out=out"]) == 2
    assert "was begun with start_seed 100000, now 200000; choose another out=" in capsys.readouterr().err
    assert main(["compare", "good", "poor", "episodes=2", "task.max_episode_steps=30", "out=out"]) == 2
    assert "settings.max_episode_steps 60, now 30" in capsys.readouterr().err
    weights = last(here / "poor") / "policy/model.safetensors"
    shutil.copy(last(here / "good") / "policy/model.safetensors", weights)
    assert main(["compare", "good", "poor", "episodes=2", "out=out"]) == 2
    assert "was begun with arms/poor/steps_1.weights " in capsys.readouterr().err


def test_two_commands_do_not_write_the_same_folder(here: Path, capsys: pytest.CaptureFixture):
    with only_writer(here / "out"):
        assert main(["compare", "good", "poor", "episodes=2", "envs=1", "out=out"]) == 2
    assert "is being written by another command" in capsys.readouterr().err
    compare("good", "poor", "episodes=2")


def test_another_policys_lines_in_an_arms_folder_are_noticed(here: Path, capsys: pytest.CaptureFixture):
    compare("good", "poor", "episodes=2")
    shutil.copy(here / "out/arms/good/steps_1/results.jsonl", here / "out/arms/poor/steps_1/results.jsonl")
    assert main(["compare", "good", "poor", "episodes=3", "envs=1", "out=out"]) == 2
    assert "has episodes of" in capsys.readouterr().err


def test_a_checkpoint_is_compared_at_the_steps_that_it_records(here: Path):
    rerecord(last(here / "good") / "policy/config.json", num_steps=2)
    assert [arm["num_steps"] for arm in compare("good/checkpoints/last", "poor", "episodes=2")["arms"]] == [2, 1]


# ---- parts


def test_looks_end_with_the_episodes_asked_for():
    assert list(Plan(episodes=45, envs=2).looks()) == [20, 40, 45]
    assert list(Plan(episodes=5, envs=1).looks()) == [5]
    assert list(Plan(episodes=30, sequential=True, max_episodes=75).looks()) == [20, 30, 50, 70, 75]
    assert list(Plan(episodes=30, envs=8, sequential=True, max_episodes=30).looks()) == [20, 30]


def result(name: str, successes: int, p50: float | None) -> ArmResult:
    rows = [{"seed": i, "success_once": i < successes, "num_steps": 1, "failure": ""} for i in range(10)]
    return ArmResult(name, rows, {"latency_ms": {"p50": p50}} if p50 else {})


def test_the_frontier_is_what_no_other_arm_beats_in_both():
    arms = [
        result("fast", 5, 1.0),
        result("slow", 9, 10.0),
        result("worse", 8, 11.0),
        result("same", 5, 2.0),
        result("middle", 7, 3.0),
        result("untimed", 10, None),
        result("by a hair", 4, 0.95),
    ]
    assert [arm.name for arm in frontier(arms)] == ["fast", "slow", "middle"]
    assert [arm.name for arm in frontier([result("a", 5, 1.0), result("b", 5, 1.0)])] == ["a", "b"]


def test_names_are_as_short_as_tells_the_arms_apart(tmp_path: Path):
    a, b = tmp_path / "runs/push-v3/dm1", tmp_path / "runs/push-v3/mp1"
    assert arm_names([a, b], [Jump()] * 2) == ["dm1", "mp1"]
    one, four, heun = Jump(), Jump(num_steps=4), Heun(num_steps=4)
    assert arm_names([a, a, b], [one, four, one]) == ["dm1 · 1 step", "dm1 · 4 steps", "mp1 · 1 step"]
    assert arm_names([a, a], [four, heun]) == ["dm1 · jump", "dm1 · heun"]
    assert arm_names([a, a], [one, heun]) == ["dm1 · jump · 1 step", "dm1 · heun · 4 steps"]
    c = tmp_path / "runs/pick-v3/dm1"
    assert arm_names([a, c], [Jump()] * 2, task_ids=["push-v3", "pick-v3"]) == ["dm1", "dm1"]
    assert arm_names([a, b], [Jump()] * 2, labels=["x", "y"]) == ["x", "y"]


def test_arms_may_see_with_other_eyes_but_not_under_other_rules(tmp_path: Path):
    def make() -> None: ...

    checkpoint = Checkpoint.open(toy_run(tmp_path / "run"))
    arm = Arm(
        "a",
        Jump(),
        tmp_path,
        checkpoint,
        Task("metaworld", "push-v3", make),
        {"obs": "state", "max_episode_steps": 200},
    )
    eyes = replace(arm, name="b", conditions={"obs": "point_cloud", "view": {"points": 512}, "max_episode_steps": 200})
    require_comparable([arm, eyes])
    with pytest.raises(ValueError, match="max_episode_steps=200, c with max_episode_steps=100"):
        require_comparable([arm, replace(arm, name="c", conditions={"obs": "state", "max_episode_steps": 100})])
