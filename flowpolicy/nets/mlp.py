"""Residual MLP over the flattened action chunk: the small net that trains and runs on a CPU."""

from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.embedding import TimeEmbedding
from flowpolicy.nets.norm import CompilableLayerNorm


@final
class ResidualMLP(VelocityNet):
    """[x_t | t | t - r | cond] -> Linear -> `depth` pre-norm residual blocks of `width` -> Linear -> (H, A).

    Every block sees times and condition again: at t = 1 the noise drowns them in the first layer's sum (validation
    error of one step on PickCube-v1 0.124 with, 0.132 without). Taps: early, second, mid, late = the stream after the
    first, second, middle and last block, (B, width).

    Args:
        action_dim: A, entries of an action.
        horizon: H, steps of a chunk.
        cond_dim: D, length of the condition.
        width: Of the residual stream.
        depth: Residual blocks.
        time_dim: Width of each of the two time embeddings.
        max_time_frequency: Radians per unit of flow time.

    Source: the residual MLP of Ren et al. 2024 (DPPO), which DM1 uses, with layer norm and t - r as second time (Geng
    et al. 2025, table 1c).
    """

    def __init__(
        self,
        *,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        width: int = 512,
        depth: int = 3,
        time_dim: int = 32,
        max_time_frequency: float = 3.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"ResidualMLP: depth must be at least 1 block, got {depth}")
        self.shape, self.cond_dim = (horizon, action_dim), cond_dim
        self.time = TimeEmbedding(time_dim, max_frequency=max_time_frequency)
        self.input = nn.Linear(horizon * action_dim + 2 * time_dim + cond_dim, width)
        self.blocks = nn.ModuleList(_Block(width, 2 * time_dim + cond_dim) for _ in range(depth))
        self.norm = CompilableLayerNorm(width)
        self.output = nn.Linear(width, horizon * action_dim)

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """See `VelocityNet`."""
        batch = x_t.shape[0]
        times = self.time(torch.cat([t, t - r])).unflatten(0, (2, batch))  # (2, B, time_dim)
        cond = torch.cat([times[0], times[1], cond], dim=-1)
        hidden = self.input(torch.cat([x_t.flatten(1), cond], dim=-1))  # (B, width)
        stream = []
        for block in self.blocks:
            hidden = block(hidden, cond)
            stream.append(hidden)
        features = {"early": stream[0], "second": stream[:2][-1], "mid": stream[len(stream) // 2], "late": stream[-1]}
        return self.output(self.norm(hidden)).unflatten(-1, self.shape), features


@final
class _Block(nn.Module):
    def __init__(self, width: int, cond_dim: int) -> None:
        super().__init__()
        self.norm = CompilableLayerNorm(width)
        self.first = nn.Linear(width, width)
        self.cond = nn.Linear(cond_dim, width, bias=False)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return x + self.second(nn.functional.silu(self.first(self.norm(x)) + self.cond(cond)))
