"""Consistency flow matching, FlowPolicy's head: all points of a path segment must point at the segment's same end."""

import copy
from typing import Literal, final, get_args

import torch
from torch import Tensor

from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.path import expand, interpolate
from flowpolicy.flow.times import FlowTimes, TimeLaw
from flowpolicy.heads.base import Head, Parameterization, check_parameterization, to_velocity
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput

Target = Literal["gradient", "stop_gradient", "ema"]


@final
class ConsistencyHead(Head):
    """f(x_t, t) = x_t - (t - e) v(x_t, t), e the nearer end of t's segment, must equal f(x_r, r) for r = t - delta.

    Where r reaches 0, f(x_r, r) is the action itself: those few rows tie the field to the data. The loss is the
    published one over delta^2, so that it is no smaller than that of other heads: Adam divides by sqrt(second moment) +
    1e-8, and the published one's gradients come near 1e-8. Sources: Zhang et al. 2025 (FlowPolicy); Yang et al. 2024
    (Consistency Flow Matching); times are 1 - theirs.

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        parameterization: "u" or "x", p_start, time_law, time_mean, time_std, loss_power, loss_eps: as in
            `MeanFlowHead`. The times are of t, shrunk to [0, 1 - eps], so that p_start is the share at 1 - eps, where
            sampling starts; the weighting is of the endpoint term, and that of the velocities stays a squared error. As
            published: time_law "uniform", p_start 0 and loss_power 0.
        segments: Of equal length on [0, 1]; 2 in FlowPolicy.
        delta: Distance of the two times; 0.01 there.
        eps: Training stays below t = 1 - eps, and sampling starts there; 0.01.
        velocity_weight: Of |v(x_t, t) - v(x_r, r)|^2, where both lie inside the segment; 1e-5.
        target: What becomes of f(x_r, r). "gradient": trained like f(x_t, t), as FlowPolicy's code does;
            "stop_gradient": a constant; "ema": a constant from an averaged copy of the net, as the paper writes.
        teacher_decay: Of that copy, per training step.
        p_start: Share of the times with t = 1, see `FlowTimes`.
        time_law: See `FlowTimes`.
        time_mean: See `FlowTimes`.
        time_std: See `FlowTimes`.
        loss_power: See `LossWeighting`.
        loss_eps: See `LossWeighting`.
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.
    """

    def __init__(
        self,
        net: VelocityNet,
        *,
        parameterization: Parameterization = "u",
        segments: int = 2,
        delta: float = 0.01,
        eps: float = 0.01,
        velocity_weight: float = 1e-5,
        target: Target = "gradient",
        teacher_decay: float = 0.999,
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
        if segments < 1 or not 0.0 < delta < 1.0 / segments or not 0.0 <= eps < 1.0:
            raise ValueError(
                f"wanted segments >= 1, delta in (0, 1 / segments) and eps in [0, 1), got {segments=}, {delta=}, {eps=}"
            )
        if target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")
        self.net, self.t_min = net, t_min
        self.parameterization: Parameterization = parameterization
        self.segments, self.delta, self.eps, self.velocity_weight = segments, delta, eps, velocity_weight
        self.target, self.teacher_decay = target, teacher_decay
        self.times = FlowTimes(time_law, time_mean, time_std, p_start)
        self.weighting = LossWeighting(loss_power, loss_eps)
        self.teacher = copy.deepcopy(net).requires_grad_(False) if target == "ema" else None

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`; r is ignored: a jump within a segment is straight, and one beyond it is taken to be."""
        del r
        return self._velocity(self.net, x_t, t.clamp_max(1.0 - self.eps), cond)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_endpoint over delta^2, loss_consistency (of the velocities, unweighted)."""
        noise = self.source.draw(action, cond, generator)
        t = (1.0 - self.eps) * self.times.single(action.shape[0], generator)
        r = (t - self.delta).clamp_min(0.0)
        end = ((t * self.segments).ceil() - 1.0).clamp_min(0.0) / self.segments
        x_t, _ = interpolate(action, noise, t)
        x_r, _ = interpolate(action, noise, r)
        # v at two times delta apart differs by less than what bfloat16 rounds away, and by a few roundings of TF32
        with torch.autocast(action.device.type, enabled=False), without_tf32():
            cond = cond.float()
            v_t = self._velocity(self.net, x_t, t, cond)
            v_r = self._target_velocity(x_r, r, cond)
        arrival = x_t - expand(t - end, x_t) * v_t
        wanted = torch.where(expand(r > 0.0, x_t), x_r - expand(r - end, x_t) * v_r, action)
        endpoint = masked_mean_square(arrival - wanted, mask) / self.delta**2  # (B,)
        inside = t - end > 1.01 * self.delta
        velocity = (masked_mean_square(v_t - v_r, mask) * inside).mean()
        loss = self.weighting(endpoint) + self.velocity_weight / self.delta**2 * velocity
        return LossOutput(loss, {"loss_endpoint": endpoint.mean().detach(), "loss_consistency": velocity.detach()})

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher, where there is one, towards the net."""
        del progress
        if self.teacher is not None:
            for teacher, student in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                teacher.lerp_(student, 1.0 - self.teacher_decay)

    def _velocity(self, net: VelocityNet, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return to_velocity(net(x_t, t, t, cond), x_t, t, self.parameterization, t_min=self.t_min)

    def _target_velocity(self, x_r: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        if self.target == "gradient":
            return self._velocity(self.net, x_r, r, cond)
        with torch.no_grad():
            return self._velocity(self.net if self.teacher is None else self.teacher, x_r, r, cond)
