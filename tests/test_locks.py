"""A folder has one writer, also against another process, and none once that has ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowpolicy.locks import only_writer

HOLDER = """
import sys
from pathlib import Path
from flowpolicy.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_who_holds_the_folder_until_that_one_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "toy"
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        held = rf"{run} is being written by another command \(process {process.pid} on .+\); wait for it"
        with pytest.raises(ValueError, match=held), only_writer(run):
            pass
        process.send_signal(signal.SIGKILL)
    with only_writer(run):
        assert (run / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_second_lock_of_one_process_is_refused_and_another_name_is_another_lock(tmp_path: Path) -> None:
    with only_writer(tmp_path):
        with pytest.raises(ValueError, match="is being written"), only_writer(tmp_path):
            pass
        with only_writer(tmp_path, "part_1"):
            pass
    with only_writer(tmp_path):
        pass
