"""Jumps with the average velocity: the default of every head, one network evaluation each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.meanflow import Velocity
from flowpolicy.heads.base import Head
from flowpolicy.samplers.base import Need, Sampler, State, times_from


@final
@dataclass(frozen=True, kw_only=True)
class Jump(Sampler):
    """x <- x - (t - r) u(x, t, r) over K intervals from noise to action: MeanFlow's sampling, and one step of it.

    What a jump is, the head decides: the average velocity over [r, t] of heads with a flow map, Euler's step of
    flow matching, DDIM's of diffusion heads, the answer itself of regression.

    Args:

    Source: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", equation 12 (one step) and algorithm 2.
    """

    @property
    def evaluations(self) -> int:
        """K."""
        return self.num_steps

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing more than a head."""
        return frozenset()

    @property
    def draws(self) -> bool:
        """False."""
        return False

    def walk(self, head: Head, state: State, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Sampler`."""
        del generator
        return sample_ode(head.velocity, state.x, cond, times_from(state, self.num_steps))


def sample_ode(velocity: Velocity, noise: Tensor, cond: Tensor, times: Tensor | Sequence[float]) -> Tensor:
    """x <- x - (t - r) u(x, t, r) for each neighbouring pair of `times`; len(times) - 1 network evaluations.

    Args:
        velocity: u(x, t, r, cond), (B, H, A).
        noise: (B, H, A), the state at times[0].
        cond: (B, D).
        times: K+1 of them, falling, e.g. `time_grid(K)`.

    Returns:
        The state at times[-1], (B, H, A). With a flow-matching velocity (which ignores r) this is Euler's method.

    Source: Geng et al. 2025, equation 12 (one step) and algorithm 2.
    """
    x = noise
    steps = times.tolist() if isinstance(times, Tensor) else times
    for t, r in zip(steps[:-1], steps[1:], strict=True):
        x = x - (t - r) * velocity(x, x.new_full((x.shape[0],), t), x.new_full((x.shape[0],), r), cond)
    return x


JUMP = Jump()
"""One jump, the default everywhere."""
