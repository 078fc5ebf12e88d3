"""What moves in a store, and when: idle starts, and jumps such as between two rollouts."""

from collections.abc import Iterator

import numpy as np

from flowpolicy.data.build import StoreBuilder
from flowpolicy.data.episode import Episode
from flowpolicy.data.reading import EpisodeStore

_STILL = 1e-4  # share of a dimension's range below which a step counts as no motion; sensors are coarser than this
LONG_WAIT = 10  # idle steps at the start: so many cost a MeanFlow policy 0.97 -> 0.57 in success, 20 of them -> 0.06
# A third of the dimensions by so many times what 9 in 10 moving steps stay below: the least between two rollouts of
# Meta-World, reach and toy is 9.6, the most within one 2.7.
_JUMP, _SHARE = 5.0, 0.67
_RARE = 0.05  # share of steps below which a dimension counts as one that does not move but switches


def episode_slices(store: EpisodeStore) -> list[slice]:
    """The steps of each episode.

    Args:
        store: The episodes, as `EpisodeStore` opens them.
    """
    starts = np.concatenate([[0], store.episode_ends[:-1]])
    return [slice(int(a), int(b)) for a, b in zip(starts, store.episode_ends, strict=True)]


def by_episode(key: str, store: EpisodeStore, episodes: list[slice]) -> Iterator[np.ndarray]:
    """The values of each episode, (T, ...), from one pass over the array.

    Args:
        key: An observation, or "action".
        store: The episodes, as `EpisodeStore` opens them.
        episodes: The steps of each, see `episode_slices`.
    """
    blocks, held, first = store.blocks(key), [], 0
    for rows in episodes:
        while first + sum(map(len, held)) < rows.stop:
            held.append(next(blocks)[1])
        values = held[0] if len(held) == 1 else np.concatenate(held)
        yield values[rows.start - first : rows.stop - first]
        held, first = [values[rows.stop - first :]], rows.stop


def moved_steps(key: str, store: EpisodeStore, episodes: list[slice]) -> np.ndarray:
    """(S,) bool: this step's observation differs from the one before in the same episode; a first step has not moved.

    Vectors move by more than `_STILL` of a dimension's range; images and clouds by any value.

    Args:
        key: An observation.
        store: The episodes, as `EpisodeStore` opens them.
        episodes: The steps of each, see `episode_slices`.
    """
    moved = np.zeros(store.num_steps, dtype=bool)
    tolerance = _STILL * np.ptp(store.load(key), axis=0) if len(store.shapes[key]) == 2 else None
    for rows, values in zip(episodes, by_episode(key, store, episodes), strict=True):
        now, before = values[1:], values[:-1]
        change = now != before if tolerance is None else np.abs(now - before) > tolerance
        moved[rows][1:] = change.any(axis=tuple(range(1, change.ndim)))
    return moved


def idle_starts(moved: np.ndarray, episodes: list[slice]) -> np.ndarray:
    """(E,) steps at the start of each episode whose actions move nothing; 0 where nothing moves at all.

    Args:
        moved: (S,) bool, of all observations together.
        episodes: The steps of each, see `episode_slices`.
    """
    firsts = [moved[rows].argmax() if moved[rows].any() else 0 for rows in episodes]
    return np.array([max(0, first - 1) for first in firsts], dtype=np.int64)


def jumps(store: EpisodeStore, keys: list[str], episodes: list[slice]) -> np.ndarray:
    """(S,) bool: much of what moves changes at once by far more than it does in other steps, as at a reset.

    Args:
        store: The episodes, as `EpisodeStore` opens them.
        keys: Vectors. A single dimension may switch, as grippers and phases do.
        episodes: The steps of each, see `episode_slices`.
    """
    ratios = []
    first = np.zeros(store.num_steps, dtype=bool)
    first[[rows.start for rows in episodes]] = True
    for key in keys:
        values = store.load(key).astype(np.float64)
        change = np.abs(np.diff(values, axis=0, prepend=values[:1]))  # (S, D)
        change[first] = 0.0
        moves = change > _STILL * np.ptp(values, axis=0)
        for dim in np.flatnonzero(moves.any(axis=0)):
            steps = change[moves[:, dim], dim]
            usual = 0.0 if len(steps) < _RARE * len(values) else np.quantile(steps, 0.9)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios.append(np.where(moves[:, dim], change[:, dim] / usual, 0.0))
    if not ratios:
        return np.zeros(store.num_steps, dtype=bool)
    return np.quantile(ratios, _SHARE, axis=0, method="higher") > _JUMP


def trim_idle_starts(store: EpisodeStore, builder: StoreBuilder) -> np.ndarray:
    """Hand the store's episodes on without their idle starts; (E,) steps that were left out.

    Args:
        store: The episodes, as `EpisodeStore` opens them.
        builder: Of the new store, open.
    """
    assert store.episode_seeds is not None and store.episode_success is not None
    episodes = episode_slices(store)
    moved = np.any([moved_steps(key, store, episodes) for key in store.obs_keys], axis=0)
    idle = idle_starts(moved, episodes)
    for i, rows in enumerate(episodes):
        steps = slice(rows.start + int(idle[i]), rows.stop)
        obs = {key: store.load(key, steps) for key in store.obs_keys}
        builder.add(
            Episode(
                obs,
                store.load("action", steps),
                store.load("reward", steps),
                bool(store.episode_success[i]),
                int(store.episode_seeds[i]),
            )
        )
    return idle
