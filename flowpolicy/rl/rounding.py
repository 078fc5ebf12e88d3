"""When numbers differ: by more than the rounding of what they were made of."""

import torch
from torch import Tensor

_SHARE = 1e-6  # of the magnitude: eight float32 units, and a float32 reward is half a unit off to begin with


def differ(values: Tensor, magnitude: Tensor) -> Tensor:
    """(...) bool, whether the last axis of `values` (..., N) spans more than float32 rounding; False for NaN.

    Args:
        values: (..., N).
        magnitude: (..., N), what was added up for each value without its sign: 1e4 - 1e4 is zero only to 1e-3.
    """
    span = values.amax(dim=-1) - values.amin(dim=-1)
    return span > _SHARE * magnitude.amax(dim=-1)


def spreads(variance: float, mean: float) -> bool:
    """The same for numbers of which only variance and mean are known; False for NaN.

    Args:
        variance: (...).
        mean: (...).
    """
    return variance > _SHARE**2 * (variance + mean**2)


def masked_sum(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Sum over `dim` where mask, which broadcasts; what lies elsewhere, NaN too, has no say.

    Args:
        values: Any shape.
        mask: Broadcasts against it.
        dim: To sum over.
    """
    return torch.where(mask, values, 0.0).sum(dim)
