"""Shortcut head: a long jump must equal two jumps of half its length; the shortest ones are flow matching."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.path import expand, interpolate
from flowpolicy.flow.times import FlowTimes, TimeLaw
from flowpolicy.heads.base import Head, Parameterization, check_parameterization, to_velocity
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput


@final
class ShortcutHead(Head):
    """u(x_t, t, t - d) for jumps d = 1, 1/2, 1/4, ...; sample with num_steps a power of 2.

    On a share of the rows u over [t - d, t] is regressed on the mean of the two half jumps' u, a constant, with t on
    the grid of multiples of d, where sampling asks; on the others u(x_t, t, t) on noise - action.

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        parameterization: "u" or "x", p_start, time_law, time_mean, time_std, loss_power, loss_eps: as in
            `MeanFlowHead`; a jump takes the cell of its grid that a time of that law falls into. As published: time_law
            "uniform", p_start 0 and loss_power 0.
        consistency_share: 0.25 in the paper.
        halvings: d is 2^-m with m uniform in 0 ... halvings - 1; 7 gives the paper's 128 shortest jumps. The halves of
            the shortest d have d / 2 = 0 for their length: below it the field counts as straight, and nothing else
            trains it.
        p_start: Share of the times with t = 1, see `FlowTimes`.
        time_law: See `FlowTimes`.
        time_mean: See `FlowTimes`.
        time_std: See `FlowTimes`.
        loss_power: See `LossWeighting`.
        loss_eps: See `LossWeighting`.
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.

    Source: Frans et al. 2025, "One Step Diffusion via Shortcut Models", algorithm 1, where t = 1 - ours and the half
    jumps come from averaged weights; here they come from the weights themselves.
    """

    has_velocity = True
    min_batch = 2  # a jump and a row of flow matching

    def __init__(
        self,
        net: VelocityNet,
        *,
        parameterization: Parameterization = "x",
        consistency_share: float = 0.25,
        halvings: int = 7,
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
        if not 0.0 < consistency_share < 1.0 or halvings < 1:
            raise ValueError(
                f"wanted consistency_share in (0, 1) and halvings >= 1, got {consistency_share=}, {halvings=}"
            )
        self.net, self.t_min = net, t_min
        self.parameterization: Parameterization = parameterization
        self.consistency_share, self.halvings = consistency_share, halvings
        self.times = FlowTimes(time_law, time_mean, time_std, p_start)
        self.weighting = LossWeighting(loss_power, loss_eps)

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`."""
        return to_velocity(self.net(x_t, t, r, cond), x_t, t, self.parameterization, t_min=self.t_min)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_velocity and loss_consistency, the two kinds of rows."""
        batch = action.shape[0]
        self.require_batch(batch)
        noise = self.source.draw(action, cond, generator)
        num_jumps = max(1, min(batch - 1, round(batch * self.consistency_share)))  # the rows in front
        t, length = self._times(batch, num_jumps, generator)
        x_t, target = interpolate(action, noise, t)
        target = target.clone()
        target[:num_jumps] = self._two_halves(x_t[:num_jumps], t[:num_jumps], length[:num_jumps], cond[:num_jumps])
        u = self.velocity(x_t, t, t - length, cond)
        error = masked_mean_square(u.to(action.dtype) - target, mask)
        metrics = {"loss_velocity": error[num_jumps:].mean(), "loss_consistency": error[:num_jumps].mean()}
        return LossOutput(self.weighting(error), {name: value.detach() for name, value in metrics.items()})

    def _times(self, batch: int, num_jumps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B,) flow times and jump lengths; the jumps first, then rows of length 0."""
        device = generator.device
        halving = torch.randint(self.halvings, (num_jumps,), generator=generator, device=device)
        length = 0.5 ** halving.float()
        t = self.times.single(batch, generator)
        cell = (t[:num_jumps] / length).floor().clamp_max(1.0 / length - 1.0)  # 0 ... 1 / length - 1
        t = torch.cat([(cell + 1.0) * length, t[num_jumps:]])
        return t, torch.cat([length, torch.zeros(batch - num_jumps, device=device, dtype=torch.float32)])

    @torch.no_grad()
    def _two_halves(self, x_t: Tensor, t: Tensor, length: Tensor, cond: Tensor) -> Tensor:
        """Mean velocity of the two half jumps, (B, H, A); float32, so that they can differ by little."""
        with torch.autocast(x_t.device.type, enabled=False), without_tf32():
            half = length / 2.0
            asked = torch.where(length > 0.5 ** (self.halvings - 1), half, 0.0)
            first = self.velocity(x_t, t, t - asked, cond)
            x_mid, mid = x_t - expand(half, x_t) * first, t - half
            return (first + self.velocity(x_mid, mid, mid - asked, cond)) / 2.0
