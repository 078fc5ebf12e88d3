"""FiLM-conditioned 1-D U-Net over the action chunk, the net of Diffusion Policy, DP3 and MP1, any size."""

from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.nets.embedding import TimeEmbedding
from flowpolicy.nets.norm import CompilableGroupNorm


@final
class UNet1D(VelocityNet):
    """Two residual FiLM blocks per level, stride-2 down, transposed up, skips; convolutions run along the chunk.

    Taps: early = first down level, mid = bottleneck, late = last up level; (B, C, length).

    Args:
        action_dim: A, entries of an action.
        horizon: H, steps of a chunk.
        cond_dim: D, length of the condition.
        dims: Channels per level; (512, 1024, 2048) is MP1's, (128, 256, 384) SimpleDP3's.
        time_dim: Width of each time embedding; the embeddings of t and of the second time are added.
        second_time: "r" as in MP1, or "t-r" as in Geng et al. 2025, table 1c.
        min_time_frequency: MP1 feeds unscaled times to the transformer's embedding: 1e-4 and 1. kernel_size 5 and 8
            groups are Diffusion Policy's.
        max_time_frequency: As `min_time_frequency`.
        kernel_size: Of the convolutions along the chunk.
        groups: Of the group norms.

    Raises:
        ValueError: For fewer than 2 levels, a horizon not divisible by 2^(levels - 1) or a width not by the groups.

    Source: Chi et al. 2023 (Diffusion Policy), Janner et al. 2022; FiLM is scale * h + bias as there.
    """

    def __init__(
        self,
        *,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        dims: Sequence[int] = (128, 256, 384),
        time_dim: int = 128,
        second_time: Literal["r", "t-r"] = "t-r",
        min_time_frequency: float = 1.0,
        max_time_frequency: float = 3.0,
        kernel_size: int = 5,
        groups: int = 8,
    ) -> None:
        super().__init__()
        if len(dims) < 2:
            raise ValueError(f"UNet1D: dims must name at least 2 levels, got {list(dims)}; or use `ResidualMLP`")
        factor = 2 ** (len(dims) - 1)
        if horizon % factor:
            raise ValueError(f"UNet1D: horizon must be divisible by {factor} ({len(dims)} levels), got {horizon}")
        if any(dim % groups for dim in dims):
            raise ValueError(f"UNet1D: every width must be divisible by groups={groups}, got {tuple(dims)}")
        if second_time not in ("r", "t-r"):
            raise ValueError(f"UNet1D: second_time must be 'r' or 't-r', got {second_time!r}")
        self.second_time, self.cond_dim, self.shape = second_time, cond_dim, (horizon, action_dim)
        self.embedding = TimeEmbedding(time_dim, min_frequency=min_time_frequency, max_frequency=max_time_frequency)
        self.first_time, self.other_time = _time_mlp(time_dim), _time_mlp(time_dim)

        def block(inputs: int, outputs: int) -> _FilmBlock:
            return _FilmBlock(inputs, outputs, cond_dim + time_dim, kernel_size=kernel_size, groups=groups)

        pairs = list(zip([action_dim, *dims[:-1]], dims, strict=True))
        self.down = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairs):
            shrink = nn.Conv1d(outputs, outputs, 3, 2, 1) if level < len(dims) - 1 else nn.Identity()
            self.down.append(nn.ModuleList([block(inputs, outputs), block(outputs, outputs), shrink]))
        self.mid = nn.ModuleList([block(dims[-1], dims[-1]), block(dims[-1], dims[-1])])
        self.up = nn.ModuleList()
        for inputs, outputs in reversed(pairs[1:]):
            grow = nn.ConvTranspose1d(inputs, inputs, 4, 2, 1)
            self.up.append(nn.ModuleList([block(2 * outputs, inputs), block(inputs, inputs), grow]))
        self.final = nn.Sequential(
            _conv_block(dims[0], dims[0], kernel_size, groups), nn.Conv1d(dims[0], action_dim, 1)
        )

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """See `VelocityNet`."""
        other = r if self.second_time == "r" else t - r
        time = self.first_time(self.embedding(t)) + self.other_time(self.embedding(other))
        cond = torch.cat([time, cond], dim=-1)  # (B, time_dim + D)
        x = x_t.transpose(1, 2)  # (B, A, H): channels first
        skips, features = [], {}
        for level in self.down:
            first, second, shrink = level.children()
            x = second(first(x, cond), cond)
            skips.append(x)
            x = shrink(x)
        features["early"], features["second"] = skips[0], skips[:2][-1]
        for block in self.mid:
            x = block(x, cond)
        features["mid"] = x
        for level in self.up:
            first, second, grow = level.children()
            x = torch.cat([x, skips.pop()], dim=1)
            x = second(first(x, cond), cond)
            features["late"] = x
            x = grow(x)
        return self.final(x).transpose(1, 2), features


@final
class _FilmBlock(nn.Module):
    """Conv-norm-Mish, FiLM from the condition, Conv-norm-Mish, residual."""

    def __init__(self, inputs: int, outputs: int, cond_dim: int, *, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.first = _conv_block(inputs, outputs, kernel_size, groups)
        self.second = _conv_block(outputs, outputs, kernel_size, groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, bias = self.film(cond)[:, :, None].chunk(2, dim=1)  # (B, C, 1) each
        return self.second(self.first(x) * scale + bias) + self.skip(x)


def _conv_block(inputs: int, outputs: int, kernel_size: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, kernel_size, padding=kernel_size // 2),
        CompilableGroupNorm(groups, outputs),
        nn.Mish(),
    )


def _time_mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
