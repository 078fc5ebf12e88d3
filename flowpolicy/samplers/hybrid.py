"""A jump to an action, and one step of denoising: HybridFlow."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.path import interpolate
from flowpolicy.heads.base import Head
from flowpolicy.samplers.base import Need, Sampler, State, times_from
from flowpolicy.samplers.jump import sample_ode
from flowpolicy.seeding import normal


@final
@dataclass(frozen=True, kw_only=True)
class Hybrid(Sampler):
    """Jump to an action in K - 1 steps, noise it again to time tau, and denoise it with u(x, tau, tau); K evaluations.

    The last line is the mean of the actions that the noised one may come from. The second noise is fresh: the first one
    again is off what training saw (with actions of standard deviation 0.5 and an exact u, fresh noise gives 0.47, used
    noise 0.60). Only a call that passes its own starting noise and no generator gets the first noise again.

    Args:
        num_steps: K, at least 2.
        tau: Flow time of the second noise, in [0, 1); 0.15 to 0.2 is best in the paper.

    Source: HybridFlow (arXiv 2602.13718), with t = 1 at the noise.
    """

    num_steps: int = 2
    tau: float = 0.15

    def __post_init__(self) -> None:
        """Raise ValueError for fewer than two steps and for a tau outside [0, 1)."""
        super().__post_init__()
        if self.num_steps < 2:
            raise ValueError(f"sampler hybrid: wanted num_steps >= 2, of which the last denoises, got {self.num_steps}")
        if not 0.0 <= self.tau < 1.0:
            raise ValueError(f"sampler hybrid: tau must lie in [0, 1), got {self.tau}; the paper uses 0.15")

    @property
    def evaluations(self) -> int:
        """K."""
        return self.num_steps

    @property
    def needs(self) -> frozenset[Need]:
        """An instantaneous velocity."""
        return frozenset({"velocity"})

    @property
    def draws(self) -> bool:
        """True: the second noise."""
        return True

    def walk(self, head: Head, state: State, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Sampler`."""
        second = state.noise
        if generator is not None:
            second = head.source(normal(second.shape, generator).to(second), cond)
        action = sample_ode(head.velocity, state.x, cond, times_from(state, self.num_steps - 1))
        time = action.new_full((action.shape[0],), self.tau)
        x_tau, _ = interpolate(action, second, time)
        return x_tau - self.tau * head.velocity(x_tau, time, time, cond)
