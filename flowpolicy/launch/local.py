"""Worker processes for long work: spawned, gone when the command that started them is, and replaced when one dies."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar, final

from flowpolicy.processes import SPAWN, end_with_parent
from flowpolicy.stopping import signals_wait

Job = TypeVar("Job")
Result = TypeVar("Result")


class Outcome(NamedTuple, Generic[Job, Result]):
    """What became of a job. result: None where it failed.

    Args:
        job: As it was given.
        result: What `work` returned; None where it failed.
        error: In words, "" where it did not.
    """

    job: Job
    result: Result | None
    error: str


def run_all(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    skip: Callable[[Job], bool] | None = None,
    start: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[Outcome[Job, Result]]:
    """`work` of each job, in any order; simulators do not survive a fork, so processes are spawned.

    A job that raises, or that its process dies of, is an outcome with an error; the others go on. Where the caller is
    stopped, by Ctrl-C or an error, so are the jobs that run: SIGTERM, which a training answers with a checkpoint.

    Args:
        work: Picklable.
        jobs: As `work`.
        workers: Processes at a time.
        skip: Asked when a process is free for a job; True leaves it out, without an outcome.
        start: Called with `arguments` once in each process.
        arguments: As `work`.
    """
    waiting = (job for job in jobs if skip is None or not skip(job))
    slots = [_Slot(start, arguments) for _ in range(min(workers, len(jobs)))]
    running: dict[Future[Result], tuple[_Slot, Job]] = {}
    with ExitStack() as undo:
        for slot in slots:
            undo.callback(slot.stop)
        for slot, job in zip(slots, waiting, strict=False):
            running[slot.submit(work, job)] = slot, job
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, job = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):  # one process each, so it is known which job it was
                    slot.renew()
                said = _said(error) if error is not None else ""
                yield Outcome(job, future.result() if error is None else None, said)
                if (following := next(waiting, None)) is not None:
                    running[slot.submit(work, following)] = slot, following
        undo.pop_all()
    for slot in slots:
        slot.close()


@final
class _Slot:
    """A process, started with its first job, and the next one in its place where it died."""

    def __init__(self, start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
        self._with = start, arguments
        self._new()

    def _new(self) -> None:
        self._pool = ProcessPoolExecutor(1, SPAWN, _start, self._with)
        self._processes: list[BaseProcess] = []

    def submit(self, work: Callable[[Job], Result], job: Job) -> Future[Result]:
        with signals_wait():  # or `stop` would not know of it
            others = multiprocessing.active_children()
            future = self._pool.submit(work, job)
            self._processes += [one for one in multiprocessing.active_children() if one not in others]
        return future

    def renew(self) -> None:
        self._pool.shutdown()
        self._new()

    def stop(self) -> None:
        """Close, in the middle of a job too."""
        for process in self._processes:
            process.terminate()
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _said(error: BaseException) -> str:
    """One line."""
    if isinstance(error, BrokenProcessPool):
        return "a worker process died (simulator crash or out of memory)"
    return " ".join(str(error).split()) or type(error).__name__


def _start(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if start is not None:
        start(*arguments)
