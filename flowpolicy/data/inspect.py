"""Plain-text picture of a store: what is in it, how long the episodes are, how the numbers are spread."""

import numpy as np

from flowpolicy.data.store import EpisodeStore
from flowpolicy.embodiment import Embodiment

_COLUMNS = ("min", "q01", "q10", "q50", "q90", "q99", "max", "mean", "std")
_MOST_VALUES = 10_000_000  # of one column in 64 bits at a time
_QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)


def describe_store(store: EpisodeStore) -> str:
    """Text of several tables: counts, embodiment, arrays, and statistics per dimension; NaN values are left out."""
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
        lines += ["", *_statistics(key, store.load(key), _names(store.embodiment, key))]
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


def _statistics(key: str, array: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """One row per entry of a vector key; images and clouds get one row per entry of their last axis.

    Bytes are counted, which takes no copy of them. More than ten million floats: those of every n-th, and the true
    minimum and maximum.
    """
    rows = array.reshape(-1, 1) if array.ndim == 1 else array.reshape(-1, array.shape[-1])
    width = max([16, *(len(name) + 1 for name in names)])
    lines = [f"{key:<{width}}" + "".join(f"{column:>11}" for column in _COLUMNS)]
    for dim in range(rows.shape[1]):
        label = names[dim] if len(names) == rows.shape[1] else f"[{dim}]"
        values = _byte_statistics(rows[:, dim]) if rows.dtype == np.uint8 else _float_statistics(rows[:, dim])
        said = "".join(f"{value:>11.4g}" for value in values) if values else " no finite value"
        lines.append(f"  {label:<{width - 2}}{said}")
    return lines


def _float_statistics(column: np.ndarray) -> list[float]:
    """Minimum, quantiles, maximum, mean and standard deviation of the finite values; empty when there are none."""
    finite = column[np.isfinite(column)]
    if not len(finite):
        return []
    part = finite[:: len(finite) // _MOST_VALUES + 1].astype(np.float64)
    inner = np.quantile(part, _QUANTILES[1:-1])
    return [float(finite.min()), *inner, float(finite.max()), float(part.mean()), float(part.std())]


def _byte_statistics(column: np.ndarray) -> list[float]:
    """The same, exact to a whole number (numpy interpolates between neighbours)."""
    counts = np.zeros(256, np.int64)
    for part in np.array_split(column, len(column) // _MOST_VALUES + 1):
        counts += np.bincount(part, minlength=256)
    total, value = counts.sum(), np.arange(256)
    if not total:
        return []
    quantiles = np.searchsorted(np.cumsum(counts), np.array(_QUANTILES) * (total - 1), side="right")
    mean = (counts * value).sum() / total
    return [*quantiles.astype(float), float(mean), float(np.sqrt((counts * (value - mean) ** 2).sum() / total))]
