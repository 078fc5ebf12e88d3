"""MeanFlow head: learns the average velocity, so that one network evaluation gives an action chunk."""

import warnings
from collections.abc import Callable
from typing import final, get_args

import torch
from torch import Tensor

from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.meanflow import Derivative, Objective, meanflow_correction
from flowpolicy.flow.path import interpolate
from flowpolicy.flow.times import FlowTimes, TimeLaw, least_batch, num_equal_times
from flowpolicy.heads.base import Head, Parameterization, check_parameterization, to_velocity
from flowpolicy.heads.terms.direction import DirectionAlignment
from flowpolicy.heads.terms.dispersive import DispersiveRegularizer
from flowpolicy.heads.terms.dispersive_legacy import LegacyDispersive
from flowpolicy.heads.terms.guidance import Guidance
from flowpolicy.nets.base import Features, VelocityNet
from flowpolicy.types import LossOutput


@final
class MeanFlowHead(Head):
    """u(x_t, t, r) trained on the MeanFlow identity; DM1 adds dispersion, MP1 that and guidance, OMP a direction loss.

    Sources: Geng et al. 2025 (MeanFlow); Sheng et al. 2025 (MP1); Zou et al. 2025 (DM1); OMP (arXiv 2512.19347).

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        objective: "meanflow" (Geng et al. 2025) or "imf" (boundary form of "Improved Mean Flows").
        parameterization: What the net predicts: "u" the velocity, "x" the action, u = (x_t - x) / max(t, t_min).
        p_equal: Share of pairs with r = t; 0.75 as in MeanFlow on ImageNet, 0.5 in MP1 and DM1.
        p_start: `FlowTimes`; the defaults of every head with flow times. MP1's and DM1's times (p_equal 0.5,
            logit-normal(-0.4, 1), never t = 1) leave the one step that a policy takes to extrapolation: validation
            error 0.156 instead of 0.113 (docs/lab-notes.md, flow times).
        time_law: As `p_start`.
        time_mean: As `p_start`.
        time_std: As `p_start`.
        loss_power: `LossWeighting`; 0.5 and 1e-3 in MP1, power 0 in DM1.
        loss_eps: As `loss_power`.
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.
        derivative: How du/dt is found, "jvp" or "difference", see `flow.meanflow.time_derivative`.
        dispersive: None, or which features to spread.
        direction: None, or how strongly u follows the sampled direction.
        guidance: None, or `Guidance` with all but its cond_dim filled in.
    """

    has_velocity = True
    has_flow_map = True

    def __init__(
        self,
        net: VelocityNet,
        *,
        objective: Objective = "meanflow",
        parameterization: Parameterization = "x",
        p_equal: float = 0.75,
        p_start: float = 0.1,
        time_law: TimeLaw = "logit_normal",
        time_mean: float = 1.0,
        time_std: float = 1.5,
        loss_power: float = 0.5,
        loss_eps: float = 1e-3,
        t_min: float = 0.05,
        derivative: Derivative = "jvp",
        dispersive: DispersiveRegularizer | LegacyDispersive | None = None,
        direction: DirectionAlignment | None = None,
        guidance: Callable[..., Guidance] | None = None,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        if objective not in ("meanflow", "imf"):
            raise ValueError(f"objective must be 'meanflow' or 'imf', got {objective!r}")
        if derivative not in get_args(Derivative):
            raise ValueError(f"derivative must be 'jvp' or 'difference', got {derivative!r}")
        if p_equal == 0.0 and objective == "meanflow":
            warnings.warn("p_equal=0 gives MeanFlow no instantaneous velocity to learn from (MP1: 2 %)", stacklevel=2)
        num_equal_times(1, p_equal)  # fails here, not at the first batch
        self.min_batch = max(least_batch(p_equal), 1 if dispersive is None else 2)
        self.net = net
        self.parameterization: Parameterization = parameterization
        self.objective: Objective = objective
        self.p_equal, self.t_min = p_equal, t_min
        self.times = FlowTimes(time_law, time_mean, time_std, p_start)
        self.weighting = LossWeighting(loss_power, loss_eps)
        self.derivative: Derivative = derivative
        self.dispersive, self.direction = dispersive, direction
        self.guidance = None if guidance is None else guidance(cond_dim=net.cond_dim)

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`."""
        return self._to_velocity(self.net(x_t, t, r, cond), x_t, t)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_meanflow (unweighted), loss_velocity (its r = t part), those of the parts."""
        batch = action.shape[0]
        self.require_batch(batch)
        noise = self.source.draw(action, cond, generator)
        t, r = self.times.pairs(batch, generator, p_equal=self.p_equal)
        num_equal = num_equal_times(batch, self.p_equal)
        x_t, path_velocity = interpolate(action, noise, t)
        net_cond, wanted = cond, path_velocity
        if self.guidance is not None:
            net_cond, wanted = self.guidance(self.velocity, x_t, t, cond, path_velocity, generator)

        u, features = self._velocity_and_features(x_t, t, r, net_cond)
        correction = meanflow_correction(
            self.velocity,
            x_t,
            t,
            r,
            net_cond,
            wanted,
            num_equal=num_equal,
            objective=self.objective,
            derivative=self.derivative,
        )
        error = masked_mean_square(u.to(action.dtype) + correction - wanted, mask)  # (B,)
        loss = self.weighting(error)
        metrics = {"loss_meanflow": error.mean().detach()}
        if num_equal:
            metrics["loss_velocity"] = error[:num_equal].mean().detach()
        if self.dispersive is not None:
            spread = self.dispersive(features, cond)
            loss = loss + self.dispersive.weight * spread
            metrics["loss_dispersive"] = spread.detach()
        if self.direction is not None:
            aligned = self.direction(u.to(action.dtype), path_velocity, mask)
            loss = loss + aligned
            metrics["loss_direction"] = aligned.detach()
        return LossOutput(loss, metrics)

    def after_step(self, progress: float) -> None:
        """See `Head`; the direction loss may fade."""
        if self.direction is not None:
            self.direction.after_step(progress)

    def _to_velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return to_velocity(output, x_t, t, self.parameterization, t_min=self.t_min)

    def _velocity_and_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        output, features = self.net.forward_with_features(x_t, t, r, cond)
        return self._to_velocity(output, x_t, t), features
