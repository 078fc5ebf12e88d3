"""Per-dimension affine normaliser to about [-1, 1] and back; it lives in the policy's state_dict."""

import re
import warnings
from collections.abc import Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

NormalizerMode = Literal["minmax", "quantile", "meanstd"]
QUANTILES = (0.01, 0.99)  # the q01/q99 convention of openpi and LeRobot
MIN_RANGE = 1e-4  # diffusion_policy's range_eps
# What a dimension is taken to range over at the least, by the words of its unit: motion below it is noise, and
# stretched to [-1, 1] would make a centimetre beyond the demonstrations a hundred times what the policy has seen.
_FLOORS = {"m": 2e-3, "rad": 2e-3, "mm": 2.0, "cm": 0.2, "deg": 0.1, "m/s": 2e-3, "rad/s": 2e-3}
_FLOOR = 1e-3  # of other units, and of none
_PART_VALUES = 1 << 20  # numbers in 64 bits at a time
_MOST_VALUES = 1 << 26  # numbers that are kept for quantiles: 256 MiB in float32


@final
class LinearNormalizer(nn.Module):
    """forward(x) = x * scale + offset, and its inverse, over the last axis of (..., D).

    Args:
        scale: (D,), buffers; scale must not be 0.
        offset: As `scale`.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        if scale.ndim != 1 or scale.shape != offset.shape:
            raise ValueError(
                f"LinearNormalizer: wanted scale and offset (D,), got {tuple(scale.shape)} and {tuple(offset.shape)}"
            )
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    @staticmethod
    def identity(dim: int) -> "LinearNormalizer":
        """Changes nothing; also the shape to load a state_dict into.

        Args:
            dim: D.
        """
        one = torch.ones(dim, device="cpu", dtype=torch.float32)
        return LinearNormalizer(one, torch.zeros_like(one))

    @staticmethod
    def fit(
        data: Tensor | np.ndarray,
        mode: NormalizerMode = "minmax",
        *,
        key: str = "data",
        min_range: float = MIN_RANGE,
    ) -> "LinearNormalizer":
        """Fit to data (N, D) of the training split.

        Dimensions narrower than `min_range` (max - min, q99 - q01, or std) are only centred, scale 1, with a warning
        that names `key` and the dimensions: stretched to [-1, 1] they would be amplified noise.

        Args:
            data: (N, D), robot units.
            mode: "minmax" maps [min, max] to [-1, 1]; "quantile" maps [q01, q99] there; "meanstd" gives mean 0 and
                standard deviation 1.
            key: Of the observation or action, for the warning.
            min_range: Narrower dimensions are only centred.

        Raises:
            ValueError: For an unknown mode, a wrong shape, no rows, NaN or infinity.
        """
        statistics = Statistics(mode, key=key)
        statistics.add(data if isinstance(data, Tensor) else torch.from_numpy(np.asarray(data)))
        return statistics.normalizer(min_range=min_range)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) in robot units -> (..., D) normalised. Raises ValueError for another D.

        Args:
            x: (..., D), robot units.
        """
        self._check(x)
        return torch.addcmul(self.offset, x, self.scale)  # one kernel: this sits on the 1 ms latency path

    def inverse(self, x: Tensor) -> Tensor:
        """(..., D) normalised -> (..., D) in robot units. Raises ValueError for another D.

        Args:
            x: (..., D), normalised.
        """
        self._check(x)
        return (x - self.offset) / self.scale

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.scale.shape[0]:
            raise ValueError(f"LinearNormalizer: wanted (..., {self.scale.shape[0]}), got {tuple(x.shape)}")


def least_range(unit: str) -> float:
    """What a dimension of this unit is taken to range over at the least; of several units the least.

    Args:
        unit: As in a `KeySpec`, e.g. "m" or "m, rad".
    """
    words = re.findall(r"[a-z]+(?:/[a-z]+)?", unit.lower())
    return min((_FLOORS[word] for word in words if word in _FLOORS), default=_FLOOR)


def named(dims: np.ndarray, names: Sequence[str]) -> str:
    """Dimensions with their names, where they have any: [2 (goal.z), 5 (handle.x)].

    Args:
        dims: Numbers of dimensions.
        names: Of all dimensions; may be empty.
    """
    return f"[{', '.join(f'{dim} ({names[dim]})' if len(names) else str(dim) for dim in dims)}]"


@final
class Statistics:
    """Per-dimension statistics of rows (N, D) that come in parts and are never in memory together.

    Minimum and maximum are exact; mean and standard deviation are merged in 64 bits (Chan, Golub & LeVeque 1979);
    quantiles are exact up to `_MOST_VALUES` numbers, then those of every second, fourth, ... row.

    Args:
        mode: See `LinearNormalizer.fit`.
        key: As `mode`.

    Attributes:
        low: (D,) float64, after the first part.
        high: As `low`.
    """

    low: np.ndarray
    high: np.ndarray
    _mean: np.ndarray
    _squares: np.ndarray

    def __init__(self, mode: NormalizerMode, *, key: str) -> None:
        if mode not in get_args(NormalizerMode):
            raise ValueError(f"LinearNormalizer.fit: unknown mode {mode!r}; use {', '.join(get_args(NormalizerMode))}")
        self._mode, self._key = mode, key
        self._count = 0
        self._parts: list[np.ndarray] = []
        self._kept, self._every = 0, 1

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, D). Raises ValueError for another shape and for NaN or infinity.

        Args:
            rows: (n, D).
        """
        if rows.ndim != 2 or not rows.numel():
            raise ValueError(f"LinearNormalizer.fit: {self._key}: wanted (N, D) with N >= 1, got {tuple(rows.shape)}")
        for part in rows.detach().split(max(1, _PART_VALUES // rows.shape[1])):
            values = part.cpu().double().numpy()
            low, high = values.min(axis=0), values.max(axis=0)  # NaN wins in both
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise ValueError(
                    f"LinearNormalizer.fit: {self._key} holds NaN or infinity; look at it with `validate_store(STORE)`"
                )
            if self._count == 0:
                self.low, self.high = low, high
                self._mean = self._squares = np.zeros_like(low)
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
            if self._mode == "meanstd":
                self._merge(values)
            elif self._mode == "quantile":
                self._keep(part.cpu().numpy())
            self._count += len(values)

    def normalizer(
        self, *, min_range: float = MIN_RANGE, floor: float = 0.0, names: Sequence[str] = ()
    ) -> LinearNormalizer:
        """What `LinearNormalizer.fit` gives for all rows so far; the same warning.

        Args:
            min_range: See `LinearNormalizer.fit`.
            floor: Dimensions narrower than this are scaled as if they were so wide, with a warning that names them;
                those below `min_range` stay as they are.
            names: Of the dimensions, or none.

        Raises:
            ValueError: For none.
        """
        if self._count == 0:
            raise ValueError(f"LinearNormalizer.fit: {self._key}: wanted (N, D) with N >= 1, got no rows")
        center, half_range, width = self._spread()
        constant = width < min_range
        if constant.any():
            warnings.warn(
                f"LinearNormalizer: {self._key}: dimensions {named(np.flatnonzero(constant), names)} are near-constant "
                f"(range < {min_range:g}); they are centred and not scaled",
                stacklevel=3,
            )
        narrow = ~constant & (half_range < floor / 2)
        if narrow.any():
            warnings.warn(
                f"LinearNormalizer: {self._key}: dimensions {named(np.flatnonzero(narrow), names)} hardly move (range "
                f"{', '.join(f'{value:.2g}' for value in width[narrow])}); they are scaled as if they ranged over "
                f"{floor:g}, so that noise does not decide; leave the key out of `obs_keys` if it tells nothing",
                stacklevel=3,
            )
        scale = 1.0 / np.where(constant, 1.0, np.maximum(half_range, floor / 2))
        offset = -center * scale
        return LinearNormalizer(torch.from_numpy(scale).float(), torch.from_numpy(offset).float())

    @property
    def narrow(self) -> np.ndarray:
        """(D,) bool: dimensions without a range that means anything."""
        return self.high - self.low < MIN_RANGE

    def _spread(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre, what becomes 1, and the width that decides on near-constant, each (D,)."""
        if self._mode == "meanstd":
            std = np.sqrt(self._squares / self._count)
            return self._mean, std, std
        low, high = self.low, self.high
        if self._mode == "quantile":
            columns = [
                np.concatenate([part[:, dim] for part in self._parts]).astype(np.float64) for dim in range(len(low))
            ]
            low, high = np.array([np.quantile(column, QUANTILES) for column in columns]).T
        return (low + high) / 2, (high - low) / 2, high - low

    def _merge(self, values: np.ndarray) -> None:
        count, total = len(values), self._count + len(values)
        mean = values.mean(axis=0)
        apart = mean - self._mean
        self._squares = self._squares + ((values - mean) ** 2).sum(axis=0) + apart**2 * (self._count * count / total)
        self._mean = self._mean + apart * (count / total)

    def _keep(self, rows: np.ndarray) -> None:
        """Every `_every`-th row since the first; twice that when it becomes too many."""
        kept = rows[-self._count % self._every :: self._every]
        self._parts.append(kept.copy())
        self._kept += kept.size
        if self._kept > _MOST_VALUES:
            whole = np.concatenate(self._parts)[::2]
            self._parts, self._kept, self._every = [whole], whole.size, 2 * self._every
