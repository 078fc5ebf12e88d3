"""`flowpolicy sweep` end to end on the toy task: every cell once, in processes, in parts, and after a kill."""

import importlib
import json
import os
import shutil
import signal
import time
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from flowpolicy.cli.main import main
from flowpolicy.evaluation.sweep import Grid
from flowpolicy.locks import only_writer
from flowpolicy.report.sweep_page import format_sweep
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import conclude
from tests.cli.test_report import tags
from tests.evaluation.test_compare import lines, start, wait_until


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good/, poor/ and single/ in it, as the current one; latency is measured three times only."""
    for name in ("good", "poor", "single"):
        shutil.copytree(trained / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("flowpolicy.evaluation.sweep")
    monkeypatch.setattr(module, "measure_latency", partial(module.measure_latency, warmup=0, repeats=3))
    return tmp_path


def rows(out: str | Path) -> list[tuple[Any, ...]]:
    """Every line of all parts, sorted."""
    found = [row for file in Path(out).glob("results*.jsonl") for row in lines(file)]
    keys = ("task_id", "checkpoint", "num_steps", "seed", "success_once", "episode_len", "failure")
    return sorted(tuple(row[key] for key in keys) for row in found)


WORDS = ["sweep", "checkpoints=[good,poor]", "num_steps=[1,2]", "seeds=[100000,200000]", "episodes=20"]


def test_every_cell_is_run_once_and_shown(here: Path, capsys: pytest.CaptureFixture):
    assert main([*WORDS, "out=out"]) == 0
    found = rows("out")
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 20
    assert {row[3] for row in found} == {*range(100_000, 100_020), *range(200_000, 200_020)}
    content = json.loads(Path("out/sweep.json").read_text())
    (task,) = content["tasks"]
    assert [(arm["name"], arm["n"]) for arm in task["arms"]] == [
        ("good · 1 step", 40),
        ("good · 2 steps", 40),
        ("poor · 1 step", 40),
        ("poor · 2 steps", 40),
    ]
    winners = {(pair["a"], pair["b"]): pair["winner"] for pair in task["pairs"]}
    assert len(winners) == 6 and winners["good · 1 step", "poor · 1 step"] == "good · 1 step"
    lines = Path("out/sweep.md").read_text().splitlines()
    assert lines[0].startswith("| arm | steps | p50 ms | ") and set(lines[1]) == set("|-: ")
    assert len({line.count("|") for line in lines if line}) <= 2  # of the two tables
    html = Path("out/sweep.html").read_text()
    tags(html)
    assert "http" not in html and all(pair["sentence"] in unescape(html) for pair in task["pairs"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-7].split() == ["arm", "steps", "p50", "ms", "two-ways"] and printed[-6].startswith("good · 1 step ")
    assert printed[-2:] == [str(here / "out/sweep.json"), str(here / "out/sweep.html")]
    # and the same episodes as `evaluate` and `compare` run
    assert main(["evaluate", "checkpoint=poor", "episodes=20", "envs=1", "out=eval"]) == 0
    own = [row for row in found if row[1].startswith(str(here / "poor")) and row[2] == 1 and row[3] < 200_000]
    assert rows("eval") == own and len(own) == 20


def test_two_processes_find_what_one_finds(here: Path):
    for workers in (1, 2):
        assert main([*WORDS, "episodes=4", f"workers={workers}", f"out=with_{workers}"]) == 0
    assert rows("with_1") == rows("with_2")


def test_a_killed_sweep_leaves_no_process_behind_and_goes_on(here: Path):
    words = ["sweep", "checkpoints=[good,poor]", "episodes=60", "workers=2"]
    file = here / "out/results.jsonl"
    process = start(*words, "out=out")
    wait_until(lambda: file.exists() and file.stat().st_size > 0, process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = file.read_bytes()
    assert 10 <= len(kept.splitlines()) < 120 and children
    for _ in range(500):
        if not any(os.path.exists(f"/proc/{pid}/cwd") for pid in children):
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the workers outlive a killed sweep")
    with file.open("ab") as half:
        half.write(kept.splitlines()[-1][:30])  # as if the kill had come in the middle of a line
    assert main([*words[:-1], "out=out"]) == 0
    assert file.read_bytes().startswith(kept)  # appended to, never written anew
    found = rows("out")
    assert len(found) == len(set(found)) == 120
    assert main([*words[:-1], "out=unbroken"]) == 0 and rows("unbroken") == found


def test_more_of_everything_adds_only_what_is_missing(here: Path, capsys: pytest.CaptureFixture):
    assert main(["sweep", "checkpoints=[good]", "episodes=10", "out=out"]) == 0
    before = Path("out/results.jsonl").read_bytes()
    more = ["checkpoints=[good,poor]", "num_steps=[1,2]", "episodes=15", "seeds=[100000,100050]"]
    assert main(["sweep", *more, "out=out"]) == 0
    after = Path("out/results.jsonl").read_bytes()
    assert after.startswith(before) and len(after.splitlines()) == 2 * 2 * 2 * 15
    latency = Path("out/latency.jsonl").read_bytes()
    assert main(["sweep", *more, "out=out"]) == 0
    assert Path("out/results.jsonl").read_bytes() == after and Path("out/latency.jsonl").read_bytes() == latency
    capsys.readouterr()
    assert main(["sweep", *more, "task.max_episode_steps=30", "out=out"]) == 2
    assert "settings.max_episode_steps 60, now 30" in capsys.readouterr().err


def test_parts_share_the_work_and_the_last_one_writes_the_page(here: Path, capsys: pytest.CaptureFixture):
    assert main([*WORDS, "part=2/3", "out=out"]) == 0
    assert "part 2/3 is done, others are not" in capsys.readouterr().out and not Path("out/sweep.html").exists()
    assert main([*WORDS, "part=1/3", "out=out"]) == 0
    assert main([*WORDS, "part=3/3", "out=out"]) == 0
    assert Path("out/sweep.html").exists()
    sizes = [len(lines(Path(f"out/results_{i}_of_3.jsonl"))) for i in (1, 2, 3)]
    assert sizes == [60, 60, 40]  # 8 cells of 20
    assert main([*WORDS, "out=whole"]) == 0 and rows("out") == rows("whole")


def test_a_head_that_takes_one_step_is_left_out_where_there_are_more(here: Path, capsys: pytest.CaptureFixture):
    assert main(["sweep", "checkpoints=[good,single]", "num_steps=[1,4]", "episodes=3", "out=out"]) == 0
    assert (
        "left out, since the head does not take that sampler, or that many steps: single · 4 steps\n"
        in capsys.readouterr().out
    )
    assert {(Path(row[1]).parts[-3], row[2]) for row in rows("out")} == {("good", 1), ("good", 4), ("single", 1)}


def test_tasks_may_name_their_family(here: Path):
    assert main(["sweep", "checkpoints=[good]", "tasks=[toy/two-ways]", "episodes=2", "out=out"]) == 0
    (task,) = json.loads(Path("out/sweep.json").read_text())["tasks"]
    assert task["task_id"] == "two-ways" and task["pairs"] == []  # one arm: nothing to compare, and a page all the same


def test_the_table_has_a_column_per_task_and_a_mean_where_all_were_run():
    def arm(name: str, task: str, successes: int) -> ArmResult:
        facts = {"task": "metaworld", "task_id": task, "num_steps": 1, "checkpoint": name}
        found = [facts | {"seed": i, "success_once": i < successes, "failure": ""} for i in range(20)]
        return ArmResult(name, found, {"latency_ms": {"p50": 1.5, "p95": 2.0, "p99": 3.0}})

    tasks = [conclude([arm("dm1", "push-v3", 18), arm("mp1", "push-v3", 10)]), conclude([arm("dm1", "pick-v3", 20)])]
    text = format_sweep(tasks).splitlines()
    assert text[0].split() == ["arm", "steps", "p50", "ms", "push-v3", "pick-v3", "mean"]
    assert text[1].split() == ["dm1", "1", "1.50", "0.900", "[0.699,", "0.972]", "1.000", "[0.839,", "1.000]", "0.950"]
    assert text[2].split() == ["mp1", "1", "1.50", "0.500", "[0.299,", "0.701]", "–", "–"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "checkpoints=... is required"),
        (["checkpoints=good"], "checkpoints must be a list, of text each, got 'good'; for example checkpoints=[good]"),
        (["checkpoints=[]"], "must be lists"),
        (["checkpoints=[nowhere]"], "no checkpoint at nowhere"),
        (["checkpoints=[good]", "out=null"], "pass out=DIR"),
        (["checkpoints=[good,good]"], "good is there twice; name every policy and sampler once"),
        (["checkpoints=[good]", "num_steps=[0]"], "num_steps must be at least 1, got 0"),
        (["checkpoints=[single]", "num_steps=[2]"], "no head takes that sampler; add jump, or 1 to num_steps"),
        (["checkpoints=[good]", "num_steps=2"], "num_steps must be a list"),
        (["checkpoints=[good]", "episodes=0"], "episodes must be at least 1, got 0"),
        (["checkpoints=[good]", "workers=0"], "workers must be at least 1, got 0"),
        (["checkpoints=[good]", "seeds=[]"], "seeds must be whole numbers"),
        (["checkpoints=[good]", "seeds=[-1]"], "seeds must be between 0 and 2147483647, got -1"),
        (["checkpoints=[good]", "seeds=[0,30]", "episodes=40"], "those from 0 and 30 overlap"),
        (["checkpoints=[good]", "part=3/2"], "part must be I/N with 1 <= I <= N, got 3/2"),
        (["checkpoints=[good]", "part=half"], "part must be I/N, for example 2/8, got 'half'"),
        (["checkpoints=[good]", "names=[a,b]"], "names: wanted one for each of the 1 folders"),
        (["checkpoints=[good]", "tasks=[three-ways]"], "toy has id=two-ways"),
        (["checkpoints=[good]", "worker=2"], "there is no key worker; did you mean workers?"),
    ],
)
def test_bad_input_is_one_line(here: Path, capsys: pytest.CaptureFixture, words: list[str], said: str):
    assert main(["sweep", "out=out", *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
    assert len(errors) == 1 and errors[0].startswith("flowpolicy sweep: ") and said in errors[0], errors


def test_a_folder_has_one_writer_and_parts_have_one_each(here: Path, capsys: pytest.CaptureFixture):
    with only_writer(here / "out", "results.jsonl.lock"):
        assert main(["sweep", "checkpoints=[good]", "episodes=2", "out=out"]) == 2
        assert "is being written by another command" in capsys.readouterr().err
        assert main(["sweep", "checkpoints=[good]", "episodes=2", "part=1/2", "out=out"]) == 0


def test_blocks_are_as_long_as_the_episodes():
    assert list(Grid([5, 20], episodes=3).block(20)) == [20, 21, 22]
    assert Grid([20, 0], episodes=20).seeds == [20, 0]
    with pytest.raises(ValueError, match="overlap"):
        Grid([20, 1], episodes=20)
