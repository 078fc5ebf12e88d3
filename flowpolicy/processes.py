"""Child processes that end when their parent does, however it ends."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import final

from flowpolicy.stopping import signals_wait

_NAME = "end with parent"


def begin_simulator() -> None:
    """First call of a process that simulates: one torch thread, as simulators share the cores, and `end_with_parent`.

    Does nothing in a process that no other one of ours started. torch is not loaded for it: that takes seconds.
    """
    if multiprocessing.parent_process() is None:
        return
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"  # where torch is loaded later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def end_with_parent() -> None:
    """Let this child process end as soon as its parent has.

    A killed parent cannot end its children, and one that computes, or waits on a queue that its siblings hold open,
    does not notice.
    """
    if all(thread.name != _NAME for thread in threading.enumerate()):
        threading.Thread(target=_exit_after_parent, name=_NAME, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@final
class Child(SpawnProcess):
    """A spawned process that never hears Ctrl-C, from its first moment on: a terminal sends it to all processes of a
    command, where one line is enough, and the parent ends the others.
    """

    def start(self) -> None:
        """Start it. Ctrl-C and SIGTERM of the parent wait until it has: half-started, it would complain at length."""
        resource_tracker.ensure_running()  # or starting it lets the signal through again
        with signals_wait():
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@final
class _Spawn(SpawnContext):
    Process = Child


def end_children() -> None:
    """End every `Child` of this process that still runs: of a command that was stopped as it was starting them."""
    for child in multiprocessing.active_children():
        if isinstance(child, Child):
            child.terminate()
            child.join()


SPAWN = _Spawn()
"""The multiprocessing context for child processes: simulators do not survive a fork."""


@contextmanager
def others_start_children() -> Iterator[None]:
    """Let the processes that a package starts in the block, with the context "spawn", be of the kind `Child`."""
    spawn = multiprocessing.get_context("spawn")
    vars(spawn)["Process"] = Child  # before the class's own
    try:
        yield
    finally:
        del vars(spawn)["Process"]
