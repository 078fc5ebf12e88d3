"""Heun's method on the instantaneous velocity: second order, for heads that are asked for several steps."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowpolicy.heads.base import Head
from flowpolicy.samplers.base import Need, Sampler, State, times_from


@final
@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """x <- x - (t - r) (v(x, t) + v(x', r)) / 2 with x' = x - (t - r) v(x, t), over K intervals; v(x, t) = u(x, t, t).

    2 K - 1 network evaluations: the last interval is Euler's, because a net that predicts the action has no velocity
    at t = 0. Second order in the length of an interval.

    Args:

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 1.
    """

    @property
    def evaluations(self) -> int:
        """2 K - 1."""
        return 2 * self.num_steps - 1

    @property
    def needs(self) -> frozenset[Need]:
        """An instantaneous velocity."""
        return frozenset({"velocity"})

    @property
    def draws(self) -> bool:
        """False."""
        return False

    def walk(self, head: Head, state: State, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Sampler`."""
        del generator

        def slope(x: Tensor, t: float) -> Tensor:
            time = x.new_full((x.shape[0],), t)
            return head.velocity(x, time, time, cond)

        x, steps = state.x, times_from(state, self.num_steps)
        for i, (t, r) in enumerate(zip(steps[:-1], steps[1:], strict=True), start=1):
            first = slope(x, t)
            ahead = x - (t - r) * first
            # counted, not r == 0: an exported graph cannot decide on a time
            x = ahead if i == self.num_steps else x - (t - r) * 0.5 * (first + slope(ahead, r))
        return x
