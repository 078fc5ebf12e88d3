"""Record demonstrations: try seeds in order, keep the first N successes, whatever the number of processes."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from flowpolicy.data.build import StoreBuilder, refuse_existing
from flowpolicy.data.episode import Episode
from flowpolicy.data.journal import Journal, reserved
from flowpolicy.data.workers import Expert, InProcess, Workers, seeds_after
from flowpolicy.embodiment import Embodiment

# Give up when fewer than 1 in 20 attempts succeed, judged after 60: an expert as good as that rule allows (planners of
# the hardest tasks reach 1 in 3) is stopped by bad luck with probability < 1e-8.
_JUDGE_AFTER = 60
_MIN_SUCCESS_RATE = 0.05


class CollectReport(NamedTuple):
    """What was collected. attempts: seeds tried up to the last one kept; success_rate: episodes / attempts.

    Args:
        episodes: Kept, all successful.
        attempts: Seeds tried up to the last one kept.
        success_rate: Episodes / attempts.
        seconds: That it took, this time.
        path: The store.
        crashed: Those of them whose process died, which are left out.
    """

    episodes: int
    attempts: int
    success_rate: float
    seconds: float
    path: Path
    crashed: tuple[int, ...] = ()


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

    Every attempt is noted in the hidden folder .NAME.journal beside the store; after a kill, a crash or an error the
    same call goes on from there, with any number of workers, to the same store. A seed on which a worker process dies
    is left out.

    Args:
        make_expert: Picklable when workers > 1 (a module's function, or a functools.partial of one).
        path: The store to write.
        episodes: How many successes to keep.
        seed: The first seed that is tried.
        workers: Processes; 1 stays in this one. The store is the same, bit for bit, for every number.
        attrs: Facts about the task for the store.
        overwrite: Replace what is there.
        progress: Whether to show a progress bar.

    Raises:
        FileExistsError: When `path` exists.
        ValueError: For arguments out of range, a folder that another process is collecting into, actions outside the
            action space, or an expert that nearly always fails.
        RuntimeError: When workers keep dying.
    """
    if episodes < 1 or workers < 1 or seed < 0:
        raise ValueError(f"collect: wanted episodes >= 1, workers >= 1, seed >= 0, got {episodes}, {workers}, {seed}")
    started, path, attrs = time.monotonic(), Path(path).absolute(), dict(attrs or {})
    refuse_existing(path, overwrite=overwrite)
    with reserved(path):
        refuse_existing(path, overwrite=overwrite)  # whoever held the folder may just have finished
        with closing(InProcess(make_expert) if workers == 1 else Workers(make_expert, workers)) as source:
            facts = {
                "expert": _describe(make_expert),
                "seed": seed,
                "attrs": attrs,
                "embodiment": source.embodiment.to_dict(),
            }
            with (
                Journal(path, facts) as journal,
                StoreBuilder(path, source.embodiment, attrs, overwrite=overwrite) as writer,
                tqdm(total=episodes, desc="collect", unit="ep", disable=not progress) as bar,
            ):
                if len(journal):
                    print(
                        f"collect: {journal.successes} episodes of {len(journal)} attempts are there already",
                        file=sys.stderr,
                    )
                attempts, crashed = _keep_successes(source, journal, writer, bar, episodes=episodes, first=seed)
    return CollectReport(episodes, attempts, episodes / attempts, time.monotonic() - started, path, crashed)


def _keep_successes(
    source: InProcess | Workers, journal: Journal, writer: StoreBuilder, bar: tqdm, *, episodes: int, first: int
) -> tuple[int, tuple[int, ...]]:
    """Add the first `episodes` successes in seed order; how many seeds that took, and which of them crashed."""
    kept, crashed = 0, []
    for attempts, (seed, episode) in enumerate(_in_order(source, journal, first), start=1):
        if journal.crashed(seed):
            crashed.append(seed)
            tqdm.write(f"collect: a worker process died on seed {seed}, which is left out", file=sys.stderr)
        if episode is not None:
            writer.add(episode)
            kept += 1
            bar.update()
        bar.set_postfix(success_rate=f"{kept / attempts:.2f}", refresh=False)
        if kept == episodes:
            return attempts, tuple(crashed)
        if attempts >= _JUDGE_AFTER and kept < _MIN_SUCCESS_RATE * attempts:
            raise ValueError(
                f"collect: the expert solved {kept} of {attempts} seeds; wanted at least {_MIN_SUCCESS_RATE:.0%}. "
                "Allow it more steps, or check the task with one episode"
            )
    raise AssertionError("seeds do not end")


def _in_order(source: InProcess | Workers, journal: Journal, first: int) -> Iterator[tuple[int, Episode | None]]:
    """(seed, its episode or None) for first, first + 1, ...; only what the journal does not hold is tried."""
    found = source.attempts(seeds_after(first, journal), journal)
    refused: dict[int, str] = {}  # an error when its turn comes, which it may never
    for seed in count(first):
        while seed not in journal and seed not in refused:
            tried, episode = next(found)
            if episode is not None and episode.success and (problem := _unexecutable(episode, source.embodiment)):
                refused[tried] = problem
            else:
                journal.add(tried, episode)
        if seed in refused:
            raise ValueError(f"collect: seed {seed}, {refused[seed]}")
        yield seed, journal.episode(seed)


def _unexecutable(episode: Episode, embodiment: Embodiment) -> str:
    """What is wrong with the first action outside the action space, or nothing."""
    low, high = np.asarray(embodiment.action_low, np.float32), np.asarray(embodiment.action_high, np.float32)
    inside = (episode.action >= low) & (episode.action <= high)  # NaN is outside
    if inside.all():
        return ""
    step, dim = np.argwhere(~inside)[0]
    return (
        f"step {step}: action[{dim}] = {episode.action[step, dim]} is outside [{low[dim]}, {high[dim]}]; the expert "
        "must clip an action before executing it"
    )


def _describe(make_expert: Callable[[], Expert]) -> dict[str, Any]:
    """What is called with what, without addresses in memory: the same text for the same command."""
    called = make_expert.func if isinstance(make_expert, partial) else make_expert
    with_ = {**make_expert.keywords, "args": make_expert.args} if isinstance(make_expert, partial) else {}
    words = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in with_.items()}
    return {"target": f"{called.__module__}.{called.__qualname__}", **words}
