"""Episode store: a zarr v2 folder in the layout that diffusion_policy and DP3 read, written whole or not at all.

    data/<observation key>  (S, ...)     all steps of all episodes, one after the other
    data/action             (S, A)       robot units;    data/reward (S,)
    meta/episode_ends       (E,) int64   index one past the last step of each episode; the last entry is S
    meta/episode_seed, meta/episode_success (E,)

The group attributes hold the format's name and version, the embodiment record and facts about the task.
"""

import errno
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import numcodecs
import numpy as np
import zarr

from flowpolicy.data.chunks import DECODE_ERRORS, chunk_problems
from flowpolicy.data.codecs import array_metadata, require_harmless
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.files import beside, remove_leftovers, replace_folder

FORMAT = "flowpolicy-episodes"
FORMAT_VERSION = 1
_RESERVED = ("format", "format_version", "embodiment")
_CHUNK_BYTES = 1 << 20  # about 1 MiB before compression: few files for states, cheap partial rewrites for images
_BLOCK_BYTES = 16 << 20  # what is decoded at a time
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Episode(NamedTuple):
    """One demonstration of T steps: obs[key][t] was seen, then action[t] was sent, then reward[t] came.

    obs: key -> (T, ...).   action: (T, A), robot units.   reward: (T,).   seed: the one that fixed the episode.
    """

    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    success: bool
    seed: int


@final
class EpisodeWriter:
    """Context manager that writes episodes beside `path` and moves them there on a clean exit.

    attrs: JSON-ready facts about the task, stored as group attributes.
    overwrite: replace an existing store, at the moment the new one is complete.
    Raises FileExistsError when `path` exists, ValueError for an episode that does not fit the embodiment or when none
    was added, OSError when the disk is full. After any exception nothing of the new store is left.
    """

    def __init__(self, path: Path, embodiment: Embodiment, attrs: dict[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path).absolute()
        remove_leftovers(self.path)
        refuse_existing(self.path, overwrite=overwrite)
        if clash := sorted(set(attrs) & set(_RESERVED)):
            raise ValueError(f"EpisodeWriter: attrs {clash} are reserved for the format; rename them")
        self.embodiment = embodiment
        self._attrs = {"format": FORMAT, "format_version": FORMAT_VERSION, "embodiment": embodiment.to_dict(), **attrs}
        try:
            json.dumps(self._attrs, allow_nan=False)  # fails here, not after an hour of collecting
        except (TypeError, ValueError) as error:
            raise ValueError(f"EpisodeWriter: attrs must be JSON, got {error}; pass plain numbers and text") from error
        self._overwrite = overwrite
        self._temp = beside(self.path)
        self._lengths: list[int] = []
        self._seeds: list[int] = []
        self._successes: list[bool] = []
        self._arrays: dict[str, zarr.Array] = {}

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._root = zarr.open_group(self._temp, mode="w", zarr_format=2)
            self._root.attrs.update(self._attrs)
            data = self._root.create_group("data")
            for key, spec in self._specs().items():
                self._arrays[key] = _create(data, key, (0, *spec.shape), np.dtype(spec.dtype))
        except OSError as error:
            self._abort(error)
            raise
        return self

    def add(self, episode: Episode) -> None:
        """Append one episode. Raises ValueError naming the key whose shape, type or length does not fit."""
        steps = len(episode.action)
        if steps == 0:
            raise ValueError(f"EpisodeWriter: the episode of seed {episode.seed} has no steps")
        if set(episode.obs) != set(self.embodiment.obs):
            raise ValueError(
                f"EpisodeWriter: wanted observation keys {sorted(self.embodiment.obs)}, got {sorted(episode.obs)}"
            )
        values = {**episode.obs, "action": episode.action, "reward": episode.reward}
        rows = {key: _fit(key, values[key], spec, steps) for key, spec in self._specs().items()}
        for key, value in rows.items():
            _append(self._arrays[key], value)
        self._lengths.append(steps)
        self._seeds.append(int(episode.seed))
        self._successes.append(bool(episode.success))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abort(error)
            return
        try:
            self._finish()
        except (OSError, ValueError) as failure:
            self._abort(failure)
            raise

    def _specs(self) -> dict[str, KeySpec]:
        return {**self.embodiment.obs, "action": self.embodiment.action, "reward": KeySpec(shape=())}

    def _finish(self) -> None:
        if not self._lengths:
            raise ValueError(f"EpisodeWriter: no episode was added, so {self.path} was not written")
        meta = self._root.create_group("meta")
        columns = {
            "episode_ends": np.cumsum(self._lengths, dtype=np.int64),
            "episode_seed": np.array(self._seeds, dtype=np.int64),
            "episode_success": np.array(self._successes, dtype=bool),
        }
        for name, column in columns.items():
            _create(meta, name, column.shape, column.dtype)[:] = column
        refuse_existing(self.path, overwrite=self._overwrite)  # it may have appeared while we were writing
        replace_folder(self._temp, self.path)

    def _abort(self, error: BaseException) -> None:
        """Remove what was written; a full disk gets its own sentence instead of the operating system's."""
        shutil.rmtree(self._temp, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise OSError(
                error.errno, f"disk full while writing {self.path}; nothing was kept; free some space and run again"
            ) from error


@final
class EpisodeStore:
    """Read access to a store; `load` reads whole arrays, everything else is small.

    embodiment: None for a foreign zarr (diffusion_policy, DP3) without our record.   attrs: the task's facts.
    episode_ends: (E,) int64.   episode_seeds, episode_success: (E,), or None when not recorded.
    keys: names under data/.   shapes, dtypes: of the stored arrays, (S, ...).
    obs_keys: the embodiment's keys, or all but action and reward without one.
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
        self.attrs = {name: value for name, value in attrs.items() if name not in _RESERVED}
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

        Raises FileNotFoundError for a missing path, ValueError when it is no store, holds no episode, or its episode
        table does not fit its arrays.
        """
        store = EpisodeStore(Path(path))
        if problems := store.table_problems():
            raise ValueError(f"{store.path}: {problems[0]}")
        return store

    @property
    def num_episodes(self) -> int:
        """Number of episodes E."""
        return len(self.episode_ends)

    @property
    def num_steps(self) -> int:
        """Number of steps S of all episodes together."""
        return int(self.episode_ends[-1]) if self.num_episodes else 0

    def load(self, key: str, steps: slice = slice(None)) -> np.ndarray:
        """The array data/<key>, (S, ...), or consecutive steps of it, in its stored type.

        Raises ValueError for an unknown key, and for a missing or damaged chunk, naming it.
        """
        first, last = self._bounds(key, steps)
        whole: np.ndarray | None = None
        for start, part in self.blocks(key, steps):
            if whole is None:
                whole = np.empty((last - first, *part.shape[1:]), part.dtype)
            whole[start - first : start - first + len(part)] = part
        return self._read(f"data/{key}", steps) if whole is None else whole

    def blocks(self, key: str, steps: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
        """(first step, values) of consecutive parts of data/<key> that are some 16 MiB each. Raises as `load`."""
        first, last = self._bounds(key, steps)
        name = f"data/{key}"
        array = self._open(name)
        rows = array.chunks[0] * max(1, _BLOCK_BYTES // max(1, math.prod(array.chunks) * self.dtypes[key].itemsize))
        while first < last:
            stop = min(last, first - first % rows + rows)
            yield first, self._decode(name, array, slice(first, stop))
            first = stop

    def rows(self, key: str, steps: Sequence[int]) -> np.ndarray:
        """The given steps of data/<key>, (len(steps), ...); decodes only the chunks they lie in. Raises as `load`."""
        self.require_key(key)
        return self._read(f"data/{key}", steps)

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

    def require_key(self, key: str) -> None:
        """Raise ValueError where data/<key> is not there."""
        if key not in self.keys:
            raise ValueError(f"{self.path}: no key {key!r}; available are {list(self.keys)}")

    def _bounds(self, key: str, steps: slice) -> tuple[int, int]:
        self.require_key(key)
        first, last, step = steps.indices(self.shapes[key][0] if self.shapes[key] else 0)
        assert step == 1, "consecutive steps"
        return first, last

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


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError when `path` exists and may not be replaced, or when it is something else than a store."""
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} already exists; choose another path or pass overwrite=true")
    if not (path / ".zgroup").is_file():
        raise FileExistsError(f"{path} exists and is not a zarr store, so overwrite=true will not replace it")


def _require_layout(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; wanted a zarr episode store")
    if (path / "zarr.json").is_file():
        raise ValueError(f"{path} is a zarr v3 store; wanted zarr v2 (write it with zarr_format=2)")
    if not (path / ".zgroup").is_file():
        raise ValueError(f"{path} is not a zarr store (no .zgroup); wanted a folder with data/ and meta/episode_ends")
    for name in ("meta/episode_ends", "data/action"):
        if not (path / name / ".zarray").is_file():
            raise ValueError(f"{path} is no episode store: {name} is missing; was its writing or copying interrupted?")


def _create(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> zarr.Array:
    """Array chunked along time only. Chunks of zeros are written too, so that a missing file always means damage."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    steps = max(1, _CHUNK_BYTES // max(1, row_bytes))
    # capped at 4096 steps: zarr v2 stores the last chunk at full size, and appending rewrites it
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(min(steps, 4096), *shape[1:]),
        compressors=numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
        config={"write_empty_chunks": True},
    )


def _append(array: zarr.Array, rows: np.ndarray) -> None:
    """Append along time, one chunk per call: zarr writes the chunks of one call concurrently, and after an error the
    others would go on writing into a folder that is being removed."""
    start, chunk = array.shape[0], array.chunks[0]
    array.resize((start + len(rows), *array.shape[1:]))
    for low in range(start - start % chunk, start + len(rows), chunk):
        a, b = max(low, start), min(low + chunk, start + len(rows))
        array[a:b] = rows[a - start : b - start]


def _fit(key: str, value: np.ndarray, spec: KeySpec, steps: int) -> np.ndarray:
    """`value` as (steps, *spec.shape) of the declared type; only floats are converted, and only to floats."""
    value = np.asarray(value)
    if value.shape != (steps, *spec.shape):
        raise ValueError(f"EpisodeWriter: {key}: wanted shape {(steps, *spec.shape)}, got {value.shape}")
    wanted = np.dtype(spec.dtype)
    if value.dtype != wanted and not (np.issubdtype(wanted, np.floating) and value.dtype.kind in "fiub"):
        raise ValueError(f"EpisodeWriter: {key}: wanted {wanted}, got {value.dtype}; convert it before adding")
    return np.ascontiguousarray(value, dtype=wanted)
