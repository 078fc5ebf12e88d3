"""A store in the making: zarr arrays beside their place, moved there when the last episode is in."""

import errno
import json
import math
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numcodecs
import numpy as np
import zarr

from flowpolicy.data.episode import Episode
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.files import beside, make_folder, remove_leftovers, replace_folder

FORMAT = "flowpolicy-episodes"
FORMAT_VERSION = 1
RESERVED = ("format", "format_version", "embodiment")
_CHUNK_BYTES = 1 << 20  # about 1 MiB before compression: few files for states, cheap partial rewrites for images
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@final
class StoreBuilder:
    """Context manager that writes episodes beside `path` and moves them there on a clean exit; nothing else is kept.

    After any exception nothing of the new store is left.

    Args:
        path: The store to write.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        attrs: JSON-ready facts about the task, stored as group attributes.
        base: a whole store of the same contract whose episodes come first; it is copied.
        overwrite: Replace an existing store, at the moment the new one is complete.

    Raises:
        FileExistsError: When `path` exists.
        ValueError: For an episode that does not fit the embodiment or when none was added.
        OSError: When the disk is full.
    """

    def __init__(
        self,
        path: Path,
        embodiment: Embodiment,
        attrs: dict[str, Any],
        *,
        base: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        remove_leftovers(path)
        refuse_existing(path, overwrite=overwrite)
        self.embodiment, self._base, self._overwrite = embodiment, base, overwrite
        self._attrs = store_attrs(embodiment, attrs)
        self._temp = beside(path)
        self._columns: dict[str, list[Any]] = {"episode_ends": [], "episode_seed": [], "episode_success": []}
        self._arrays: dict[str, zarr.Array] = {}
        self._held: dict[str, list[np.ndarray]] = {}

    def __enter__(self) -> Self:
        try:
            make_folder(self.path.parent)
            if self._base is None:
                self._root = zarr.open_group(self._temp, mode="w", zarr_format=2)
                self._root.attrs.update(self._attrs)
                data = self._root.create_group("data")
                for key, spec in store_specs(self.embodiment).items():
                    self._arrays[key] = _create(data, key, (0, *spec.shape), np.dtype(spec.dtype))
            else:
                self._copy(self._base)
        except OSError as error:
            self._abort(error)
            raise
        return self

    def add(self, episode: Episode) -> None:
        """Append one episode. Raises ValueError naming the key whose shape, type or length does not fit.

        Args:
            episode: One demonstration.
        """
        episode = fitted(episode, self.embodiment)
        for key, value in {**episode.obs, "action": episode.action, "reward": episode.reward}.items():
            self._held.setdefault(key, []).append(value)
            if sum(map(len, self._held[key])) >= self._arrays[key].chunks[0]:  # each write costs some milliseconds
                self._write(key)
        ends = self._columns["episode_ends"]
        ends.append((ends[-1] if ends else 0) + len(episode.action))
        self._columns["episode_seed"].append(episode.seed)
        self._columns["episode_success"].append(episode.success)

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

    def _copy(self, base: Path) -> None:
        """The episodes of `base`; its arrays grow."""
        shutil.copytree(base, self._temp)
        self._root = zarr.open_group(self._temp, mode="r+", zarr_format=2, use_consolidated=False)
        for key in store_specs(self.embodiment):
            self._arrays[key] = zarr.open_array(self._temp / "data" / key, mode="r+", zarr_format=2)
        for name, column in self._columns.items():
            array = zarr.open_array(self._temp / "meta" / name, mode="r", zarr_format=2)
            column += np.asarray(array[:]).tolist()
        shutil.rmtree(self._temp / "meta")

    def _write(self, key: str) -> None:
        _append(self._arrays[key], np.concatenate(self._held.pop(key)))

    def _finish(self) -> None:
        if not self._columns["episode_ends"]:
            raise ValueError(f"EpisodeWriter: no episode was added, so {self.path} was not written")
        for key in [*self._held]:
            self._write(key)
        meta = self._root.create_group("meta")
        for name, values in self._columns.items():
            column = np.array(values, dtype=bool if name == "episode_success" else np.int64)
            _create(meta, name, column.shape, column.dtype)[:] = column
        refuse_existing(self.path, overwrite=self._overwrite)  # it may have appeared while we were writing
        replace_folder(self._temp, self.path)

    def _abort(self, error: BaseException) -> None:
        """Remove what was written; a full disk gets its own sentence instead of the operating system's."""
        shutil.rmtree(self._temp, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            text = f"disk full while writing {self.path}; free some space and run again"
            raise OSError(error.errno, text) from error


def store_attrs(embodiment: Embodiment, attrs: dict[str, Any]) -> dict[str, Any]:
    """The group attributes of a store. Raises ValueError for facts that are no JSON or have a name of the format's.

    Args:
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
        attrs: The task's facts, JSON-ready.
    """
    if clash := sorted(set(attrs) & set(RESERVED)):
        raise ValueError(f"EpisodeWriter: attrs {clash} are reserved for the format; rename them")
    whole = {"format": FORMAT, "format_version": FORMAT_VERSION, "embodiment": embodiment.to_dict(), **attrs}
    try:
        json.dumps(whole, allow_nan=False)  # fails here, not after an hour of collecting
    except (TypeError, ValueError) as error:
        raise ValueError(f"EpisodeWriter: attrs must be JSON, got {error}; pass plain numbers and text") from error
    return whole


def store_specs(embodiment: Embodiment) -> dict[str, KeySpec]:
    """Name below data/ -> what one step of it is.

    Args:
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
    """
    return {**embodiment.obs, "action": embodiment.action, "reward": KeySpec(shape=())}


def fitted(episode: Episode, embodiment: Embodiment) -> Episode:
    """The episode in the declared types. Raises ValueError naming the key whose shape, type or length does not fit.

    Args:
        episode: One demonstration.
        embodiment: The robot's contract: observation keys, shapes, units, action bounds.
    """
    steps = len(episode.action)
    if steps == 0:
        raise ValueError(f"EpisodeWriter: the episode of seed {episode.seed} has no steps")
    if set(episode.obs) != set(embodiment.obs):
        raise ValueError(f"EpisodeWriter: wanted observation keys {sorted(embodiment.obs)}, got {sorted(episode.obs)}")
    values = {**episode.obs, "action": episode.action, "reward": episode.reward}
    rows = {key: _fit(key, values[key], spec, steps) for key, spec in store_specs(embodiment).items()}
    action, reward = rows.pop("action"), rows.pop("reward")
    return Episode(rows, action, reward, bool(episode.success), int(episode.seed))


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError when `path` exists and may not be replaced, or when it is something else than a store.

    Args:
        path: Where a store is to be written.
        overwrite: Replace what is there.
    """
    if not path.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} already exists; choose another path or pass `overwrite=True`")
    if not (path / ".zgroup").is_file():
        raise FileExistsError(f"{path} exists and is not a zarr store, so `overwrite=True` will not replace it")


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
