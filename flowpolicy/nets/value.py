"""The critic: an MLP from condition features to one value."""

from typing import final

import torch
from torch import Tensor, nn


@final
class ValueMLP(nn.Module):
    """(B, D) -> (B,): `depth` hidden layers of `width` with layer norm and SiLU; the last layer starts near zero.

    Sources: width and depth of Ren et al. 2024 (DPPO); small last layer of π_RL's code (std 0.02).

    Args:
        cond_dim: D, length of the condition.
        width: Of the hidden layers.
        depth: Hidden layers.
    """

    def __init__(self, cond_dim: int, *, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"ValueMLP: depth must be at least 1 layer, got {depth}")
        sizes = [cond_dim, *[width] * depth]
        layers = []
        for size, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(size, after), nn.LayerNorm(after), nn.SiLU()]
        last = nn.Linear(width, 1)
        nn.init.normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, cond: Tensor) -> Tensor:
        """cond: (B, D).   Returns (B,) float32.

        Args:
            cond: (B, D), the condition.
        """
        with torch.autocast(cond.device.type, enabled=False):
            return self.layers(cond.float()).squeeze(-1)
