"""Layer and group norm whose Jacobian products torch.compile can trace: written out while it does, else fused."""

from typing import final

import torch
from torch import Tensor, nn


@final
class CompilableLayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last axis, (..., D); torch's fused one has no forward mode under torch.compile.

    Args:
        dim: D, length of the last axis.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def forward(self, input: Tensor) -> Tensor:
        """Same shape; while traced, the same dtype too.

        Args:
            input: (..., D).
        """
        if not _traced():
            return super().forward(input)
        return (_standardise(input.float(), self.eps) * self.weight + self.bias).to(input.dtype)


@final
class CompilableGroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` of (B, C, L), written out for the same reason."""

    def forward(self, input: Tensor) -> Tensor:
        """Same shape; while traced, the same dtype too.

        Args:
            input: (B, C, ...).
        """
        if not _traced():
            return super().forward(input)
        grouped = _standardise(input.float().unflatten(1, (self.num_groups, -1)).flatten(2), self.eps)
        return (grouped.view_as(input) * self.weight[:, None] + self.bias[:, None]).to(input.dtype)


def _traced() -> bool:
    """Whether torch.compile is tracing; an export keeps the fused norms, which runtimes know."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def _standardise(x: Tensor, eps: float) -> Tensor:
    x = x - x.mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
