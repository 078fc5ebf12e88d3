"""Where a flow starts: the distribution of the state at t = 1, Gaussian as a rule.

A source makes that state from standard normal numbers. So noise that a caller passes, that a prepared policy takes or
that an exported one draws stays standard normal, whatever the source, and "zero" is the middle of every one.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn


class Source(nn.Module, ABC):
    """Standard normal noise to the state that a flow starts from; training and sampling both go through it.

    Its parameters and buffers are saved with the policy.

    Attributes:
        is_gaussian: Whether the state is standard normal. Where it is not, what is derived from that density (Flow-SDE,
            Langevin steps, renoising, ancestral sampling) does not hold, and is refused.
    """

    is_gaussian: bool = False

    @abstractmethod
    def forward(self, noise: Tensor, cond: Tensor, action: Tensor | None = None) -> Tensor:
        """The state at t = 1.

        Args:
            noise: Standard normal, (B, H, A).
            cond: What the encoder made of the observations, (B, D).
            action: In training the normalised chunk that the flow is to reach, (B, H, A), for sources that pair the
                two; None in sampling.

        Returns:
            (B, H, A).
        """

    def draw(self, action: Tensor, cond: Tensor, generator: torch.Generator) -> Tensor:
        """A state at t = 1 for each of some chunks, in training.

        Args:
            action: Normalised, (B, H, A).
            cond: (B, D).
            generator: On the tensors' device.

        Returns:
            (B, H, A), of the chunks' type.
        """
        noise = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
        return self(noise, cond, action)


@final
class GaussianSource(Source):
    """The noise itself.

    Args:
        action_dim: A; plays no part here, as the others: every source is told the shapes.
        horizon: H.
        cond_dim: D.
    """

    is_gaussian = True

    def __init__(
        self, *, action_dim: int | None = None, horizon: int | None = None, cond_dim: int | None = None
    ) -> None:
        del action_dim, horizon, cond_dim
        super().__init__()

    def forward(self, noise: Tensor, cond: Tensor, action: Tensor | None = None) -> Tensor:
        """See `Source`."""
        del cond, action
        return noise
