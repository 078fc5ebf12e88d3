"""Where attempts are made: in this process, or in several spawned ones that may die on a seed."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Protocol, final

from tqdm import tqdm

from flowpolicy.contracts import require_expert
from flowpolicy.data.episode import Episode
from flowpolicy.data.journal import Journal
from flowpolicy.embodiment import Embodiment
from flowpolicy.processes import SPAWN, Child, begin_simulator
from flowpolicy.stopping import signals_wait

_AHEAD = 8  # seeds per worker beyond the oldest one that runs: one long episode stops nobody, and little is wasted
_MAX_CRASHES = 5  # of one command; more is no accident
_BEGUN_TWICE = 2  # once is a kill


class Expert(Protocol):
    """Solves one task; each episode is fixed by its seed alone, whatever ran before it in the same process."""

    embodiment: Embodiment

    def episode(self, seed: int) -> Episode:
        """One attempt: obs[t] was seen before action[t]; actions lie in the action space, as they were executed.

        Args:
            seed: Of the simulator's start, and of the expert's own noise.
        """
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


@final
class InProcess:
    """Attempts one after the other, here.

    Args:
        make_expert: Makes the expert and its simulator.
    """

    def __init__(self, make_expert: Callable[[], Expert]) -> None:
        self._expert = make_expert()
        self.embodiment = require_expert(self._expert, make_expert)

    def attempts(self, seeds: Iterator[int], journal: Journal) -> Iterator[tuple[int, Episode | None]]:
        """(seed, episode) of each. Says so where a seed may have taken the process down before.

        Args:
            seeds: To try, in this order.
            journal: Where each attempt is noted as it begins and ends.
        """
        with _frozen_garbage():
            for seed in seeds:
                if journal.begun(seed) >= _BEGUN_TWICE:
                    tqdm.write(
                        f"collect: the attempt of seed {seed} began {journal.begun(seed)} times and never ended; if it "
                        "crashes the simulator, `workers=2` names such seeds and leaves them out",
                        file=sys.stderr,
                    )
                journal.begin(seed)
                yield seed, self._expert.episode(seed)

    def close(self) -> None:
        self._expert.close()


@final
class Workers:
    """Attempts in spawned processes (simulators do not survive a fork), each handed one seed at a time.

    Raises what `make_expert` raises there, RuntimeError when a process dies at the start.

    Args:
        make_expert: Picklable.
        workers: Processes.

    Attributes:
        crashed: Seeds whose process died on them.
    """

    def __init__(self, make_expert: Callable[[], Expert], workers: int) -> None:
        self._make_expert = make_expert
        self._workers: list[_Worker] = []
        self.crashed: list[int] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(workers):  # all load their simulator at once
                with signals_wait():
                    self._workers.append(_Worker(make_expert))
            self.embodiment = self._first_embodiment()
            undo.pop_all()

    def attempts(self, seeds: Iterator[int], journal: Journal) -> Iterator[tuple[int, Episode | None]]:
        """(seed, episode) of each, as they end, in any order; None where the process died. Raises what an attempt
        raises, RuntimeError after too many deaths.

        Args:
            seeds: To try; each is handed to the next idle process.
            journal: Where each attempt is noted as it begins and ends.
        """
        del journal
        upcoming = next(seeds)
        while True:
            for worker in self._workers:
                running = [other.seed for other in self._workers if other.seed is not None]
                if worker.free and upcoming - min(running, default=upcoming) < _AHEAD * len(self._workers):
                    worker.give(upcoming)
                    upcoming = next(seeds)
            for worker in self._ended():
                message, seed = worker.receive(), worker.seed
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, Embodiment):
                    continue
                worker.seed = None
                if message is None:
                    self._replace(worker, seed)
                if seed is not None:
                    yield seed, message

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _ended(self) -> list["_Worker"]:
        """Those that have something to say, or died."""
        said = wait([worker.pipe for worker in self._workers])
        return [worker for worker in self._workers if worker.pipe in said]

    def _first_embodiment(self) -> Embodiment:
        message = self._ended()[0].receive()
        if isinstance(message, Embodiment):
            self._workers = [w for w in self._workers if w.ready] + [w for w in self._workers if not w.ready]
            return message
        raise message if isinstance(message, Exception) else RuntimeError(_died("at the start"))

    def _replace(self, worker: "_Worker", seed: int | None) -> None:
        """A new process in the place of a dead one. Raises RuntimeError where that would not help."""
        if seed is None:
            raise RuntimeError(_died("at the start" if not worker.ready else "between two seeds"))
        self.crashed.append(seed)
        if len(self.crashed) > _MAX_CRASHES:
            raise RuntimeError(_died(f"on each of the seeds {', '.join(map(str, sorted(self.crashed)))}"))
        worker.close()
        with signals_wait():
            self._workers[self._workers.index(worker)] = _Worker(self._make_expert)


@final
class _Worker:
    """One process, its end of the pipe, and the seed that it is busy with."""

    def __init__(self, make_expert: Callable[[], Expert]) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self._process = Child(target=_serve, args=(theirs, make_expert), name="collect worker")
        self._process.start()
        theirs.close()  # or its death would not be the end of the pipe
        self.ready = False
        self.seed: int | None = None

    @property
    def free(self) -> bool:
        """Has its simulator and nothing to do."""
        return self.ready and self.seed is None

    def give(self, seed: int) -> None:
        """Start an attempt."""
        self.seed = seed
        try:
            self.pipe.send(seed)
        except (BrokenPipeError, ConnectionError):
            self.seed = None  # it died before, and not of this seed: the end of the pipe says so in a moment

    def receive(self) -> Embodiment | Episode | Exception | None:
        """What it says: first its embodiment, then episodes, or what went wrong; None when it died."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError):
            return None
        self.ready = self.ready or isinstance(message, Embodiment)
        return message

    def close(self) -> None:
        self._process.terminate()
        self._process.join(5)
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, make_expert: Callable[[], Expert]) -> None:
    """The worker's side: episodes for seeds until the pipe ends."""
    begin_simulator()
    with _Told(pipe):
        expert = make_expert()
        with _frozen_garbage():
            pipe.send(require_expert(expert, make_expert))
            while True:
                pipe.send(expert.episode(pipe.recv()))


@final
class _Told:
    """Sends an exception of the block through the pipe, where somebody listens."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if type(error).__module__ != "builtins":  # it may not survive the journey
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note("".join(traceback.format_exception(kind, error, trace)))
        with suppress(BrokenPipeError):
            self._pipe.send(error)
        return True


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Keep all that lives now out of garbage collections: ManiSkill makes a full one per scene, which otherwise walks
    every object of torch and takes a quarter of a PickCube-v1 episode."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _died(when: str) -> str:
    return (
        f"collect: a worker process died {when} (simulator crash or out of memory); try `workers=1` to see its own "
        "message"
    )


def seeds_after(first: int, journal: Journal) -> Iterator[int]:
    """first, first + 1, ... without those that have been tried.

    Args:
        first: The first seed.
        journal: Where the tried ones are noted.
    """
    return (seed for seed in count(first) if seed not in journal)
