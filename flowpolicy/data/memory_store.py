"""A store of episodes in memory, made from arrays: what there is to train on without a file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from flowpolicy.data.base import Store
from flowpolicy.embodiment import Embodiment, KeySpec

Episodes = Sequence[Any] | np.ndarray
"""One array (T, ...) per episode; or (S, ...), all steps of all episodes, beside `episode_ends`."""

_BLOCK_STEPS = 1024  # what is judged at a time
_LARGEST = np.finfo(np.float32).max


@final
class MemoryStore(Store):
    """Demonstrations as arrays: numpy's, torch's on the CPU, or lists of numbers. They are copied.

    `obs[key][t]` was seen, then `action[t]` was sent. Numbers become float32; images, (T, height, width, 3) of uint8,
    stay. Without an embodiment one is made from the arrays: shapes as they are, and the smallest and largest action of
    each dimension as its bounds, which a trained policy then never leaves.

    Args:
        obs: Key -> arrays (T, D) per step, clouds (T, N, 3), images; a single number per step is (T, 1).
        action: Arrays (T, A), robot units, of the same lengths T.
        episode_ends: (E,), one past the last step of each episode, where the arrays hold all episodes one after the
            other; None where each is a list with one array per episode.
        control_hz: Action steps per second of the robot.
        action_low: (A,) bounds of the robot; None takes the smallest of the data.
        action_high: The largest.
        embodiment: The robot's contract, in the place of control_hz, action_low and action_high.

    Raises:
        ValueError: Naming key and episode, for lengths that differ, shapes that differ, and NaN or infinity; for a
            contract that the arrays do not keep.
    """

    embodiment: Embodiment

    def __init__(
        self,
        obs: Mapping[str, Episodes],
        action: Episodes,
        *,
        episode_ends: Sequence[int] | np.ndarray | None = None,
        control_hz: float | None = None,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        embodiment: Embodiment | None = None,
    ) -> None:
        self.path = Path("MemoryStore")
        given = {**obs, "action": action}
        if "action" in obs or len(given) < 2:
            raise ValueError(f"MemoryStore: wanted observations by keys other than action, got {sorted(obs)}")
        split = {key: _episodes(key, value, episode_ends) for key, value in given.items()}
        lengths = [len(part) for part in split["action"]]
        self._arrays = {key: _joined(key, parts, lengths) for key, parts in sorted(split.items())}
        self.episode_ends = np.cumsum(lengths, dtype=np.int64)
        if embodiment is None:
            embodiment = _measured(list(obs), self._arrays, control_hz, action_low, action_high)
        elif control_hz is not None or action_low is not None or action_high is not None:
            raise ValueError("MemoryStore: pass embodiment, or control_hz and the bounds, not both")
        _require_kept(embodiment, self._arrays)
        self.embodiment, self.attrs = embodiment, {}
        self.episode_seeds = self.episode_success = None
        self.keys, self.obs_keys = tuple(self._arrays), tuple(embodiment.obs)
        self.shapes = {key: value.shape for key, value in self._arrays.items()}
        self.dtypes = {key: value.dtype for key, value in self._arrays.items()}

    def load(self, key: str, steps: slice = slice(None)) -> np.ndarray:
        """See `Store`."""
        first, last = self.bounds(key, steps)
        return self._arrays[key][first:last]

    def blocks(self, key: str, steps: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
        """See `Store`."""
        first, last = self.bounds(key, steps)
        for start in range(first, last, _BLOCK_STEPS):
            yield start, self._arrays[key][start : min(start + _BLOCK_STEPS, last)]


def _episodes(key: str, value: Episodes, ends: Sequence[int] | np.ndarray | None) -> list[np.ndarray]:
    """One array per episode, checked for shapes alone."""
    if ends is None:
        if hasattr(value, "ndim") or not isinstance(value, Sequence):
            raise ValueError(
                f"MemoryStore: {key}: wanted a list with one array (T, ...) per episode, got {type(value).__name__}; "
                "pass episode_ends=[...] where it holds all steps of all episodes, [array] where it is one episode"
            )
        parts = [np.asarray(part) for part in value]
    else:
        whole, table = np.asarray(value), np.asarray(ends, dtype=np.int64)
        if table.ndim != 1 or len(table) == 0 or (np.diff(table, prepend=0) <= 0).any():
            raise ValueError(f"MemoryStore: episode_ends must be (E,), positive and increasing, got {ends!r:.80}")
        if whole.ndim == 0 or len(whole) != table[-1]:
            got = whole.shape[0] if whole.ndim else "a single number"
            raise ValueError(f"MemoryStore: {key}: wanted {table[-1]} steps, where episode_ends ends, got {got}")
        parts = np.split(whole, table[:-1])
    if not parts:
        raise ValueError(f"MemoryStore: {key}: wanted at least one episode, got none")
    for episode, part in enumerate(parts):
        if part.ndim < 2 or part.dtype.kind not in "fiub":
            fix = "; pass array[:, None] for one number per step" if part.ndim == 1 and part.dtype.kind != "O" else ""
            raise ValueError(
                f"MemoryStore: {key}, episode {episode}: wanted numbers (T, ...), at least two axes, got {part.dtype} "
                f"{part.shape}{fix}"
            )
    return parts


def _joined(key: str, parts: Sequence[np.ndarray], lengths: Sequence[int]) -> np.ndarray:
    """All episodes of one key, (S, ...), in float32 or uint8."""
    if len(parts) != len(lengths):
        raise ValueError(f"MemoryStore: {key}: wanted {len(lengths)} episodes, as many as of action, got {len(parts)}")
    is_image = all(part.ndim == 4 and part.dtype == np.uint8 for part in parts)
    for episode, (part, steps) in enumerate(zip(parts, lengths, strict=True)):
        where = f"MemoryStore: {key}, episode {episode}"
        if steps == 0:
            raise ValueError(f"{where}: no steps; leave the episode out")
        if part.shape != (wanted := (steps, *parts[0].shape[1:])):
            why = "of action" if len(part) != steps else "of episode 0"
            raise ValueError(f"{where}: wanted shape {wanted}, as {why}, got {part.shape}")
        fits = abs(part.reshape(steps, -1)) <= _LARGEST
        if not fits.all():
            step = int(np.argmin(fits.all(axis=1)))
            raise ValueError(f"{where}, step {step}: NaN or infinity; repair the episode, or leave it out")
    return np.concatenate(parts).astype(np.uint8 if is_image else np.float32)


def _measured(
    keys: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    control_hz: float | None,
    low: Sequence[float] | None,
    high: Sequence[float] | None,
) -> Embodiment:
    """A contract that says what the arrays do."""
    if control_hz is None:
        raise ValueError("MemoryStore: pass control_hz=, action steps per second of the robot, or embodiment=")
    action = arrays["action"].reshape(len(arrays["action"]), -1)
    specs = {key: KeySpec(arrays[key].shape[1:], dtype=str(arrays[key].dtype)) for key in (*keys, "action")}
    return Embodiment(
        robot="",
        obs={key: specs[key] for key in keys},
        action=specs["action"],
        action_kind="",
        control_hz=control_hz,
        action_low=tuple(action.min(axis=0).tolist()) if low is None else tuple(low),
        action_high=tuple(action.max(axis=0).tolist()) if high is None else tuple(high),
    )


def _require_kept(embodiment: Embodiment, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the arrays are what the contract says."""
    specs = {**embodiment.obs, "action": embodiment.action}
    if set(specs) != set(arrays):
        raise ValueError(f"MemoryStore: the embodiment has {sorted(specs)}, the arrays are {sorted(arrays)}")
    for key, spec in specs.items():
        value = arrays[key]
        if value.shape[1:] != spec.shape or value.dtype != spec.dtype:
            raise ValueError(
                f"MemoryStore: {key}: the embodiment says {spec.dtype} {spec.shape} per step, got {value.dtype} "
                f"{value.shape[1:]}"
            )
