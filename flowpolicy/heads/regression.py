"""Mean-squared-error regression: the control that shows what a generative head buys."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.heads.base import Head
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput


@final
class RegressionHead(Head):
    """f(cond) regressed on the action; as a "velocity" x_t - f(cond), so one step from any noise lands on f(cond).

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        loss_power: `LossWeighting`; power 0 is the mean squared error.
        loss_eps: As `loss_power`.
    """

    max_steps = 1
    has_source = False

    def __init__(self, net: VelocityNet, *, loss_power: float = 0.0, loss_eps: float = 1e-3) -> None:
        super().__init__()
        self.net = net
        self.weighting = LossWeighting(loss_power, loss_eps)

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`; meaningful only for the single step from t = 1 to r = 0."""
        del t, r
        return x_t - self._action(x_t, cond)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_action, the squared error."""
        del generator
        error = masked_mean_square(self._action(action, cond).float() - action, mask)
        return LossOutput(self.weighting(error), {"loss_action": error.mean().detach()})

    def _action(self, like: Tensor, cond: Tensor) -> Tensor:
        """The net at a constant input: zero chunk, t = 1, r = 0."""
        ones = like.new_ones(like.shape[0])
        return self.net(torch.zeros_like(like), ones, torch.zeros_like(ones), cond)
