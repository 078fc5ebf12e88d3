"""Flow-matching head: learns the instantaneous velocity; needs several steps where actions are multimodal."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.path import interpolate
from flowpolicy.flow.times import FlowTimes, TimeLaw
from flowpolicy.heads.base import Head, Parameterization, check_parameterization, to_velocity
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput


@final
class FlowMatchingHead(Head):
    """v(x_t, t) regressed on noise - action; sampling with K jumps is Euler's method with K steps.

    The papers' are uniform times, never t = 1, and loss_power 0, the plain squared error.

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        parameterization: "u" or "x", p_start, time_law, time_mean, time_std, loss_power, loss_eps: as in
            `MeanFlowHead`.
        p_start: Share of the times with t = 1, see `FlowTimes`.
        time_law: See `FlowTimes`.
        time_mean: See `FlowTimes`.
        time_std: See `FlowTimes`.
        loss_power: See `LossWeighting`.
        loss_eps: See `LossWeighting`.
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.

    Source: Lipman et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023 (rectified flow).
    """

    has_velocity = True

    def __init__(
        self,
        net: VelocityNet,
        *,
        parameterization: Parameterization = "x",
        p_start: float = 0.1,
        time_law: TimeLaw = "logit_normal",
        time_mean: float = 1.0,
        time_std: float = 1.5,
        loss_power: float = 0.5,
        loss_eps: float = 1e-3,
        t_min: float = 0.05,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        self.net, self.t_min = net, t_min
        self.parameterization: Parameterization = parameterization
        self.times = FlowTimes(time_law, time_mean, time_std, p_start)
        self.weighting = LossWeighting(loss_power, loss_eps)

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`; r is ignored."""
        del r
        return to_velocity(self.net(x_t, t, t, cond), x_t, t, self.parameterization, t_min=self.t_min)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_velocity, the unweighted squared error."""
        noise = self.source.draw(action, cond, generator)
        t = self.times.single(action.shape[0], generator)
        x_t, path_velocity = interpolate(action, noise, t)
        error = masked_mean_square(self.velocity(x_t, t, t, cond).float() - path_velocity, mask)
        return LossOutput(self.weighting(error), {"loss_velocity": error.mean().detach()})
