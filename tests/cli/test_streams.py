"""A command's streams: closed, without a reader, on a full disk, or short of letters; the work is done all the same."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowpolicy.checkpoint import load_policy
from flowpolicy.cli.main import VERBS, main
from tests.cli.test_odd_homes import (
    environment,
    given,  # noqa: F401 - a fixture
    spoken,
    words,
)

LIGHT = """
import os, sys
from flowpolicy.cli.main import concluded, outlive_readers
outlive_readers()
with open("file", "w") as file:
    print(file.fileno(), [os.get_inheritable(number) for number in (0, 1, 2)], file=file)
print("said … at length" * int(sys.argv[1]), flush=True)
print("complained …", file=sys.stderr)
sys.exit(concluded(0))
"""


def shell(line: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a line of sh with FLOWPOLICY as the command, LIGHT as a small one; errors="replace" of what they print."""
    own = environment(FLOWPOLICY=f"{sys.executable} -m flowpolicy", PYTHON=sys.executable, LIGHT=LIGHT, **changes)
    return subprocess.run(["sh", "-c", line], cwd=cwd, env=own, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("streams", "code", "out", "err"),
    [
        ("", 0, "said … at length\n", "complained …\n"),
        ("<&-", 0, "said … at length\n", "complained …\n"),
        (">&-", 0, "", "complained …\n"),
        ("2>&-", 0, "said … at length\n", ""),
        ("<&- >&- 2>&-", 0, "", ""),
        (
            ">/dev/full",
            2,
            "",
            "complained …\nflowpolicy: what was to be printed could not be written: No space left "
            "on device; the work is done\n",
        ),
        ("2>/dev/full", 0, "said … at length\n", ""),
    ],
)
def test_no_stream_and_no_room(streams: str, code: int, out: str, err: str, tmp_path: Path) -> None:
    done = shell(f'$PYTHON -c "$LIGHT" 1 {streams}', tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)
    number, inherited = (tmp_path / "file").read_text().split(maxsplit=1)
    assert int(number) > 2 and inherited == "[True, True, True]\n"  # no file is where a stream was


def test_a_reader_that_goes_ends_quietly(tmp_path: Path) -> None:
    done = shell('($PYTHON -c "$LIGHT" 100000; echo $? >&2) | head -c 4', tmp_path)
    assert (done.stdout, done.stderr.splitlines()) == ("said", ["complained …", "141"])
    done = shell("($FLOWPOLICY --help; echo $? >&2) | true", tmp_path)
    assert done.stderr.splitlines() in (["141"], ["0"])  # the pipe's reader may be slower than the help


def test_letters_that_a_terminal_lacks_become_question_marks(tmp_path: Path) -> None:
    done = shell('$PYTHON -c "$LIGHT" 1', tmp_path, PYTHONIOENCODING="latin-1")
    assert done.returncode == 1 and "UnicodeEncodeError" in done.stderr  # by itself: it is `main` that replaces them
    assert shell("$FLOWPOLICY --help", tmp_path, PYTHONIOENCODING="ascii").returncode == 0


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_can_be_read_everywhere(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([*([verb] if verb else []), "--help"]) == 0
    assert stream.errors == "strict"  # the caller's again
    stream.flush()
    assert b"flowpolicy" in stream.buffer.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_program_without_streams_can_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["info"]) == 0 and main(["info", "x"]) == 2
    assert sys.stdout is None and sys.stderr is None


@pytest.mark.slow
@pytest.mark.parametrize("streams", [">&-", "2>&-", "2>&1 | head -c 5", "</dev/null >/dev/null 2>&1 &\nwait $!"])
def test_a_training_ends_as_it_would(streams: str, given: Path, tmp_path: Path) -> None:  # noqa: F811
    command = " ".join(words("train", given, tmp_path / "out"))
    done = shell(f"{{ $FLOWPOLICY {command}; echo $? > code; }} {streams}", tmp_path)
    assert not any("Traceback" in line for line in spoken(done.stderr))
    assert (tmp_path / "code").read_text().strip() == ("141" if "|" in streams else "0")
    load_policy(tmp_path / "out/checkpoints/000040")


@pytest.mark.slow
def test_a_training_outlives_its_terminal(given: Path, tmp_path: Path) -> None:  # noqa: F811
    """The terminal of a disowned command is closed: writing there is an error from then on."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "flowpolicy", *words("train", given, tmp_path / "out")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=theirs, stderr=theirs, env=environment())
    os.close(theirs)
    os.close(ours)
    assert process.wait(300) == 0
    load_policy(tmp_path / "out/checkpoints/000040")
