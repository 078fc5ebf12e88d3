"""Dual-pass improved MeanFlow, UCA-Flow's objective: every row trains the average and the instantaneous velocity."""

from typing import final, get_args

import torch
from torch import Tensor

from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.meanflow import Derivative, time_derivative
from flowpolicy.flow.path import expand, interpolate
from flowpolicy.flow.times import FlowTimes, TimeLaw
from flowpolicy.heads.base import Head, Parameterization, check_parameterization, to_velocity
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput


@final
class DualMeanFlowHead(Head):
    """v = u(x_t, t, t) and u(x_t, t, r) + (t - r) stop-gradient(du/dt along v), both regressed on noise - action.

    Where MeanFlow sets r = t on a share of the rows, here all rows train both, so r = t needs no share of its own, and
    the instantaneous velocity is the direction of the derivative as in "imf" of `MeanFlowHead`. A step costs a forward
    and backward pass of twice the batch and one Jacobian product of the batch.

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        parameterization: As in `MeanFlowHead`.
        velocity_weight: Of the instantaneous term; 1 as published, where leaving it out costs 3 to 10 points.
        p_start: As `parameterization`.
        time_law: As `parameterization`.
        time_mean: As `parameterization`.
        time_std: As `parameterization`.
        loss_power: As `parameterization`.
        loss_eps: As `parameterization`.
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.
        derivative: As `parameterization`.

    Source: UCA-Flow (arXiv 2608.16153); Geng et al. 2025, "Improved Mean Flows".
    """

    has_velocity = True
    has_flow_map = True

    def __init__(
        self,
        net: VelocityNet,
        *,
        parameterization: Parameterization = "x",
        velocity_weight: float = 1.0,
        p_start: float = 0.1,
        time_law: TimeLaw = "logit_normal",
        time_mean: float = 1.0,
        time_std: float = 1.5,
        loss_power: float = 0.5,
        loss_eps: float = 1e-3,
        t_min: float = 0.05,
        derivative: Derivative = "jvp",
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        if derivative not in get_args(Derivative):
            raise ValueError(f"derivative must be 'jvp' or 'difference', got {derivative!r}")
        self.net, self.t_min = net, t_min
        self.parameterization: Parameterization = parameterization
        self.velocity_weight = velocity_weight
        self.times = FlowTimes(time_law, time_mean, time_std, p_start)
        self.weighting = LossWeighting(loss_power, loss_eps)
        self.derivative: Derivative = derivative

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`."""
        return to_velocity(self.net(x_t, t, r, cond), x_t, t, self.parameterization, t_min=self.t_min)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_meanflow (the average's) and loss_velocity (the instantaneous), unweighted."""
        noise = self.source.draw(action, cond, generator)
        t, r = (time.to(action.dtype) for time in self.times.pairs(action.shape[0], generator, p_equal=0.0))
        x_t, path_velocity = interpolate(action, noise, t)
        both = self.velocity(x_t.repeat(2, 1, 1), t.repeat(2), torch.cat([t, r]), cond.repeat(2, 1))
        instant, u = both.to(action.dtype).chunk(2)  # (B, H, A) each
        slope = time_derivative(self.velocity, x_t, t, r, cond.detach(), instant.detach(), derivative=self.derivative)
        errors = {
            "loss_meanflow": masked_mean_square(u + expand(t - r, u) * slope - path_velocity, mask),
            "loss_velocity": masked_mean_square(instant - path_velocity, mask),
        }
        average, velocity = (self.weighting(error) for error in errors.values())
        metrics = {name: error.mean().detach() for name, error in errors.items()}
        return LossOutput(average + self.velocity_weight * velocity, metrics)
