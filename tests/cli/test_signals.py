"""Ctrl-C and SIGTERM: one line whenever they come and whatever runs, and no process is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from flowpolicy.launch.local import run_all
from flowpolicy.processes import Child, others_start_children
from flowpolicy.stopping import Terminated, signals_raise
from tests.cli.test_odd_homes import (
    environment,
    given,  # noqa: F401 - a fixture
    heard,
    spoken,
    words,
)
from tests.data.test_collect import read, running, wait_for

CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "stopped by SIGTERM")}


def started(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A command in a group of its own, as a terminal starts it."""
    argv = [sys.executable, "-m", "flowpolicy", *command]
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid: int) -> list[str]:
    """Process ids of the workers."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if b"spawn_main" in read(Path(f"/proc/{child}/cmdline"))]


@pytest.mark.parametrize("number", CODES)
def test_while_the_command_is_being_imported(number: signal.Signals, tmp_path: Path) -> None:
    process = started(["evaluate", "checkpoint=none"], tmp_path)
    status = Path(f"/proc/{process.pid}/status")
    wait_for(lambda: heard(status.read_text(), signal.SIGTERM), seconds=60.0)
    process.send_signal(number)
    code, line = CODES[number]
    assert process.communicate(timeout=60)[1] == f"flowpolicy evaluate: {line}\n" and process.returncode == code


@pytest.mark.parametrize(
    ("verb", "number"),
    [
        ("sweep", signal.SIGINT),
        pytest.param("collect", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("evaluate", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("finetune", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("collect", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("evaluate", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("sweep", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("moment", ["importing", pytest.param("working", marks=pytest.mark.slow)])
def test_while_workers_run(verb: str, number: signal.Signals, moment: str, given: Path, tmp_path: Path) -> None:  # noqa: F811
    """Ctrl-C reaches all processes of the group, SIGTERM here too, as of a queue that ends a job."""
    command = words(verb, given, tmp_path / "out.zarr")
    endless = {"collect": "episodes=100000", "finetune": "loop.iterations=100000"}.get(verb, "episodes=20000")
    process = started([*command, endless], tmp_path)
    wait_for(lambda: len(children(process.pid)) == 2 or process.poll() is not None, seconds=120.0)
    workers = children(process.pid)
    if moment == "working":
        wait_for(lambda: len(os.listdir(tmp_path)) > 0 and cpu(workers) > 4.0, seconds=120.0)
    os.killpg(process.pid, number)
    code, line = CODES[number]
    _, error = process.communicate(timeout=60)
    said = [line for line in spoken(error) if "finished episodes are kept in" not in line]  # how to use them
    assert process.returncode == code and len(said) == 1, said
    assert said[0].startswith(f"flowpolicy {command[0]}: ") and line in said[0]
    wait_for(lambda: not any(running(pid) for pid in workers), seconds=20.0)


def cpu(pids: list[str]) -> float:
    """Seconds that the processes have computed."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_a_protocol_hears_sigterm_and_its_trainings_write_a_checkpoint(tmp_path: Path) -> None:
    command = [
        "protocol",
        "task=toy",
        "out=out",
        "demonstrations=3",
        "seeds=[0,1]",
        "workers=2",
        "trainer.steps=100000",
        "trainer.log_every=1",
        "policy.net.width=8",
        "policy.net.depth=1",
        "trainer.batch_size=4",
        "arms={a:['policy/head=mip'],b:['policy/head=meanflow']}",
    ]
    process = started(command, tmp_path)
    logs = [tmp_path / f"out/two-ways/a/seed_{seed}/metrics.jsonl" for seed in (0, 1)]
    wait_for(
        lambda: all(log.exists() and log.stat().st_size for log in logs) or process.poll() is not None, seconds=240.0
    )
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert (process.returncode, spoken(error)) == (143, ["flowpolicy protocol: stopped by SIGTERM"])
    for log in logs:
        assert (log.parent / "checkpoints/last").is_file()


STARTING = """
import time
from flowpolicy.launch.local import run_all
from flowpolicy.stopping import signals_raise
if __name__ == "__main__":
    try:
        with signals_raise():
            list(run_all(time.sleep, [3600.0] * 3, workers=2))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("trial", range(4))
def test_while_workers_are_being_started(trial: int, tmp_path: Path) -> None:
    """Both exist already, and nothing knows of the second one yet, or of its pool."""
    (tmp_path / "starting.py").write_text(STARTING)
    process = subprocess.Popen(
        [sys.executable, "starting.py"],
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(lambda: len(children(process.pid)) == 2, seconds=60.0)
    workers = children(process.pid)
    time.sleep(0.002 * trial)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("interrupted\n", "")
    wait_for(lambda: not any(running(pid) for pid in workers), seconds=20.0)


# ---- the parts


def test_the_first_signal_raises_and_the_next_one_is_the_callers() -> None:
    came = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in CODES}
    try:
        with pytest.raises(Terminated, match="stopped by SIGTERM"), signals_raise():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), signals_raise():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGINT, signal.SIGTERM]
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
        with signals_raise():
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report_mask(file: str) -> None:
    """What a child process does not hear; picklable."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    Path(file).write_text(" ".join(sorted(signal.Signals(number).name for number in blocked)))


@pytest.mark.parametrize("whose", ["ours", "gymnasium's"])
def test_a_child_process_does_not_hear_ctrl_c_from_its_first_moment(whose: str, tmp_path: Path) -> None:
    import multiprocessing

    with others_start_children():
        kind = Child if whose == "ours" else multiprocessing.get_context("spawn").Process
    child = kind(target=report_mask, args=(str(tmp_path / "mask"),))
    child.start()
    child.join()
    assert (tmp_path / "mask").read_text() == "SIGINT" and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert "Process" not in vars(multiprocessing.get_context("spawn"))


def sleep(job: tuple[str, float]) -> None:
    """A job; picklable."""
    Path(job[0]).write_text("begun")
    time.sleep(job[1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_jobs_that_run_are_ended_with_their_caller(error: type[BaseException], tmp_path: Path) -> None:
    jobs = [(str(tmp_path / "short"), 0.0), (str(tmp_path / "long"), 3600.0)]
    with contextlib.closing(run_all(sleep, jobs, workers=2)) as outcomes:
        next(outcomes)
        wait_for((tmp_path / "long").exists, seconds=60.0)
        began = time.monotonic()
        with pytest.raises(error):
            outcomes.throw(error)
    assert time.monotonic() - began < 30.0


def test_they_are_ended_too_when_nobody_asks_for_more(tmp_path: Path) -> None:
    outcomes = run_all(partial(sleep), [(str(tmp_path / "a"), 0.0), (str(tmp_path / "b"), 3600.0)], workers=2)
    next(outcomes)
    began = time.monotonic()
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert time.monotonic() - began < 30.0
