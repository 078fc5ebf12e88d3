"""`flowpolicy bench`: what it writes, with and without a simulator; bad input is one line and writes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowpolicy.cli.main import main
from tests.catalogue import toy_run

pytest.importorskip("gymnasium")
ROOT = Path(__file__).parents[2]
QUICK = ["warmup=0", "repeats=3"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return toy_run(tmp_path / "run")


def test_every_number_of_steps_is_measured_and_the_file_is_named(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", f"checkpoint={run}", "num_steps=[1,2]", "hz=50", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    file = run / "bench" / "000010" / "bench.json"
    assert lines[-1] == str(file)
    written = json.loads(file.read_text())
    assert [report["num_steps"] for report in written["reports"]] == [1, 2]
    assert [report["hz"] for report in written["reports"]] == [50, 50]
    assert written["reports"][1]["recommendation"] == lines[-2]
    assert (written["task"], written["observations"]) == (None, "zeros")
    assert written["checkpoint"] == str(run / "checkpoints" / "000010") and "torch" in written["versions"]


def test_with_a_task_the_observations_are_the_simulators(run: Path) -> None:
    allowed = os.sched_getaffinity(0)
    words = ["task.max_episode_steps=3", "observations=5", "out=here", f"cpus=[{min(allowed)}]"]
    try:
        assert main(["bench", f"checkpoint={run}", *words, *QUICK]) == 0
    finally:
        os.sched_setaffinity(0, allowed)
    written = json.loads(Path("here/bench.json").read_text())
    assert written["task"] == {"name": "toy", "id": "two-ways"}
    assert written["observations"] == "5 observations of 2 episodes in the simulator"
    assert written["reports"][0]["hz"] == 10.0 and written["cpus"] == [min(allowed)]


def test_a_robots_computer_needs_neither_simulators_nor_stores(run: Path) -> None:
    code = "import sys; from flowpolicy.cli.main import main; code = main(sys.argv[1:]);"
    code += "assert not {'zarr', 'numba', 'gymnasium', 'onnx'} & set(sys.modules); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", f"checkpoint={run}", *QUICK],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "checkpoint=... is required"),
        (["checkpoint=nowhere"], "no checkpoint at nowhere"),
        (["checkpoint=run", "hz=0"], "hz must be positive"),
        (["checkpoint=run", "num_steps=0"], "at least 1"),
        (["checkpoint=run", "repeats=0"], "repeats"),
        (["checkpoint=run", "repeat=5"], "did you mean repeats?"),
        (["checkpoint=run", "cpus=[4096]"], "cpus: wanted some of"),
        (["checkpoint=run", "task=nosuchtask"], "nosuchtask"),
        (["checkpoint=run", "task=toy", "observations=0"], "observations must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    before = sorted(run.parent.rglob("*"))
    assert main(["bench", *QUICK, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowpolicy bench: ") and said in lines[0]
    assert sorted(run.parent.rglob("*")) == before
