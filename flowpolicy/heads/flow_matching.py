"""Flow-matching head: learns the instantaneous velocity; needs several steps where actions are multimodal."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.losses import adaptive_weight, masked_mean_square
from flowpolicy.flow.path import interpolate
from flowpolicy.flow.times import logit_normal
from flowpolicy.heads.base import Head, Parameterization, check_parameterization, to_velocity
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput


@final
class FlowMatchingHead(Head):
    """v(x_t, t) regressed on noise - action; sampling with K jumps is Euler's method with K steps.

    parameterization: "u" or "x", as in `MeanFlowHead`.   time_mean, time_std: logit-normal of t.
    loss_power 0 is the plain squared error of the paper.
    Source: Lipman et al. 2023, "Flow Matching for Generative Modeling"; Liu et al. 2023 (rectified flow).
    """

    has_velocity = True

    def __init__(
        self,
        net: VelocityNet,
        *,
        parameterization: Parameterization = "x",
        time_mean: float = -0.4,
        time_std: float = 1.0,
        loss_power: float = 0.0,
        loss_eps: float = 1e-3,
        t_min: float = 0.05,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        self.net, self.t_min = net, t_min
        self.parameterization: Parameterization = parameterization
        self.time_mean, self.time_std = time_mean, time_std
        self.loss_power, self.loss_eps = loss_power, loss_eps

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`; r is ignored."""
        del r
        return to_velocity(self.net(x_t, t, t, cond), x_t, t, self.parameterization, t_min=self.t_min)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_velocity, the unweighted squared error."""
        noise = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
        t = logit_normal((action.shape[0],), mean=self.time_mean, std=self.time_std, generator=generator)
        x_t, path_velocity = interpolate(action, noise, t)
        error = masked_mean_square(self.velocity(x_t, t, t, cond).float() - path_velocity, mask)
        loss = adaptive_weight(error, power=self.loss_power, eps=self.loss_eps).mean()
        return LossOutput(loss, {"loss_velocity": error.mean().detach()})
