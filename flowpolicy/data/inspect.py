"""Plain-text picture of a store: what is in it, how long the episodes are, how the numbers are spread."""

import math
from collections.abc import Iterator

import numpy as np

from flowpolicy.data.store import EpisodeStore
from flowpolicy.embodiment import Embodiment

_COLUMNS = ("min", "q01", "q10", "q50", "q90", "q99", "max", "mean", "std")
_MOST_VALUES = 4_000_000  # of one column
_COUNTED = 1 << 18  # bytes of one column at a time: numpy makes 64-bit numbers of them
_QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)


def describe_store(store: EpisodeStore) -> str:
    """Text of several tables: counts, embodiment, arrays, and statistics per dimension; NaN values are left out.

    Args:
        store: The episodes, as `EpisodeStore` opens them.
    """
    lengths = np.diff(store.episode_ends, prepend=0)
    lines = [
        f"store     {store.path}",
        f"episodes  {store.num_episodes}   steps {store.num_steps}",
        f"length    min {lengths.min()}   median {np.median(lengths):g}   max {lengths.max()}   "
        f"mean {lengths.mean():.1f}",
    ]
    if store.episode_success is not None:
        lines.append(f"success   {int(store.episode_success.sum())} of {store.num_episodes}")
    if store.episode_seeds is not None:
        lines.append(f"seeds     {store.episode_seeds.min()} .. {store.episode_seeds.max()}")
    lines += [f"{name:<9} {value}" for name, value in store.attrs.items()]
    lines += ["", *_embodiment_lines(store.embodiment), "", f"{'key':<16} {'shape':<20} dtype"]
    lines += [f"{key:<16} {str(store.shapes[key]):<20} {store.dtypes[key]}" for key in store.keys]
    for key in store.keys:
        lines += ["", *_statistics(key, store, _names(store.embodiment, key))]
    return "\n".join(lines)


def _embodiment_lines(embodiment: Embodiment | None) -> list[str]:
    if embodiment is None:
        return ["robot     unknown (no embodiment record)"]
    lines = [f"robot     {embodiment.robot}   {embodiment.control_hz:g} Hz   action: {embodiment.action_kind}"]
    return lines + [f"cloud     {key}: {spec.cloud.describe()}" for key, spec in embodiment.obs.items() if spec.cloud]


def _names(embodiment: Embodiment | None, key: str) -> tuple[str, ...]:
    if embodiment is None:
        return ()
    specs = {**embodiment.obs, "action": embodiment.action}
    return specs[key].names if key in specs else ()


def _statistics(key: str, store: EpisodeStore, names: tuple[str, ...]) -> list[str]:
    """One row per entry of a vector key; images and clouds get one row per entry of their last axis.

    The array is read in parts. Bytes are counted. More than four million floats of one column: those of every n-th,
    and the true minimum and maximum.
    """
    shape = store.shapes[key]
    columns = [*_columns(key, store, 1 if len(shape) == 1 else shape[-1])]
    width = max([16, *(len(name) + 1 for name in names)])
    lines = [f"{key:<{width}}" + "".join(f"{column:>11}" for column in _COLUMNS)]
    for dim, values in enumerate(columns):
        label = names[dim] if len(names) == len(columns) else f"[{dim}]"
        said = "".join(f"{value:>11.4g}" for value in values) if values else " no finite value"
        lines.append(f"  {label:<{width - 2}}{said}")
    return lines


def _columns(key: str, store: EpisodeStore, dims: int) -> Iterator[list[float]]:
    """The statistics of each entry of the last axis; none where nothing is finite."""
    total = math.prod(store.shapes[key]) // max(1, dims)
    every, count = total // _MOST_VALUES + 1, 0
    low, high = np.full(dims, np.inf), np.full(dims, -np.inf)
    counts = np.zeros((dims, 256), np.int64)
    kept: list[np.ndarray] = []
    for _, block in store.blocks(key):
        rows = block.reshape(-1, dims)
        if rows.dtype == np.uint8:
            for part in np.array_split(rows, len(rows) // _COUNTED + 1):
                counts += np.stack([np.bincount(part[:, dim], minlength=256) for dim in range(dims)])
            continue
        rows = rows if rows.dtype.kind == "f" else rows.astype(np.float64)
        kept.append(rows[-count % every :: every].copy())
        count += len(rows)
        finite = np.isfinite(rows)
        low = np.minimum(low, rows.min(axis=0, where=finite, initial=np.inf))
        high = np.maximum(high, rows.max(axis=0, where=finite, initial=-np.inf))
    for dim in range(dims):
        if store.dtypes[key] == np.uint8:
            yield _byte_statistics(counts[dim])
        else:
            column = np.concatenate([rows[:, dim] for rows in kept]) if kept else np.zeros(0)
            yield _float_statistics(column, float(low[dim]), float(high[dim]))


def _float_statistics(column: np.ndarray, low: float, high: float) -> list[float]:
    """Minimum, quantiles, maximum, mean and standard deviation of the finite values; empty when there are none."""
    part = column[np.isfinite(column)].astype(np.float64)
    if not len(part):
        return []
    inner = np.quantile(part, _QUANTILES[1:-1])
    return [low, *inner, high, float(part.mean()), float(part.std())]


def _byte_statistics(counts: np.ndarray) -> list[float]:
    """The same of how often each byte came, exact to a whole number (numpy interpolates between neighbours)."""
    total, value = counts.sum(), np.arange(256)
    if not total:
        return []
    quantiles = np.searchsorted(np.cumsum(counts), np.array(_QUANTILES) * (total - 1), side="right")
    mean = (counts * value).sum() / total
    return [*quantiles.astype(float), float(mean), float(np.sqrt((counts * (value - mean) ** 2).sum() / total))]
