"""Where the steps of a dataset lie while it is trained on: in memory, or in a file that is mapped into it."""

import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from flowpolicy.data.base import Store
from flowpolicy.data.memory import GIB, available_memory

InMemory = Literal["auto"] | bool
_ROOM = 0.8  # share of what is available that a dataset may take: the training itself needs some hundred MB


@final
@dataclass(frozen=True)
class Residence:
    """in_memory: True, False (in a mapped file: a dataset larger than memory trains, as fast as the disk gives it), or
    "auto", which is True where it fits.

    Args:
        in_memory: True, False, or "auto", which is True where the data fits.
        cache: Folder for that file, the store's own by default. It has no name, so it is gone with the process, however
            that ends. It holds what is decoded: a multiple of the store's size.
    """

    in_memory: InMemory = "auto"
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for another word."""
        if self.in_memory not in ("auto", True, False):
            raise ValueError(f"`in_memory` must be 'auto', True or False, got {self.in_memory!r}")

    def folder(self, store: Store, keys: list[str], steps: int, *, window_bytes: int = 0) -> Path | None:
        """Where the file for `steps` steps of these keys is to lie, None for in memory.

        Args:
            store: The episodes.
            keys: Observations to read.
            steps: How many steps are to be kept.
            window_bytes: Per step, of what the dataset makes beside the data.

        Raises:
            ValueError: Before anything is read where in_memory=True does not fit, or the file would not.
        """
        per_step = sum(step_bytes(store, key) for key in keys)
        wanted, free = steps * (per_step + window_bytes), available_memory()
        fits = free is None or wanted <= _ROOM * free
        size = f"{store.path}: {steps} steps of {', '.join(keys)} take {_gib(wanted)} in memory"
        if self.in_memory is True and not fits:
            raise ValueError(
                f"{size}, of {_gib(free)} that are available; pass `in_memory='auto'`, which maps them from the "
                "disk, use fewer `obs_keys`, or free memory"
            )
        if self.in_memory is True or (self.in_memory == "auto" and fits):
            return None
        folder = Path(self.cache or store.path.parent).absolute()
        space = shutil.disk_usage(folder).free if folder.is_dir() else 0
        if space < steps * per_step:
            raise ValueError(
                f"{size}, of {_gib(free)} that are available, and {folder} has {_gib(space)} free for a file of "
                f"{_gib(steps * per_step)}; pass `cache=FOLDER` on a larger disk"
            )
        if self.in_memory == "auto":
            warnings.warn(
                f"{size}, of {_gib(free)} that are available: they are mapped from a file in {folder}, which is slower",
                stacklevel=4,
            )
        return folder


def read_steps(store: Store, key: str, first: int, last: int, *, folder: Path | None) -> Tensor:
    """Steps first ... last - 1 of one key: float32, or uint8 as stored; in memory, or in a nameless file in `folder`.

    Args:
        store: The episodes.
        key: An observation, or "action".
        first: Step of the store.
        last: Step of the store, exclusive.
        folder: Where the nameless file lies; None is in memory.

    Raises:
        ValueError: For NaN or infinity, naming key, episode and step.
    """
    store.require_key(key)
    shape, dtype = (last - first, *store.shapes[key][1:]), _dtype(store, key)
    whole = _mapped(shape, dtype, folder) if folder is not None else np.empty(shape, dtype)
    bad: list[int] = []
    for start, part in store.blocks(key, slice(first, last)):
        values = part.astype(dtype, copy=False)
        if dtype == np.float32 and not np.isfinite(values).all():
            flags = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            bad += [start + int(row) for row in np.flatnonzero(flags)]
        whole[start - first : start - first + len(values)] = values
    if bad:
        episode = int(np.searchsorted(store.episode_ends, bad[0], side="right"))
        step = bad[0] - (int(store.episode_ends[episode - 1]) if episode else 0)
        raise ValueError(
            f"{store.path}: NaN or infinity in {key}, episode {episode}, step {step} ({len(bad)} bad steps in all); "
            f"look at it with `validate_store({str(store.path)!r})`"
        )
    return torch.from_numpy(whole)


def step_bytes(store: Store, key: str) -> int:
    """What one step of a key takes once it is read.

    Args:
        store: The episodes.
        key: An observation, or "action".
    """
    return int(np.prod(store.shapes.get(key, (0, 0))[1:], dtype=np.int64)) * _dtype(store, key).itemsize


def _dtype(store: Store, key: str) -> np.dtype:
    return np.dtype(np.uint8 if store.dtypes.get(key) == np.uint8 else np.float32)


def _mapped(shape: tuple[int, ...], dtype: np.dtype, folder: Path) -> np.ndarray:
    """Zeros in a file that has no name any more; the mapping keeps it alive."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize))
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    except PermissionError as error:
        raise ValueError(f"{folder}: no file can be made there ({error.strerror}); pass `cache=FOLDER`") from error


def _gib(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / GIB:.2f} GiB"
