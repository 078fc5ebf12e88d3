"""DDPM's own sampling: a draw of the next state, with fresh noise, at every step; for diffusion heads."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowpolicy.heads.base import Head
from flowpolicy.samplers.base import Need, Sampler, State, times_from
from flowpolicy.seeding import normal


@final
@dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
    """x_r ~ q(x_r | x_t, action the net makes of x_t) for each of K steps down the noise levels; K evaluations.

    Args:

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", algorithm 2.
    """

    @property
    def evaluations(self) -> int:
        """K."""
        return self.num_steps

    @property
    def needs(self) -> frozenset[Need]:
        """Noise levels, and normal noise at the first one."""
        return frozenset({"noise_levels", "gaussian_source"})

    @property
    def draws(self) -> bool:
        """True: noise at every step."""
        return True

    def walk(self, head: Head, state: State, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Sampler`. Raises ValueError without a generator."""
        if generator is None:
            raise ValueError("sampler ancestral draws noise at every step: pass generator=")
        x, steps = state.x, times_from(state, self.num_steps)
        for t, r in zip(steps[:-1], steps[1:], strict=True):
            fresh = normal(x.shape, generator).to(x)
            x = head.ancestral_step(x, x.new_full((x.shape[0],), t), x.new_full((x.shape[0],), r), cond, fresh)
        return x
