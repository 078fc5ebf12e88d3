"""Per-dimension affine normaliser to about [-1, 1] and back; it lives in the policy's state_dict."""

import warnings
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

NormalizerMode = Literal["minmax", "quantile", "meanstd"]
QUANTILES = (0.01, 0.99)  # the q01/q99 convention of openpi and LeRobot


@final
class LinearNormalizer(nn.Module):
    """forward(x) = x * scale + offset, and its inverse, over the last axis of (..., D).

    scale, offset: (D,), buffers; scale must not be 0.
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
        """Changes nothing; also the shape to load a state_dict into."""
        return LinearNormalizer(torch.ones(dim), torch.zeros(dim))

    @staticmethod
    def fit(
        data: Tensor | np.ndarray,
        mode: NormalizerMode = "minmax",
        *,
        key: str = "data",
        min_range: float = 1e-4,  # diffusion_policy's range_eps
    ) -> "LinearNormalizer":
        """Fit to data (N, D) of the training split.

        mode: "minmax" maps [min, max] to [-1, 1]; "quantile" maps [q01, q99] there; "meanstd" gives mean 0 and
          standard deviation 1.
        Dimensions narrower than `min_range` (max - min, q99 - q01, or std) are only centred, scale 1, with a warning
        that names `key` and the dimensions: stretched to [-1, 1] they would be amplified noise.
        Raises ValueError for an unknown mode, a wrong shape, no rows, NaN or infinity.
        """
        values = np.asarray(data.detach().cpu() if isinstance(data, Tensor) else data, dtype=np.float64)
        if values.ndim != 2 or len(values) == 0:
            raise ValueError(f"LinearNormalizer.fit: {key}: wanted (N, D) with N >= 1, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"LinearNormalizer.fit: {key} holds NaN or infinity; run: flowpolicy data validate")
        center, half_range, width = _spread(values, mode)
        constant = width < min_range
        if constant.any():
            warnings.warn(
                f"LinearNormalizer: {key}: dimensions {np.flatnonzero(constant).tolist()} are near-constant "
                f"(range < {min_range:g}); they are centred and not scaled",
                stacklevel=2,
            )
        scale = 1.0 / np.where(constant, 1.0, half_range)
        offset = -center * scale
        return LinearNormalizer(torch.from_numpy(scale).float(), torch.from_numpy(offset).float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) in robot units -> (..., D) normalised. Raises ValueError for another D."""
        self._check(x)
        return torch.addcmul(self.offset, x, self.scale)  # one kernel: this sits on the 1 ms latency path

    def inverse(self, x: Tensor) -> Tensor:
        """(..., D) normalised -> (..., D) in robot units. Raises ValueError for another D."""
        self._check(x)
        return (x - self.offset) / self.scale

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.scale.shape[0]:
            raise ValueError(f"LinearNormalizer: wanted (..., {self.scale.shape[0]}), got {tuple(x.shape)}")


def _spread(values: np.ndarray, mode: NormalizerMode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, what becomes 1, and the width that decides on near-constant, each (D,)."""
    if mode == "meanstd":
        std = values.std(axis=0)
        return values.mean(axis=0), std, std
    if mode == "minmax":
        low, high = values.min(axis=0), values.max(axis=0)
    elif mode == "quantile":
        low, high = np.quantile(values, QUANTILES, axis=0)
    else:
        raise ValueError(f"LinearNormalizer.fit: unknown mode {mode!r}; use minmax, quantile or meanstd")
    return (low + high) / 2, (high - low) / 2, high - low
