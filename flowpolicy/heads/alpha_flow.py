"""Alpha-flow head with an averaged teacher, One-Step Flow Policy's: one step without any derivative of the net."""

import copy
import math
from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.flow.alpha_flow import alpha_flow_target
from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.path import expand, interpolate
from flowpolicy.flow.times import FlowTimes, TimeLaw
from flowpolicy.heads.base import Head, Parameterization, check_parameterization, to_velocity
from flowpolicy.nets.base import VelocityNet
from flowpolicy.seeding import uniform
from flowpolicy.types import LossOutput


@final
class AlphaFlowHead(Head):
    """Flow matching on every row; on a share of them u(x_t, t, r) also follows `alpha_flow_target` of a teacher.

    loss = |u(x_t, t, t) - v|^2 + consistency_weight |u(x_t, t, r) - target|^2 + guidance_weight L_guidance

    kappa is uniform on [0, rho], and rho falls as (1 - progress)^2 to kappa_end, where it must stay for a while: with
    kappa up to 1 until the end, Gaussian actions come out half as wide as they are, with 0.05 they lose 1.4 %. Sources:
    One-Step Flow Policy (arXiv 2603.12480); its weights, shares and decay are not in the text, these are ours.

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        parameterization: What the net predicts, "u" the velocity, "x" the action.
        consistency_share: Of the rows.
        consistency_weight: Of the second term.
        kappa_end: Where kappa's upper end stops.
        teacher_decay: Of the averaged copy of the net, per training step. It sees the student's condition, detached.
            What the path teaches reaches the target at a rate of kappa for each teacher's lifetime, 1 / (1 -
            teacher_decay) steps: after 800 of them one step is 0.13 away with 0.9, 1.0 with 0.99 (docs/lab-notes.md).
        guidance_weight: Of |y - stop-gradient(y + g)|^2 for the one-step answer y = u(x_t, t, 0), whose action is
            noised again to a time t' where g = teacher(condition) - teacher(null); pushes actions towards what tells
            this condition from the others. 0 is no null condition and no further cost; else it must be small, for it
            never stops pushing.
        cond_dropout: Share of the rows trained on the null condition, where there is guidance.
        p_start: As in `MeanFlowHead`.
        time_law: As `p_start`.
        time_mean: As `p_start`.
        time_std: As `p_start`.
        loss_power: As `p_start`.
        loss_eps: As `p_start`.
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.
    """

    has_velocity = True
    has_flow_map = True
    progress: Tensor

    def __init__(
        self,
        net: VelocityNet,
        *,
        parameterization: Parameterization = "x",
        consistency_share: float = 0.5,
        consistency_weight: float = 1.0,
        kappa_end: float = 0.05,
        teacher_decay: float = 0.9,
        guidance_weight: float = 0.0,
        cond_dropout: float = 0.1,
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
        for name, value in (("consistency_share", consistency_share), ("kappa_end", kappa_end)):
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name} must lie in (0, 1], got {value}")
        if not 0.0 <= guidance_weight < math.inf or (guidance_weight and not 0.0 < cond_dropout < 1.0):
            raise ValueError(
                f"wanted guidance_weight >= 0 and, where it counts, cond_dropout in (0, 1), got {guidance_weight=}, "
                f"{cond_dropout=}: without dropout nothing trains the null condition"
            )
        self.net, self.t_min = net, t_min
        self.parameterization: Parameterization = parameterization
        self.consistency_share, self.consistency_weight = consistency_share, consistency_weight
        self.kappa_end, self.teacher_decay = kappa_end, teacher_decay
        self.guidance_weight, self.cond_dropout = guidance_weight, cond_dropout
        self.times = FlowTimes(time_law, time_mean, time_std, p_start)
        self.weighting = LossWeighting(loss_power, loss_eps)
        self.teacher = copy.deepcopy(net).requires_grad_(False)
        self.null = nn.Parameter(torch.zeros(net.cond_dim)) if guidance_weight else None
        self.register_buffer("progress", torch.zeros(()))

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`."""
        return self._velocity(self.net, x_t, t, r, cond)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_velocity, loss_consistency, loss_guidance (whose value never reaches 0), kappa."""
        batch = action.shape[0]
        noise = self.source.draw(action, cond, generator)
        count = max(1, round(batch * self.consistency_share))  # the rows in front
        t = self.times.pairs(batch, generator, p_equal=0.0)[0].to(action.dtype)
        t_long, r_long = (time.to(action.dtype) for time in self.times.pairs(count, generator, p_equal=0.0))
        kappa = self._kappa_bound() * uniform((count,), generator)
        net_cond = cond if self.null is None else self._with_null(self.null, cond, generator)
        x_t, path_velocity = interpolate(action, noise, t)
        x_long, long_velocity = interpolate(action[:count], noise[:count], t_long)
        target = alpha_flow_target(
            self._teach, x_long, t_long, r_long, net_cond[:count].detach(), long_velocity, kappa.to(action.dtype)
        )
        u = self.velocity(
            torch.cat([x_t, x_long]),
            torch.cat([t, t_long]),
            torch.cat([t, r_long]),
            torch.cat([net_cond, net_cond[:count]]),
        ).to(action.dtype)
        velocity = masked_mean_square(u[:batch] - path_velocity, mask)
        consistency = masked_mean_square(u[batch:] - target, mask[:count])
        loss = self.weighting(velocity) + self.consistency_weight * self.weighting(consistency)
        metrics = {"loss_velocity": velocity.mean(), "loss_consistency": consistency.mean(), "kappa": kappa.mean()}
        if self.null is not None:
            guidance = self._guidance(self.null, x_long, t_long, cond[:count], mask[:count], generator)
            loss = loss + self.guidance_weight * guidance
            metrics["loss_guidance"] = guidance
        return LossOutput(loss, {name: value.detach() for name, value in metrics.items()})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the net and note the share of training done."""
        self.progress.fill_(progress)
        for teacher, student in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            teacher.lerp_(student, 1.0 - self.teacher_decay)

    def _kappa_bound(self) -> Tensor:
        return (1.0 - self.progress).square().clamp_min(self.kappa_end)

    def _velocity(self, net: VelocityNet, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return to_velocity(net(x_t, t, r, cond), x_t, t, self.parameterization, t_min=self.t_min)

    def _teach(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        return self._velocity(self.teacher, x_t, t, r, cond)

    def _with_null(self, null: Tensor, cond: Tensor, generator: torch.Generator) -> Tensor:
        dropped = uniform(cond.shape[:1], generator) < self.cond_dropout
        return torch.where(dropped[:, None], null.to(cond.dtype), cond)

    def _guidance(
        self, null: Tensor, x_t: Tensor, t: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator
    ) -> Tensor:
        """|y - stop-gradient(y + g)|^2: its value is |g|^2, its gradient moves y along g."""
        y = self.velocity(x_t, t, torch.zeros_like(t), cond).to(x_t.dtype)
        with torch.no_grad(), torch.autocast(x_t.device.type, enabled=False), without_tf32():
            answer = x_t - expand(t, x_t) * y
            noise = self.source.draw(answer, cond, generator)
            time = self.times.draw(t.shape, generator).to(t.dtype)
            x_again, _ = interpolate(answer, noise, time)
            nothing = null.to(cond.dtype).expand_as(cond)
            push = self._teach(x_again, time, time, cond) - self._teach(x_again, time, time, nothing)
        return masked_mean_square(y - (y.detach() + push), mask).mean()
