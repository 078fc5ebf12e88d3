"""Read access to an episode store; its layout is told in `store`."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import zarr

from flowpolicy.data.base import Store
from flowpolicy.data.build import FORMAT, FORMAT_VERSION, RESERVED
from flowpolicy.data.chunks import DECODE_ERRORS, chunk_problems
from flowpolicy.data.codecs import array_metadata, require_harmless
from flowpolicy.data.journal import how_to_finish
from flowpolicy.embodiment import Embodiment

_BLOCK_BYTES = 16 << 20  # what is decoded at a time


@final
class EpisodeStore(Store):
    """Read access to a store; `load` reads whole arrays, everything else is small. See `Store` for its attributes.

    `obs_keys` are the embodiment's keys, or all but action and reward without one.

    Args:
        path: Its folder; use `open`, which checks it.
    """

    def __init__(self, path: Path) -> None:
        """Read the small tables without judging them; callers want `open`."""
        self.path = Path(path).absolute()
        _require_layout(self.path)
        require_harmless(self.path)
        root = zarr.open_group(self.path, mode="r", zarr_format=2, use_consolidated=False)
        attrs: dict[str, Any] = dict(root.attrs)
        version = attrs.get("format_version", 1)
        if attrs.get("format", FORMAT) != FORMAT or not isinstance(version, int) or version > FORMAT_VERSION:
            raise ValueError(
                f"{self.path}: wanted {FORMAT} version <= {FORMAT_VERSION}, got {attrs.get('format')} version "
                f"{attrs.get('format_version')}; a newer flowpolicy may read it"
            )
        try:
            self.embodiment = Embodiment.from_dict(attrs["embodiment"]) if "embodiment" in attrs else None
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}; correct the record in its .zattrs") from error
        self.attrs = {name: value for name, value in attrs.items() if name not in RESERVED}
        self.keys = tuple(sorted(folder.parent.name for folder in (self.path / "data").glob("*/.zarray")))
        recorded = tuple(key for key in self.keys if key not in ("action", "reward"))
        self.obs_keys = tuple(self.embodiment.obs) if self.embodiment else recorded
        metadata = {key: array_metadata(self.path / "data" / key) for key in self.keys}
        self.shapes = {key: tuple(meta["shape"]) for key, meta in metadata.items()}
        self.dtypes = {key: np.dtype(meta["dtype"]) for key, meta in metadata.items()}
        self.episode_ends = self._read("meta/episode_ends").astype(np.int64)
        self.episode_seeds = self._read_optional("meta/episode_seed")
        self.episode_success = self._read_optional("meta/episode_success")

    @staticmethod
    def open(path: Path | str) -> "EpisodeStore":
        """Open and check the episode table.

        Args:
            path: The store's folder.

        Raises:
            FileNotFoundError: For a missing path.
            ValueError: When it is no store, holds no episode, or its episode table does not fit its arrays.
        """
        store = EpisodeStore(Path(path))
        if problems := store.table_problems():
            raise ValueError(f"{store.path}: {problems[0]}")
        return store

    def load(self, key: str, steps: slice = slice(None)) -> np.ndarray:
        """The array data/<key>, (S, ...), or consecutive steps of it, in its stored type.

        Args:
            key: Name below data/.
            steps: Consecutive ones; None is all.

        Raises:
            ValueError: For an unknown key, and for a missing or damaged chunk, naming it.
        """
        first, last = self.bounds(key, steps)
        whole: np.ndarray | None = None
        for start, part in self.blocks(key, steps):
            if whole is None:
                whole = np.empty((last - first, *part.shape[1:]), part.dtype)
            whole[start - first : start - first + len(part)] = part
        return self._read(f"data/{key}", steps) if whole is None else whole

    def blocks(self, key: str, steps: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
        """(first step, values) of consecutive parts of data/<key> that are some 16 MiB each. Raises as `load`.

        Args:
            key: Name below data/.
            steps: Consecutive ones; None is all.
        """
        first, last = self.bounds(key, steps)
        name = f"data/{key}"
        array = self._open(name)
        rows = array.chunks[0] * max(1, _BLOCK_BYTES // max(1, math.prod(array.chunks) * self.dtypes[key].itemsize))
        while first < last:
            stop = min(last, first - first % rows + rows)
            yield first, self._decode(name, array, slice(first, stop))
            first = stop

    def rows(self, key: str, steps: Sequence[int]) -> np.ndarray:
        """The given steps of data/<key>, (len(steps), ...); decodes only the chunks they lie in. Raises as `load`.

        Args:
            key: Name below data/.
            steps: Any, in any order.
        """
        self.require_key(key)
        return self._read(f"data/{key}", steps)

    def table_problems(self) -> list[str]:
        """What is wrong with episode_ends and the array lengths; empty when all is well."""
        ends = self.episode_ends
        if ends.ndim != 1:
            return [f"meta/episode_ends must be (E,), got shape {ends.shape}"]
        if len(ends) == 0:
            return ["the store is empty (0 episodes); collect or convert demonstrations first"]
        problems = []
        if len(bad := np.flatnonzero(np.diff(ends, prepend=0) <= 0)):
            problems.append(f"meta/episode_ends must increase; episode {bad[0]} has no steps (ends at {ends[bad[0]]})")
        for key, shape in self.shapes.items():
            if (steps := shape[0] if shape else 0) != ends[-1]:
                problems.append(f"data/{key} has {steps} steps, meta/episode_ends ends at {ends[-1]}; truncated?")
        return problems

    def _read(self, name: str, steps: Sequence[int] | slice = slice(None)) -> np.ndarray:
        return self._decode(name, self._open(name), steps)

    def _open(self, name: str) -> zarr.Array:
        """An array whose chunk files are there in full length."""
        if problems := chunk_problems(self.path / name):
            raise ValueError(f"{self.path}: {name}: {problems[0]}; copy or write the store again")
        return zarr.open_array(self.path / name, mode="r", zarr_format=2)

    def _decode(self, name: str, array: zarr.Array, steps: Sequence[int] | slice) -> np.ndarray:
        try:
            part = array[steps] if isinstance(steps, slice) else array.oindex[np.asarray(steps, dtype=np.int64)]
            return np.asarray(part)
        except DECODE_ERRORS as error:
            problems = chunk_problems(self.path / name, decode=True) or [str(error)]
            raise ValueError(f"{self.path}: {name}: {problems[0]}; copy or write the store again") from error

    def _read_optional(self, name: str) -> np.ndarray | None:
        return self._read(name) if (self.path / name / ".zarray").is_file() else None


def _require_layout(path: Path) -> None:
    if not path.exists():
        fix = how_to_finish(path) or "wanted a zarr episode store"
        raise FileNotFoundError(f"{path} does not exist; {fix}")
    if (path / "zarr.json").is_file():
        raise ValueError(f"{path} is a zarr v3 store; wanted zarr v2 (write it with zarr_format=2)")
    if not (path / ".zgroup").is_file():
        raise ValueError(f"{path} is not a zarr store (no .zgroup); wanted a folder with data/ and meta/episode_ends")
    for name in ("meta/episode_ends", "data/action"):
        if not (path / name / ".zarray").is_file():
            raise ValueError(f"{path} is no episode store: {name} is missing; was its writing or copying interrupted?")
