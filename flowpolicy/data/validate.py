"""Checks on a store before anyone trains on it: every finding is one line with a severity."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from flowpolicy.data.bounds import bounds_of, describe_outside, outside_bounds
from flowpolicy.data.chunks import chunk_problems
from flowpolicy.data.motion import LONG_WAIT, by_episode, episode_slices, idle_starts, jumps, moved_steps
from flowpolicy.data.store import EpisodeStore
from flowpolicy.embodiment import CloudSpec
from flowpolicy.normalizer import MIN_RANGE, least_range, named

_IDLE_SHARE = 0.5  # planners pause at way-points for a few steps; half an episode is not a pause
_CLIPPED_SHARE = 0.5  # share of a dimension's actions exactly on a bound; above it the expert asked for more
_FEW_POINTS = 0.5  # share of distinct points in a cloud; below it more than half are repeated or zero padding
_CROP_TOLERANCE_M = 1e-5  # float32 rounding of the crop's corners and of a voxel's mean
_LISTED = 5  # how many episodes, dimensions or chunks one line names


Severity = Literal["error", "warning"]


class Finding(NamedTuple):
    """severity "error": do not train on it; "warning": look at it.

    Args:
        severity: "error" or "warning".
        message: What is wrong, where, and what to do.
    """

    severity: Severity
    message: str


def validate_store(path: Path) -> list[Finding]:
    """All findings about the store at `path`, errors first; an empty list means nothing was found.

    Args:
        path: Of the store.

    Raises:
        FileNotFoundError: For a missing path; a broken store is a finding.
    """
    try:
        store = EpisodeStore(path)
    except ValueError as error:
        return [Finding("error", str(error))]
    findings = [Finding("error", problem) for problem in store.table_problems()]
    findings += _against_embodiment(store)
    sound = []
    for key in store.keys:
        if problems := chunk_problems(store.path / "data" / key, decode=True):
            findings.append(Finding("error", f"data/{key}: {_list(problems, '; ')}"))
        else:
            sound.append(key)
    if not store.table_problems():
        findings += _contents(store, sound)
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _contents(store: EpisodeStore, keys: Sequence[str]) -> list[Finding]:
    """What the numbers of the given arrays say. Vectors are read whole, one array at a time; clouds and images in
    parts, and never two episodes together."""
    episodes = episode_slices(store)
    non_finite: list[Finding] = []
    other: list[Finding] = []
    moved: dict[str, np.ndarray] = {}  # key -> (S,) bool
    digests = [hashlib.sha256() for _ in episodes]
    for key in sorted(keys):
        found = _non_finite(key, store, episodes)
        non_finite += found
        judged = not found and (key in store.obs_keys or key == "action")  # keys with NaN have had their say
        if judged:
            other += _near_constant(key, store)
            other += _clouds(key, store, episodes)
        if judged and key != "action":
            moved[key] = moved_steps(key, store, episodes)
        if judged and key == "action":
            other += _frozen_actions(store.load("action"), episodes)
            other += _bounds(store, store.load("action"), episodes)
        for digest, values in zip(digests, by_episode(key, store, episodes), strict=True):
            digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    moved = {key: moved[key] for key in store.obs_keys if key in moved}
    other += _frozen(moved, episodes)
    other += _waits(store, moved, episodes)
    other += _several(store, [key for key in moved if len(store.shapes[key]) == 2], episodes)
    other += _duplicates([digest.hexdigest() for digest in digests])
    if store.episode_success is not None and not store.episode_success.all():
        failed = np.flatnonzero(~store.episode_success)
        other.append(Finding("warning", f"{len(failed)} episodes are no successes: {_list(failed)}"))
    return non_finite + other


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


def _non_finite(key: str, store: EpisodeStore, episodes: list[slice]) -> list[Finding]:
    if store.dtypes[key].kind != "f":
        return []
    parts = [~np.isfinite(part).reshape(len(part), -1).all(axis=1) for _, part in store.blocks(key)]
    bad = np.concatenate(parts)
    if not bad.any():
        return []
    return [Finding("error", f"{key}: NaN or infinity in {bad.sum()} of {len(bad)} steps, {_where(bad, episodes)}")]


def _near_constant(key: str, store: EpisodeStore) -> list[Finding]:
    if len(store.shapes[key]) != 2:
        return []
    spec = {**store.embodiment.obs, "action": store.embodiment.action}.get(key) if store.embodiment else None
    names = spec.names if spec and len(spec.names) == store.shapes[key][1] else ()
    floor = least_range(spec.unit) if spec and key != "action" else 0.0
    width = np.ptp(store.load(key), axis=0)
    still, narrow = np.flatnonzero(width < MIN_RANGE), np.flatnonzero((width >= MIN_RANGE) & (width < floor))
    findings = []
    if len(still):
        findings.append(f"{key}: dimensions {named(still, names)} are near-constant (range < {MIN_RANGE:g})")
    if len(narrow):
        findings.append(
            f"{key}: dimensions {named(narrow, names)} hardly move (range < {floor:g}); training scales "
            "them as if they ranged over that"
        )
    return [Finding("warning", message) for message in findings]


def _clouds(key: str, store: EpisodeStore, episodes: list[slice]) -> list[Finding]:
    """Empty clouds, padding, colours that are none, and points outside of the crop that the embodiment declares."""
    if len(store.shapes[key]) != 3 or store.shapes[key][2] not in (3, 6):
        return []
    embodiment = store.embodiment
    cloud = embodiment.obs[key].cloud if embodiment and key in embodiment.obs else None
    parts = [_cloud_flags(part, cloud) for _, part in store.blocks(key)]
    findings = []
    for severity, message in parts[0]:
        bad = np.concatenate([flags[severity, message] for flags in parts])
        if bad.any():
            text = f"{key}: {message} in {bad.sum()} of {len(bad)} steps, {_where(bad, episodes)}"
            findings.append(Finding(severity, text))
    return findings


def _cloud_flags(array: np.ndarray, cloud: CloudSpec | None) -> dict[tuple[Severity, str], np.ndarray]:
    """(severity, what is wrong) -> (n,) bool, in which of the clouds (n, N, 3 or 6)."""
    xyz, color = array[..., :3], array[..., 3:]
    zero = ~xyz.any(axis=-1)  # (n, N)
    empty = zero.all(axis=1)  # (n,)
    found: dict[tuple[Severity, str], np.ndarray] = {
        ("error", "empty cloud (all points at the origin)"): empty,
        ("error", "colours outside 0..1"): ((color < 0) | (color > 1)).any(axis=(1, 2)),
        ("warning", "points at the origin (zero padding?)"): zero.any(axis=1) & ~empty,
        ("warning", "more than half of the points are repeated (few points in the crop?)"): _repeated(xyz) & ~empty,
    }
    if cloud is not None:
        low, high = np.array(cloud.crop_low) - _CROP_TOLERANCE_M, np.array(cloud.crop_high) + _CROP_TOLERANCE_M
        outside = ((xyz < low) | (xyz > high)).any(axis=2) & ~zero
        message = f"points outside the declared crop, {cloud.crop_low} to {cloud.crop_high} m"
        found["error", message] = outside.any(axis=1)
    return found


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


def _frozen(moved: dict[str, np.ndarray], episodes: list[slice]) -> list[Finding]:
    """Episodes in which nothing moves (error), one sensor stands still or most steps are idle (warnings).

    moved: key -> (S,) bool.
    """
    if not moved:
        return []
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


def _waits(store: EpisodeStore, moved: dict[str, np.ndarray], episodes: list[slice]) -> list[Finding]:
    """Episodes that begin with waiting, which a policy learns and then does."""
    if not moved:
        return []
    idle = idle_starts(np.any(list(moved.values()), axis=0), episodes)
    if not len(hit := np.flatnonzero(idle >= LONG_WAIT)):
        return []
    message = (
        f"episodes {_list(hit)}: nothing moves in the first steps (up to {idle.max()}), and a policy learns to "
        f"wait; `trim_store({str(store.path)!r}, out=NEW)` leaves them out"
    )
    return [Finding("warning", message)]


def _several(store: EpisodeStore, keys: list[str], episodes: list[slice]) -> list[Finding]:
    """Episodes in which much jumps at once: rollouts that were written behind each other as one."""
    jumped = jumps(store, keys, episodes) if keys else np.zeros(store.num_steps, dtype=bool)
    if not jumped.any():
        return []
    message = (
        f"much of the state jumps at once in {jumped.sum()} steps, as at a reset, {_where(jumped, episodes)}; "
        "where these are several rollouts, add each as an Episode of its own"
    )
    return [Finding("error", message)]


def _frozen_actions(action: np.ndarray, episodes: list[slice]) -> list[Finding]:
    longer = [i for i, rows in enumerate(episodes) if rows.stop - rows.start > 1]
    same = [i for i in longer if not np.ptp(action[episodes[i]], axis=0).any()]
    return [Finding("warning", f"episodes {_list(same)}: one constant action throughout")] if same else []


def _bounds(store: EpisodeStore, action: np.ndarray, episodes: list[slice]) -> list[Finding]:
    if store.embodiment is None or action.shape[1:] != store.embodiment.action.shape:
        return []
    findings = []
    beyond = outside_bounds(action, store.embodiment)
    if beyond.any():
        hit = [i for i, rows in enumerate(episodes) if beyond[rows].any()]
        message = f"action: {describe_outside(action, beyond, store.embodiment)}; episodes {_list(hit)}"
        findings.append(Finding("error", message))
    low, high, tolerance = bounds_of(store.embodiment)
    on_bound = (abs(action - low) <= tolerance) | (abs(action - high) <= tolerance)
    share = on_bound.mean(axis=0)
    # a dimension that is always on a bound is a switch (gripper), not a clipped signal
    clipped = np.flatnonzero((share > _CLIPPED_SHARE) & (share < 1.0))
    if len(clipped):
        text = ", ".join(f"{dim}: {share[dim]:.0%}" for dim in clipped)
        message = f"action: large share of values exactly on a bound (dimension: share) {text}"
        findings.append(Finding("warning", message))
    return findings


def _duplicates(digests: Sequence[str]) -> list[Finding]:
    groups: dict[str, list[int]] = {}
    for i, digest in enumerate(digests):
        groups.setdefault(digest, []).append(i)
    same = [group for group in groups.values() if len(group) > 1]
    if not same:
        return []
    return [Finding("warning", f"identical episodes: {_list(same)}; the copies count twice in training")]


def _list(items: Iterable[object], separator: str = ", ") -> str:
    texts = [str(item) for item in items]
    more = f"{separator}... ({len(texts)} in all)" if len(texts) > _LISTED else ""
    return separator.join(texts[:_LISTED]) + more
