"""Checks on a store before anyone trains on it: every finding is one line with a severity."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from flowpolicy.data.store import EpisodeStore, chunk_problems

_STILL = 1e-4  # share of a dimension's range below which a step counts as no motion; sensors are coarser than this
_IDLE_SHARE = 0.5  # planners pause at way-points for a few steps; half an episode is not a pause
_CLIPPED_SHARE = 0.5  # share of a dimension's actions exactly on a bound; above it the expert asked for more
_NEAR_CONSTANT = 1e-4  # the normaliser's threshold
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
    finite = {key: array for key, array in arrays.items() if np.isfinite(array).all()}
    for key in [*store.obs_keys, "action"]:
        if key in finite:
            findings += _near_constant(key, finite[key])
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
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not bad.any():
        return []
    hit = [i for i, rows in enumerate(episodes) if bad[rows].any()]
    step = int(np.argmax(bad[episodes[hit[0]]]))
    where = f"first at episode {hit[0]}, step {step}; episodes {_list(hit)}"
    return [Finding("error", f"{key}: NaN or infinity in {bad.sum()} of {len(bad)} steps, {where}")]


def _near_constant(key: str, array: np.ndarray) -> list[Finding]:
    if array.ndim != 2:
        return []
    dims = np.flatnonzero(np.ptp(array, axis=0) < _NEAR_CONSTANT)
    if not len(dims):
        return []
    return [Finding("warning", f"{key}: dimensions {dims.tolist()} are near-constant (range < {_NEAR_CONSTANT:g})")]


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
