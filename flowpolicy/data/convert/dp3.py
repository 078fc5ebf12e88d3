"""The zarr folder of diffusion_policy and DP3: data/<key> (S, ...), data/action, meta/episode_ends, and no record.

What we call agent_pos is `state` there. Colours of clouds are 0 to 255 there, 0 to 1 here; rows of zeros that fill a
cloud up stay as they are. Pictures that are stored as floats, 0 to 255, become uint8. No such file says which robot it
is of, at which rate, or what its actions mean, so the reader must be told. Source: real-stanford/diffusion_policy,
common/replay_buffer.py; YanjieZe/3D-Diffusion-Policy, dataset/metaworld_dataset.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from flowpolicy.data.convert.base import Demonstrations
from flowpolicy.data.episode import Episode
from flowpolicy.data.reading import EpisodeStore
from flowpolicy.embodiment import Embodiment, KeySpec

_NAMES = {"state": "agent_pos"}  # there -> here
_NO_OBSERVATIONS = ("action", "reward", "depth")  # maps of depth are what clouds are made of, no policy reads them
_CHUNK_BYTES = 1 << 20


def read(
    path: Path,
    *,
    robot: str,
    control_hz: float,
    action_kind: str,
    task: str = "",
    task_id: str = "",
    keys: Sequence[str] | None = None,
    action_low: Sequence[float] | None = None,
    action_high: Sequence[float] | None = None,
) -> Demonstrations:
    """The episodes of such a folder, all taken as successes of seeds that nobody knows (-1).

    Args:
        path: The folder.
        robot: Its model, for people.
        control_hz: Actions per second.
        action_kind: What an action means: "eef_delta", "joint_position", "velocity", ….
        task: Name of the task, "" leaves it unsaid.
        task_id: Which of the task's family; the name where it is "".
        keys: Arrays below data/ that are observations; None is all but action, reward and depth.
        action_low: Bounds per entry of the action, in its units; None is the least that occurs, which a policy then
            never goes beyond.
        action_high: As `action_low`.

    Raises:
        ValueError: For a folder of another layout, and for arrays that are no observation.
    """
    store = EpisodeStore.open(path)
    store.require_key("action")
    chosen = [key for key in store.keys if key not in _NO_OBSERVATIONS] if keys is None else list(keys)
    for key in chosen:
        store.require_key(key)
    action = store.load("action")
    bounds = (
        action.min(axis=0) if action_low is None else action_low,
        action.max(axis=0) if action_high is None else action_high,
    )
    low, high = (tuple(float(entry) for entry in row) for row in bounds)
    embodiment = Embodiment(
        robot=robot,
        obs={_NAMES.get(key, key): _spec(store, key) for key in chosen},
        action=KeySpec(store.shapes["action"][1:]),
        action_kind=action_kind,
        control_hz=control_hz,
        action_low=low,
        action_high=high,
    )
    attrs = {"task": task, "task_id": task_id or task} if task else {}
    return Demonstrations(embodiment, _episodes(store, chosen), attrs)


def _spec(store: EpisodeStore, key: str) -> KeySpec:
    shape = store.shapes[key][1:]
    is_picture = len(shape) == 3
    if is_picture and shape[-1] not in (1, 3, 4):
        raise ValueError(f"{store.path}: {key}: wanted pictures (height, width, channels), got {shape}")
    return KeySpec(shape, dtype="uint8" if is_picture else "float32")


def _episodes(store: EpisodeStore, keys: Sequence[str]) -> Iterator[Episode]:
    start = 0
    for end in store.episode_ends.tolist():
        rows, start = slice(start, end), end
        action = store.load("action", rows).astype(np.float32)
        reward = store.load("reward", rows).reshape(-1) if "reward" in store.keys else np.zeros(len(action))
        obs = {_NAMES.get(key, key): _ours(key, store.load(key, rows)) for key in keys}
        yield Episode(obs, action, reward.astype(np.float32), True, -1)


def _ours(key: str, value: np.ndarray) -> np.ndarray:
    """One array of an episode in our units and types."""
    if value.ndim == 4:
        if value.dtype != np.uint8 and not (value.min() >= 0 and 1 < value.max() <= 255):
            raise ValueError(f"{key}: wanted pictures of 0 to 255, got {value.min():g} to {value.max():g}")
        return value.astype(np.uint8)
    value = value.astype(np.float32)
    if value.ndim == 3 and value.shape[-1] == 6:
        value[..., 3:] /= 255
    return value


def write(path: Path, demonstrations: Demonstrations) -> None:
    """Such a folder; rewards, seeds and successes have no place in it.

    Args:
        path: The folder, which is made.
        demonstrations: What it holds.
    """
    root = zarr.open_group(path, mode="w", zarr_format=2)
    data, ends = root.create_group("data"), []
    there = {ours: theirs for theirs, ours in _NAMES.items()}
    arrays: dict[str, zarr.Array] = {}
    for episode in demonstrations.episodes:
        for key, value in {**episode.obs, "action": episode.action}.items():
            name = there.get(key, key)
            if name not in arrays:
                arrays[name] = _create(data, name, value)
            arrays[name].append(_theirs(value))
        ends.append((ends[-1] if ends else 0) + len(episode.action))
    column: Any = np.array(ends, np.int64)
    root.create_group("meta").create_array("episode_ends", data=column, compressors=None)


def _create(data: zarr.Group, name: str, value: np.ndarray) -> zarr.Array:
    rows = max(1, _CHUNK_BYTES // max(1, value[0].nbytes))
    return data.create_array(
        name,
        shape=(0, *value.shape[1:]),
        dtype=value.dtype,
        chunks=(min(rows, 4096), *value.shape[1:]),
        compressors=numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
        config={"write_empty_chunks": True},  # a chunk that is missing would be read as zeros
    )


def _theirs(value: np.ndarray) -> np.ndarray:
    if value.ndim == 3 and value.shape[-1] == 6:
        return np.concatenate([value[..., :3], 255 * value[..., 3:]], axis=-1)
    return value
