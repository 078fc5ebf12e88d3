"""Worker processes for long work: spawned, and gone when the command that started them is."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from flowpolicy.processes import end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_all(work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, advice: str,
            start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()) -> Iterator[Result]:  # fmt: skip
    """`work` of each job, in any order; simulators do not survive a fork, so processes are spawned.

    No job is handed out before a process is free for it: after an error only those that run go on to their end.
    start: called with `arguments` once in each process.   work, jobs, arguments: picklable.
    Raises RuntimeError with `advice` when a process dies; an exception of `work` comes through.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, _start, (start, arguments))
    waiting, running = iter(jobs), set[Future[Result]]()
    try:
        running |= {pool.submit(work, job) for job in islice(waiting, workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= {pool.submit(work, job) for job in islice(waiting, 1)}
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process died (simulator crash or out of memory); what is finished is kept, "
                           f"{advice}") from error  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)


def _start(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if start is not None:
        start(*arguments)
