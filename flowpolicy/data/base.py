"""What every store of episodes offers, on the disk or in memory."""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.embodiment import Embodiment


class Store(ABC):
    """Episodes one after the other: S steps, E episodes.

    Attributes:
        path: Where it is; of a store in memory, what messages call it.
        embodiment: What the numbers mean; None for a foreign zarr without our record.
        attrs: The task's facts.
        episode_ends: (E,) int64, one past the last step of each episode.
        episode_seeds: (E,), or None when not recorded.
        episode_success: As `episode_seeds`.
        keys: Names of the arrays: observations, action, maybe reward.
        obs_keys: Those of the observations.
        shapes: Key -> (S, ...).
        dtypes: Key -> type of its numbers.
    """

    path: Path
    embodiment: Embodiment | None
    attrs: dict[str, Any]
    episode_ends: np.ndarray
    episode_seeds: np.ndarray | None
    episode_success: np.ndarray | None
    keys: tuple[str, ...]
    obs_keys: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    @abstractmethod
    def blocks(self, key: str, steps: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
        """(first step, values) of consecutive parts of one array that are some 16 MiB each. Raises as `load`.

        Args:
            key: An observation, "action" or "reward".
            steps: Consecutive ones; all by default.
        """

    @abstractmethod
    def load(self, key: str, steps: slice = slice(None)) -> np.ndarray:
        """One array, (S, ...), or consecutive steps of it, in its stored type.

        Args:
            key: An observation, "action" or "reward".
            steps: Consecutive ones; all by default.

        Raises:
            ValueError: For an unknown key, and for one that is damaged, naming it.
        """

    @property
    def num_episodes(self) -> int:
        """Number of episodes E."""
        return len(self.episode_ends)

    @property
    def num_steps(self) -> int:
        """Number of steps S of all episodes together."""
        return int(self.episode_ends[-1]) if self.num_episodes else 0

    def content_hash(self) -> str:
        """SHA-256 of names, types, shapes and values of all data and of the episode table, not of the compression."""
        digest = hashlib.sha256()
        arrays = [("episode_ends", self.episode_ends.shape, iter([(0, self.episode_ends)]))]
        for name, shape, blocks in itertools.chain(arrays, ((k, self.shapes[k], self.blocks(k)) for k in self.keys)):
            for first, block in blocks:
                if first == 0:
                    digest.update(f"{name} {block.dtype.str} {shape};".encode())
                digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def require_key(self, key: str) -> None:
        """Raise ValueError where there is no such array.

        Args:
            key: An observation, "action" or "reward".
        """
        if key not in self.keys:
            raise ValueError(f"{self.path}: no key {key!r}; available are {list(self.keys)}")

    def require_record(self) -> Embodiment:
        """The embodiment. Raises ValueError where none is recorded, and says how one can be."""
        if self.embodiment is not None:
            return self.embodiment
        shapes = ", ".join(f"{key} {self.shapes[key][1:]}" for key in (*self.obs_keys, "action"))
        raise ValueError(
            f"{self.path} has no embodiment record, so nothing says what its numbers mean ({shapes}); write one, once, "
            "in Python: flowpolicy.data.store.add_record(path, Embodiment(robot=…, obs={key: KeySpec(shape, unit)}, "
            'action=…, action_kind=…, control_hz=…, action_low=…, action_high=…), {"task": "mine"})'
        )

    def bounds(self, key: str, steps: slice) -> tuple[int, int]:
        """First step of the slice, and the one past its last. Raises ValueError for an unknown key.

        Args:
            key: An observation, "action" or "reward".
            steps: Consecutive ones.
        """
        self.require_key(key)
        first, last, step = steps.indices(self.shapes[key][0] if self.shapes[key] else 0)
        assert step == 1, "consecutive steps"
        return first, last
