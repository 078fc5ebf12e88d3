"""kill -9 of a fine-tuning run, alone and with worker processes; a resumed run has the numbers of an unbroken one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowpolicy.cli.main import main
from tests.cli.test_finetune import TINY, base, metrics, tensors  # noqa: F401  # base is a fixture
from tests.helpers import named

WORDS = (*TINY, "loop.iterations=8", "loop.decisions=20", "receipt.episodes=0", "preflight.episodes=0")


def command(base: Path, out: Path, workers: int) -> list[str]:  # noqa: F811
    return ["finetune", f"checkpoint={base}", f"out={out}", *WORDS, f"workers={workers}"]


def wait(until: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 600  # a loaded machine is slow
    while not until():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened for ten minutes"
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.ci), 2])
def test_after_kill_9_a_run_goes_on_with_the_same_numbers(base: Path, tmp_path: Path, workers: int) -> None:  # noqa: F811
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(base, whole, workers)) == 0
    program = [sys.executable, "-c", "import sys; from flowpolicy.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    process = subprocess.Popen(
        [*program, *command(base, killed, workers)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first = killed / "checkpoints/000002/policy"
    wait(first.exists, process)  # from here on anything may be half done
    simulators = children(process.pid)
    assert len(simulators) >= workers or workers == 1
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(running(pid) for pid in simulators) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(running(pid) for pid in simulators), "simulators outlive the run that they belong to"
    assert main([*command(base, killed, workers), "resume=true"]) == 0
    assert metrics(killed) == metrics(whole)
    one, two = tensors(whole / "checkpoints/000008"), tensors(killed / "checkpoints/000008")
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_of_the_whole_group_saves_what_was_learnt_and_the_run_goes_on(
    base: Path,  # noqa: F811
    tmp_path: Path,
    workers: int,
) -> None:
    """A queue ends all processes at once, the simulators too."""
    out = tmp_path / "out"
    program = [sys.executable, "-c", "import sys; from flowpolicy.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    words = [*command(base, out, workers), "loop.iterations=1000"]
    process = subprocess.Popen(
        [*program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait((out / "checkpoints/000002/policy").exists, process)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=120)[1].splitlines()[-1]
    assert process.returncode == 143
    step = int(named(out / "checkpoints/last"))
    assert error == (
        f"flowpolicy finetune: stopped by SIGTERM at iteration {step} of 1000; resume=true goes on from there"
    )
    more = ["resume=true", f"loop.iterations={step + 1}", "loop.eval_every=0"]
    assert main([*command(base, out, workers), *more]) == 2  # another schedule
    assert main([*command(base, out, workers), *more[:2]]) == 0
    assert int(named(out / "checkpoints/last")) == step + 1
