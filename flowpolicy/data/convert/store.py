"""The library's own store, `flowpolicy.data.store`: a zarr folder with its record."""

from collections.abc import Iterator
from pathlib import Path

from flowpolicy.data.build import StoreBuilder
from flowpolicy.data.convert.base import Demonstrations
from flowpolicy.data.episode import Episode
from flowpolicy.data.reading import EpisodeStore

ENDINGS = (".zarr",)


def read(path: Path) -> Demonstrations:
    """The episodes of a store.

    Args:
        path: Its folder.

    Raises:
        ValueError: For a zarr that flowpolicy did not write, and for one that is damaged.
    """
    store = EpisodeStore.open(path)
    if store.embodiment is None or "reward" not in store.keys:
        raise ValueError(
            f"{path} has no record of what its numbers mean; a zarr of diffusion_policy or DP3 is "
            "read with `format='dp3'`"
        )
    return Demonstrations(store.embodiment, episodes_of(store), store.attrs)


def episodes_of(store: EpisodeStore) -> Iterator[Episode]:
    """Each episode of a store that has our record; seeds and successes that it does not say are -1 and true.

    Args:
        store: That is open.
    """
    start = 0
    for index, end in enumerate(store.episode_ends.tolist()):
        rows, start = slice(start, end), end
        yield Episode(
            {key: store.load(key, rows) for key in store.obs_keys},
            store.load("action", rows),
            store.load("reward", rows),
            True if store.episode_success is None else bool(store.episode_success[index]),
            -1 if store.episode_seeds is None else int(store.episode_seeds[index]),
        )


def write(path: Path, demonstrations: Demonstrations) -> None:
    """A new store.

    Args:
        path: Its folder, which is made.
        demonstrations: What it holds.
    """
    with StoreBuilder(path, demonstrations.embodiment, dict(demonstrations.attrs)) as builder:
        for episode in demonstrations.episodes:
            builder.add(episode)
