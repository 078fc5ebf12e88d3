"""Child processes that end when their parent does, however it ends."""

import multiprocessing
import os
import sys
import threading

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
