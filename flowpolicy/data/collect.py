"""Record demonstrations: try seeds in order, keep the first N successes, whatever the number of processes."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import torch
from tqdm import tqdm

from flowpolicy.data.store import Episode, EpisodeWriter
from flowpolicy.embodiment import Embodiment

# Give up when fewer than 1 in 20 attempts succeed, judged after 60: an expert as good as that rule allows (planners of
# the hardest tasks reach 1 in 3) is stopped by bad luck with probability < 1e-8.
_JUDGE_AFTER = 60
_MIN_SUCCESS_RATE = 0.05


class Expert(Protocol):
    """Solves one task; each episode is fixed by its seed alone, whatever ran before it in the same process."""

    embodiment: Embodiment

    def episode(self, seed: int) -> Episode:
        """One attempt: obs[t] was seen before action[t]; actions lie in the action space, as they were executed."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


class CollectReport(NamedTuple):
    """What was collected. attempts: seeds tried up to the last one kept; success_rate: episodes / attempts."""

    episodes: int
    attempts: int
    success_rate: float
    seconds: float
    path: Path


def collect_episodes(
    make_expert: Callable[[], Expert],
    path: Path | str,
    *,
    episodes: int,
    seed: int = 0,
    workers: int = 1,
    attrs: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> CollectReport:
    """Write the first `episodes` successes of the seeds seed, seed + 1, ... to a new episode store at `path`.

    make_expert: picklable when workers > 1 (a module's function, or a functools.partial of one).
    workers: processes; 1 stays in this one. The store is the same, bit for bit, for every number.
    attrs: facts about the task for the store.
    Raises ValueError for arguments out of range, actions outside the action space, or an expert that nearly always
    fails; RuntimeError when a worker dies. Nothing is left at `path` then.
    """
    if episodes < 1 or workers < 1 or seed < 0:
        raise ValueError(f"collect: wanted episodes >= 1, workers >= 1, seed >= 0, got {episodes}, {workers}, {seed}")
    started = time.monotonic()
    source = _InProcess(make_expert) if workers == 1 else _Workers(make_expert, workers)
    with (
        closing(source),
        EpisodeWriter(Path(path), source.embodiment, attrs or {}, overwrite=overwrite) as writer,
        tqdm(total=episodes, desc="collect", unit="ep", disable=not progress) as bar,
    ):
        kept = attempts = 0
        for episode in source.episodes(seed):
            attempts += 1
            if episode.success:
                _require_executable(episode, source.embodiment)
                writer.add(episode)
                kept += 1
                bar.update()
            bar.set_postfix(success_rate=f"{kept / attempts:.2f}", refresh=False)
            if kept == episodes:
                break
            if attempts >= _JUDGE_AFTER and kept < _MIN_SUCCESS_RATE * attempts:
                raise ValueError(
                    f"collect: the expert solved {kept} of {attempts} seeds; wanted at least {_MIN_SUCCESS_RATE:.0%}. "
                    "Allow it more steps, or check the task with one episode"
                )
    return CollectReport(kept, attempts, kept / attempts, time.monotonic() - started, Path(path).absolute())


def _require_executable(episode: Episode, embodiment: Embodiment) -> None:
    low, high = np.asarray(embodiment.action_low, np.float32), np.asarray(embodiment.action_high, np.float32)
    inside = (episode.action >= low) & (episode.action <= high)  # NaN is outside
    if not inside.all():
        step, dim = np.argwhere(~inside)[0]
        raise ValueError(
            f"collect: seed {episode.seed}, step {step}: action[{dim}] = {episode.action[step, dim]} is outside "
            f"[{low[dim]}, {high[dim]}]; the expert must clip an action before executing it"
        )


@final
class _InProcess:
    """Attempts one after the other, here."""

    def __init__(self, make_expert: Callable[[], Expert]) -> None:
        self._expert = make_expert()
        self.embodiment = self._expert.embodiment

    def episodes(self, seed: int) -> Iterator[Episode]:
        """Endless attempts, in seed order."""
        return map(self._expert.episode, count(seed))

    def close(self) -> None:
        self._expert.close()


@final
class _Workers:
    """Attempts in spawned processes (simulators do not survive a fork), handed out in seed order."""

    def __init__(self, make_expert: Callable[[], Expert], workers: int) -> None:
        self._make_expert = make_expert
        self._ahead = 2 * workers  # enough that no worker waits for the writer, little enough to waste
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        with ExitStack() as undo, _crash_explained("the start"):
            undo.callback(self.close)
            self.embodiment = self._pool.submit(_worker_embodiment, make_expert).result()
            undo.pop_all()

    def episodes(self, seed: int) -> Iterator[Episode]:
        """Endless attempts, in seed order."""
        pending: list[tuple[int, Future[Episode]]] = []
        for next_seed in count(seed):
            with _crash_explained(f"seed {pending[0][0] if pending else next_seed} or one of the next"):
                pending.append((next_seed, self._pool.submit(_worker_episode, self._make_expert, next_seed)))
                if len(pending) < self._ahead:
                    continue
                episode = pending.pop(0)[1].result()
            yield episode

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _crash_explained(when: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"collect: a worker process died at {when} (simulator crash or out of memory); "
            "try workers=1 to see its own message"
        ) from error


_expert: Expert | None = None  # one per worker process, made at its first task


def _worker_expert(make_expert: Callable[[], Expert]) -> Expert:
    global _expert
    if _expert is None:
        torch.set_num_threads(1)  # the workers share the cores
        _expert = make_expert()
    return _expert


def _worker_embodiment(make_expert: Callable[[], Expert]) -> Embodiment:
    return _worker_expert(make_expert).embodiment


def _worker_episode(make_expert: Callable[[], Expert], seed: int) -> Episode:
    return _worker_expert(make_expert).episode(seed)
