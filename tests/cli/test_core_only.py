"""Without the extra `train`, as on a robot's computer: what needs it says so in one line, the rest works."""

import json
import subprocess
import sys
from pathlib import Path

from flowpolicy.extras import how_to_install

ROOT = Path(__file__).parents[2]
CODE = """
import contextlib, io, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("zarr", "numcodecs", "numba", "gymnasium"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from flowpolicy.cli.main import main
for words in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    print(json.dumps([code, error.getvalue().splitlines()]))
"""


def test_the_core_alone_names_the_extra_in_one_line(tmp_path: Path) -> None:
    needing = [
        ["train", "--help"],
        ["train", "dataset.path=a.zarr"],
        ["evaluate", "checkpoint=run"],
        ["data", "inspect", "a.zarr"],
        ["data", "collect", "task=toy", "out=a.zarr"],
        ["export", "checkpoint=run", "out=bundle"],
    ]
    working = [["info"], ["report", "--help"], ["doctor", "--help"], ["data", "--help"], ["bench", "--help"]]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(needing + working)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'envs'}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for words, (code, lines) in zip(needing, answers, strict=False):
        assert code == 2 and len(lines) == 1, words
        assert lines[0].startswith(f"flowpolicy {words[0]}: ")
        assert lines[0].endswith(f"is not installed; {how_to_install('train')}")
    assert answers[len(needing) :] == [[0, []]] * len(working)
