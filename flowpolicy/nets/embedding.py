"""Sinusoidal embedding of flow times."""

from typing import final

import torch
from torch import Tensor, nn


@final
class TimeEmbedding(nn.Module):
    """(B,) -> (B, dim): sines and cosines at frequencies spaced geometrically between the two bounds.

    Args:
        dim: Even number of entries.
        min_frequency: Radians per unit of flow time. DP3 and MP1 feed t in [0, 1] to the transformer's embedding (max
            1, min 1e-4), whose rank over [0, 1] is about 1; far above 100 the derivative du/dt that MeanFlow trains on
            explodes.
        max_frequency: As `min_frequency`.
    """

    frequency: Tensor

    def __init__(self, dim: int, *, min_frequency: float = 1.0, max_frequency: float = 30.0) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"TimeEmbedding: dim must be an even number of at least 4, got {dim}")
        exponent = torch.linspace(0.0, 1.0, dim // 2, dtype=torch.float64)
        frequency = max_frequency * (min_frequency / max_frequency) ** exponent
        self.register_buffer("frequency", frequency.float(), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """time: (B,) in [0, 1].   Returns (B, dim).

        Args:
            time: (B,), 0 to 1.
        """
        angle = time[:, None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)
