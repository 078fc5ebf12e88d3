"""Worker processes for long work: spawned, gone when the command that started them is, and replaced when one dies."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, NamedTuple, TypeVar

from flowpolicy.processes import end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")


class Outcome(NamedTuple, Generic[Job, Result]):
    """What became of a job. result: None where it failed.   error: in words, "" where it did not."""

    job: Job
    result: Result | None
    error: str


def run_all(work: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int,
            skip: Callable[[Job], bool] | None = None, start: Callable[..., None] | None = None,
            arguments: tuple[Any, ...] = ()) -> Iterator[Outcome[Job, Result]]:  # fmt: skip
    """`work` of each job, in any order; simulators do not survive a fork, so processes are spawned.

    A job that raises, or that its process dies of, is an outcome with an error; the others go on.
    skip: asked when a process is free for a job; True leaves it out, without an outcome.
    start: called with `arguments` once in each process.   work, jobs, arguments: picklable.
    """
    waiting = (job for job in jobs if skip is None or not skip(job))
    pools = [_pool(start, arguments) for _ in range(min(workers, len(jobs)))]
    running: dict[Future[Result], tuple[int, Job]] = {}
    try:
        for slot, job in zip(range(len(pools)), waiting, strict=False):
            running[pools[slot].submit(work, job)] = slot, job
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, job = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):  # one process each, so it is known which job it was
                    pools[slot].shutdown()
                    pools[slot] = _pool(start, arguments)
                said = _said(error) if error is not None else ""
                yield Outcome(job, future.result() if error is None else None, said)
                if (following := next(waiting, None)) is not None:
                    running[pools[slot].submit(work, following)] = slot, following
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _pool(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (start, arguments))


def _said(error: BaseException) -> str:
    """One line."""
    if isinstance(error, BrokenProcessPool):
        return "a worker process died (simulator crash or out of memory)"
    return " ".join(str(error).split()) or type(error).__name__


def _start(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if start is not None:
        start(*arguments)
