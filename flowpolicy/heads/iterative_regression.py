"""Two-step regression, MIP's and IDP's controls: answer, then answer again having seen a noisy answer."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.losses import LossWeighting, masked_mean_square
from flowpolicy.flow.path import expand
from flowpolicy.flow.precision import excess_precision
from flowpolicy.heads.base import Head
from flowpolicy.nets.base import VelocityNet
from flowpolicy.types import LossOutput

_SHORTEST = 1e-3  # of a jump, in flow time; what r = t is read as


@final
class IterativeRegressionHead(Head):
    """f(0, t = 1) and f(action + noise_level noise, t = noise_level), both regressed on the action; deterministic.

    One step gives the first answer; two steps put it in for the noisy action and give the second. As a velocity (x_t -
    answer) / (t - r), so that either jump lands on its answer. The starting noise plays no part. Sources: Pan et al.
    2025, "Much Ado About Noising" (MIP); Implicit Drifting Policy (arXiv 2606.01098).

    Args:
        net: The network that is trained, f(x_t, t, r, cond) -> (B, H, A).
        noise_level: 0.1 in both papers. The second term weighs ((1 - noise_level) / noise_level)^2 = 81 times the
            first.
        precision: IDP's weighting: an action entry counts 1 + `excess_precision` times, more where similar observations
            agree on it; with it one step is meant. False is MIP, meant for two.
        loss_power: `LossWeighting` of each of the two terms; power 0 is the published squared error.
        loss_eps: As `loss_power`.
    """

    max_steps = 2
    has_source = False

    def __init__(
        self,
        net: VelocityNet,
        *,
        noise_level: float = 0.1,
        precision: bool = False,
        loss_power: float = 0.0,
        loss_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0.0 < noise_level < 1.0:
            raise ValueError(f"noise_level must lie in (0, 1), got {noise_level}; both papers use 0.1")
        self.net, self.noise_level, self.precision = net, noise_level, precision
        self.min_batch = 3 if precision else 1
        self.weighting = LossWeighting(loss_power, loss_eps)
        self.second_weight = ((1.0 - noise_level) / noise_level) ** 2

    def velocity(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        """See `Head`; meaningful for the jumps of one or two steps from t = 1 to r = 0."""
        first = t >= 1.0
        seen = torch.where(expand(first, x_t), torch.zeros_like(x_t), x_t)
        answer = self._answer(seen, torch.where(first, torch.ones_like(t), self.noise_level), cond)
        return (x_t - answer) / expand((t - r).clamp_min(_SHORTEST), x_t)

    def loss(self, action: Tensor, cond: Tensor, mask: Tensor, generator: torch.Generator) -> LossOutput:
        """See `Head`. Metrics: loss_first and loss_second, the unweighted squared errors of the two answers."""
        batch = action.shape[0]
        self.require_batch(batch)
        noise = torch.randn(action.shape, generator=generator, device=action.device, dtype=action.dtype)
        seen = torch.cat([torch.zeros_like(action), action + self.noise_level * noise])
        ones = action.new_ones(batch)
        answers = self._answer(seen, torch.cat([ones, self.noise_level * ones]), cond.repeat(2, 1))
        errors = (answers.to(action.dtype) - action.repeat(2, 1, 1)).chunk(2)
        stretch = (1.0 + excess_precision(action, cond, mask)).sqrt() if self.precision else 1.0
        first, second = (self.weighting(masked_mean_square(error * stretch, mask)) for error in errors)
        plain = [masked_mean_square(error.detach(), mask).mean() for error in errors]
        loss = first + self.second_weight * second
        return LossOutput(loss, {"loss_first": plain[0], "loss_second": plain[1]})

    def _answer(self, seen: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.net(seen, t.to(seen.dtype), torch.zeros_like(t, dtype=seen.dtype), cond)
