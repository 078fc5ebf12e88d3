"""OMP's addition to MeanFlow: the average velocity shall point the way that the sampled path does."""

import math
from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.flow.losses import direction_loss
from flowpolicy.spec import Described


@final
class DirectionAlignment(Described, nn.Module):
    """weight * mean of `direction_loss`(u, noise - action).

    The velocity of one sampled path is where the average velocity points on average only for r = t; for r < t the term
    is biased wherever the flow bends, and it minimises a mean direction, not the direction of a mean.

    Args:
        weight: 0.1 (the paper's is not known).
        decay: True lets the weight fall linearly to 0 over training.

    Source: OMP (arXiv 2512.19347, ICML 2026): 82.3 instead of 78.9 on Adroit and Meta-World.
    """

    progress: Tensor

    def __init__(self, *, weight: float = 0.1, decay: bool = False) -> None:
        super().__init__()
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"direction: weight must be at least 0 and finite, got {weight}")
        self.weight, self.decay = weight, decay
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, u: Tensor, path_velocity: Tensor, mask: Tensor) -> Tensor:
        """The weighted term, a scalar.

        Args:
            u: (B, H, A).
            path_velocity: As `u`.
            mask: (B, H).
        """
        weight = self.weight * (1.0 - self.progress) if self.decay else self.weight
        return weight * direction_loss(u, path_velocity, mask).mean()

    def after_step(self, progress: float) -> None:
        """Note the share of training done.

        Args:
            progress: Share of training that is done, 0 to 1.
        """
        self.progress.fill_(progress)
