"""Checks on a store before anyone trains on it: every finding is one line with a severity."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from flowpolicy.data.store import EpisodeStore, chunk_problems
from flowpolicy.embodiment import Embodiment

_STILL = 1e-4  # share of a dimension's range below which a step counts as no motion; sensors are coarser than this
_IDLE_SHARE = 0.5  # planners pause at way-points for a few steps; half an episode is not a pause
_CLIPPED_SHARE = 0.5  # share of a dimension's actions exactly on a bound; above it the expert asked for more
_NEAR_CONSTANT = 1e-4  # the normaliser's threshold
_FEW_POINTS = 0.5  # share of distinct points in a cloud; below it more than half are repeated or zero padding
_CROP_TOLERANCE_M = 1e-5  # float32 rounding of the crop's corners and of a voxel's mean
_LISTED = 5  # how many episodes, dimensions or chunks one line names


class Finding(NamedTuple):
    """severity "error": do not train on it; "warning": look at it."""

    severity: Literal["error", "warning"]
    message: str


def validate_store(path: Path) -> list[Finding]:
    """All findings about the store at `path`, errors first; an empty list means nothing was found.

    Raises FileNotFoundError for a missing path; a broken store is a finding.
    """
    try:
        store = EpisodeStore(path)
    except ValueError as error:
        return [Finding("error", str(error))]
    findings = [Finding("error", problem) for problem in store.table_problems()]
    findings += _against_embodiment(store)
    arrays = {}
    for key in store.keys:
        if problems := chunk_problems(store.path / "data" / key, decode=True):
            findings.append(Finding("error", f"data/{key}: {_list(problems, '; ')}"))
        else:
            arrays[key] = store.load(key)
    if not store.table_problems():
        findings += _contents(store, arrays)
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _contents(store: EpisodeStore, arrays: dict[str, np.ndarray]) -> list[Finding]:
    starts = np.concatenate([[0], store.episode_ends[:-1]])
    episodes = [slice(int(a), int(b)) for a, b in zip(starts, store.episode_ends, strict=True)]
    findings = []
    for key, array in arrays.items():
        findings += _non_finite(key, array, episodes)
    # every later check compares numbers; keys with NaN have had their say
    finite = {key: array for key, array in arrays.items() if array.dtype.kind != "f" or np.isfinite(array).all()}
    for key in [*store.obs_keys, "action"]:
        if key in finite:
            findings += _near_constant(key, finite[key])
            findings += _clouds(key, finite[key], episodes, store.embodiment)
    findings += _frozen({key: finite[key] for key in store.obs_keys if key in finite}, episodes)
    if "action" in finite:
        findings += _frozen_actions(finite["action"], episodes)
        findings += _bounds(store, finite["action"], episodes)
    findings += _duplicates(arrays, episodes)
    if store.episode_success is not None and not store.episode_success.all():
        failed = np.flatnonzero(~store.episode_success)
        findings.append(Finding("warning", f"{len(failed)} episodes are no successes: {_list(failed)}"))
    return findings


def _against_embodiment(store: EpisodeStore) -> list[Finding]:
    if store.embodiment is None:
        return [Finding("warning", "no embodiment record: shapes, types and action bounds were not checked")]
    findings = []
    for key, spec in {**store.embodiment.obs, "action": store.embodiment.action}.items():
        if key not in store.keys:
            findings.append(Finding("error", f"data/{key} is missing; the embodiment declares it"))
            continue
        shape, dtype = store.shapes[key][1:], store.dtypes[key]
        if shape != spec.shape:
            findings.append(Finding("error", f"data/{key}: the embodiment wants {spec.shape} per step, got {shape}"))
        if dtype != np.dtype(spec.dtype):
            findings.append(Finding("error", f"data/{key}: the embodiment wants {spec.dtype}, got {dtype}"))
    return findings


def _non_finite(key: str, array: np.ndarray, episodes: list[slice]) -> list[Finding]:
    if array.dtype.kind != "f":
        return []
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not bad.any():
        return []
    return [Finding("error", f"{key}: NaN or infinity in {bad.sum()} of {len(bad)} steps, {_where(bad, episodes)}")]


def _near_constant(key: str, array: np.ndarray) -> list[Finding]:
    if array.ndim != 2:
        return []
    dims = np.flatnonzero(np.ptp(array, axis=0) < _NEAR_CONSTANT)
    if not len(dims):
        return []
    return [Finding("warning", f"{key}: dimensions {dims.tolist()} are near-constant (range < {_NEAR_CONSTANT:g})")]


def _clouds(key: str, array: np.ndarray, episodes: list[slice], embodiment: Embodiment | None) -> list[Finding]:
    """Empty clouds, padding, colours that are none, and points outside of the crop that the embodiment declares."""
    if array.ndim != 3 or array.shape[2] not in (3, 6):
        return []
    xyz, color = array[..., :3], array[..., 3:]
    zero = ~xyz.any(axis=-1)  # (S, N)
    empty = zero.all(axis=1)  # (S,)
    found: list[tuple[Literal["error", "warning"], str, np.ndarray]] = [
        ("error", "empty cloud (all points at the origin)", empty),
        ("error", "colours outside 0..1", ((color < 0) | (color > 1)).any(axis=(1, 2))),
        ("warning", "points at the origin (zero padding?)", zero.any(axis=1) & ~empty),
        ("warning", "more than half of the points are repeated (few points in the crop?)", _repeated(xyz) & ~empty),
    ]
    cloud = embodiment.obs[key].cloud if embodiment and key in embodiment.obs else None
    if cloud is not None:
        low, high = np.array(cloud.crop_low) - _CROP_TOLERANCE_M, np.array(cloud.crop_high) + _CROP_TOLERANCE_M
        outside = ((xyz < low) | (xyz > high)).any(axis=2) & ~zero
        message = f"points outside the declared crop, {cloud.crop_low} to {cloud.crop_high} m"
        found.append(("error", message, outside.any(axis=1)))
    return [
        Finding(severity, f"{key}: {message} in {bad.sum()} of {len(bad)} steps, {_where(bad, episodes)}")
        for severity, message, bad in found
        if bad.any()
    ]


def _repeated(xyz: np.ndarray) -> np.ndarray:
    """(S,) bool: fewer than `_FEW_POINTS` of the points of a cloud (S, N, 3) differ from each other."""
    flags = []
    for part in np.array_split(xyz, len(xyz) // 1000 + 1):  # in parts: the numbers below are 64 bits wide
        bits = np.ascontiguousarray(part, dtype=np.float32).view(np.uint32).astype(np.uint64)
        # one number per point; odd multipliers of a 64-bit hash, so that different points practically never share one
        mixed = (bits[..., 0] * 0x9E3779B97F4A7C15 + bits[..., 1]) * 0xBF58476D1CE4E5B9 + bits[..., 2]
        distinct = 1 + (np.diff(np.sort(mixed, axis=1), axis=1) != 0).sum(axis=1)
        flags.append(distinct < _FEW_POINTS * xyz.shape[1])
    return np.concatenate(flags)


def _where(bad: np.ndarray, episodes: list[slice]) -> str:
    """Where the steps marked in bad (S,) begin, and which episodes hold any."""
    hit = [i for i, rows in enumerate(episodes) if bad[rows].any()]
    return f"first at episode {hit[0]}, step {int(np.argmax(bad[episodes[hit[0]]]))}; episodes {_list(hit)}"


def _frozen(obs: dict[str, np.ndarray], episodes: list[slice]) -> list[Finding]:
    """Episodes in which nothing moves (error), one sensor stands still or most steps are idle (warnings)."""
    if not obs:
        return []
    moved = {key: _moved(array, episodes) for key, array in obs.items()}  # key -> (S,) bool
    anything = np.any(list(moved.values()), axis=0)
    longer = [i for i, rows in enumerate(episodes) if rows.stop - rows.start > 1]
    findings = []
    frozen = {i for i in longer if not anything[episodes[i]].any()}
    if frozen:
        findings.append(Finding("error", f"episodes {_list(sorted(frozen))}: frozen, no observation ever changes"))
    for key, flags in moved.items():
        still = [i for i in longer if i not in frozen and not flags[episodes[i]].any()]
        # still in most episodes: a fixed goal; still in a few: a sensor that hung
        if still and len(still) < len(episodes) / 2:
            findings.append(Finding("warning", f"{key} is frozen in episodes {_list(still)} and moves in the others"))
    idle = [i for i in longer if i not in frozen and 1 - anything[episodes[i]][1:].mean() > _IDLE_SHARE]
    if idle:
        message = f"episodes {_list(idle)}: idle for more than {_IDLE_SHARE:.0%} of the steps"
        findings.append(Finding("warning", message))
    return findings


def _moved(array: np.ndarray, episodes: list[slice]) -> np.ndarray:
    """(S,) bool: this step's observation differs from the one before in the same episode; a first step has not moved.

    Vectors move by more than `_STILL` of a dimension's range; images and clouds by any value.
    """
    moved = np.zeros(len(array), dtype=bool)
    tolerance = _STILL * np.ptp(array, axis=0) if array.ndim == 2 else None
    for rows in episodes:
        now, before = array[rows][1:], array[rows][:-1]
        change = now != before if tolerance is None else np.abs(now - before) > tolerance
        moved[rows][1:] = change.reshape(len(now), -1).any(axis=1)
    return moved


def _frozen_actions(action: np.ndarray, episodes: list[slice]) -> list[Finding]:
    longer = [i for i, rows in enumerate(episodes) if rows.stop - rows.start > 1]
    same = [i for i in longer if not np.ptp(action[episodes[i]], axis=0).any()]
    return [Finding("warning", f"episodes {_list(same)}: one constant action throughout")] if same else []


def _bounds(store: EpisodeStore, action: np.ndarray, episodes: list[slice]) -> list[Finding]:
    if store.embodiment is None or action.shape[1:] != store.embodiment.action.shape:
        return []
    low, high = np.array(store.embodiment.action_low), np.array(store.embodiment.action_high)
    # float32 storage rounds a bound such as 2.8973; infinite bounds are never reached
    width = np.where(np.isfinite(high - low), high - low, 1.0)
    tolerance = 1e-6 * np.maximum(1.0, width)
    findings = []
    outside = (action < low - tolerance) | (action > high + tolerance)
    if outside.any():
        dims = np.flatnonzero(outside.any(axis=0))
        hit = [i for i, rows in enumerate(episodes) if outside[rows].any()]
        rate = outside.any(axis=1).mean()
        message = (
            f"action: {rate:.1%} of the steps are outside the bounds, dimensions {_list(dims)}, "
            f"episodes {_list(hit)}; clip them to what the robot executes"
        )
        findings.append(Finding("error", message))
    on_bound = (abs(action - low) <= tolerance) | (abs(action - high) <= tolerance)
    share = on_bound.mean(axis=0)
    # a dimension that is always on a bound is a switch (gripper), not a clipped signal
    clipped = np.flatnonzero((share > _CLIPPED_SHARE) & (share < 1.0))
    if len(clipped):
        text = ", ".join(f"{dim}: {share[dim]:.0%}" for dim in clipped)
        message = f"action: large share of values exactly on a bound (dimension: share) {text}"
        findings.append(Finding("warning", message))
    return findings


def _duplicates(arrays: dict[str, np.ndarray], episodes: list[slice]) -> list[Finding]:
    groups: dict[str, list[int]] = {}
    for i, rows in enumerate(episodes):
        digest = hashlib.sha256()
        for key in sorted(arrays):
            digest.update(np.ascontiguousarray(arrays[key][rows]).reshape(-1).view(np.uint8).data)
        groups.setdefault(digest.hexdigest(), []).append(i)
    same = [group for group in groups.values() if len(group) > 1]
    if not same:
        return []
    return [Finding("warning", f"identical episodes: {_list(same)}; the copies count twice in training")]


def _list(items: Iterable[object], separator: str = ", ") -> str:
    texts = [str(item) for item in items]
    more = f"{separator}... ({len(texts)} in all)" if len(texts) > _LISTED else ""
    return separator.join(texts[:_LISTED]) + more
