"""Every command that README.md and docs/ print runs as printed, at toy size; and the reader of pages reads them right.

The pages are slow: `scripts/docs --run` runs them all, in CI too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, pages, steps, toy

PAGES = [str(page.relative_to(ROOT)) for page in pages()]


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    """Takes pages on its standard input; see tests.docs.run."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    command = [sys.executable, "-m", "tests.docs.run", "--serve"]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs_as_printed(runner: subprocess.Popen[str], page: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert runner.stdin is not None and runner.stdout is not None
    print(json.dumps([str(ROOT / page), str(tmp_path), str(log)]), file=runner.stdin, flush=True)
    code = runner.stdout.readline().strip()
    said = log.read_text()
    print(said)
    assert code == "0", said[-10_000:]


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_of_a_page_says_what_it_is(page: str) -> None:
    assert all(step.text.strip() for step in steps(ROOT / page))


def read(folder: Path, text: str) -> list:
    page = folder / "page.md"
    page.write_text(text)
    return steps(page)


def test_sizes_become_small_and_the_other_words_stay() -> None:
    printed = "flowpolicy train dataset.path=a.zarr \\\n    trainer.steps=6000 seed=1 # long\nls | flowpolicy info"
    wanted = "flowpolicy train dataset.path=a.zarr trainer.steps=4 seed=1 eval.episodes=1 # long\nls | flowpolicy info"
    assert toy(printed, {}) == wanted


def test_words_of_a_page_go_before_those_of_every_page() -> None:
    text = toy("flowpolicy data collect 'episodes=100' out=a.zarr && echo", {"data collect": ["episodes=7"]})
    assert text == "flowpolicy data collect episodes=7 out=a.zarr && echo"


def test_help_and_verbs_without_sizes_stay_as_printed() -> None:
    for text in ("flowpolicy train --help", "flowpolicy doctor", "cat .flowpolicy train"):
        assert toy(text, {}) == text


def test_marks_hold_for_the_next_fence_only(tmp_path: Path) -> None:
    first, second, third = read(
        tmp_path,
        """
<!-- run: skip, needs a GPU -->

```bash
nvidia-smi
```

<!-- run: as printed -->
<!-- run: replace sort with cat -->
```bash
flowpolicy bench checkpoint=a | sort
```

```console
$ flowpolicy bench checkpoint=a
p50 1 ms
```
""",
    )
    assert (first.skip, second.skip) == ("needs a GPU", "")
    assert second.text == "flowpolicy bench checkpoint=a | cat\n"
    assert third.text.split()[3:] == ["repeats=5", "warmup=1", "observations=4"]


def test_what_a_failing_command_prints_is_below_it_or_in_the_next_fence(tmp_path: Path) -> None:
    inside = "<!-- run: fails -->\n```console\n$ true\n$ false\nno … luck\n```\n"
    below = "<!-- run: fails -->\n```bash\nfalse\n```\nsays\n```text\nno … luck\n```\n"
    for text in (inside, below):
        (step,) = read(tmp_path, text)
        assert step.fails and step.output == ["no … luck"]


def test_a_title_is_a_file_and_a_hidden_comment_prepares(tmp_path: Path) -> None:
    prepared, written = read(
        tmp_path, '<!-- run: before\necho a\n-->\n1. x\n   ```python title="a/b.py"\n   x = 1\n   ```\n'
    )
    assert (prepared.kind, prepared.text) == ("bash", "echo a")
    assert (written.kind, written.title, written.text) == ("file", "a/b.py", "x = 1\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```\nls\n```", "wanted a fence of one of"),
        ("```bash\nls", "no end"),
        ("<!-- run: skip, no time -->\n```bash\nls\n```", "needs a GPU"),
        ("<!-- run: quickly -->\n```bash\nls\n```", "quickly"),
        ("<!-- run: as printed -->\nand so on", "got text"),
        ("<!-- run: as printed -->", "end of the page"),
        ("<!-- run: replace 3 with 4 -->\n```bash\nls\n```", "does not occur"),
        ("```console\nls\n```", "got none"),
    ],
)
def test_a_wrong_fence_or_mark_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("```bash\nexport A=5\ntest $A = 5\n```", True),
        ("```bash\nfalse\n```", False),
        ("<!-- run: fails -->\n```bash\ntrue\n```", False),
        ("<!-- run: fails -->\n```bash\nls nothing\n```\n```text\nls: … nothing\n```", True),
        ("<!-- run: fails -->\n```bash\nls nothing\n```\n```text\nanother message\n```", False),
        ('```python title="own.py"\nX = 1\n```\n```python\nimport own\n```\n```python\nassert own.X == 1\n```', True),
        ("```python\n1 / 0\n```", False),
    ],
)
def test_the_runner_of_pages_tells_what_holds(tmp_path: Path, text: str, holds: bool) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    done = subprocess.run([sys.executable, "-m", "tests.docs.run", str(page)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == holds, done.stdout + done.stderr
