"""Flow map and Langevin: jump with the average velocity, then one Langevin step at the place of arrival."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.exploration.base import Exploration, every_step, jump, require_noise
from flowpolicy.flow.gaussian import Gaussian, score
from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.path import expand
from flowpolicy.flow.times import time_grid


@final
class Langevin(Exploration):
    """y = x_t - (t - r) u(x_t, t, r), then N(y + h/2 score(y, r), h) with h = a^2 r / (1 - r) (t - r).

    The jump is exact for an average velocity, and the Langevin step keeps the marginal at r up to O(h^2): spread 0.206
    where the data have 0.200 at K = 2, a = 0.5. The last jump, to r = 0, is deterministic and in no density (a
    semi-gradient). The score comes from u(y, r, r): the head needs its diagonal, which `ppo.bc_kind=velocity
    ppo.bc_weight=0.1 ppo.bc_final=0.1` keeps: without it one of three seeds on the reach task ended at 0.15
    (docs/lab-notes.md).

    Args:
        num_steps: K, at least 2; two network evaluations per stochastic step.
        noise_level: a.

    Source: ours, after the predictor-corrector of Song et al. 2021.
    """

    needs = "flow_map"

    def __init__(self, *, num_steps: int = 2, noise_level: float = 0.5) -> None:
        super().__init__()
        if num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, got {num_steps}: the last step is deterministic")
        require_noise(noise_level)
        self.num_steps = self.deploy_steps = num_steps
        self.noise_level = noise_level

    def times(self) -> Tensor:
        """See `Exploration`."""
        return time_grid(self.num_steps)

    def pick_steps(self, batch: int, generator: torch.Generator) -> Tensor:
        """All but the last."""
        return every_step(batch, self.num_steps - 1, generator)

    def transition(self, velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Gaussian:
        """See `Exploration`; r > 0."""
        arrived = jump(velocity, x_t, t, r, cond)
        variance = expand(self.noise_level**2 * r / (1.0 - r) * (t - r), x_t)
        direction = score(arrived, velocity(arrived, r, r, cond), r)
        return Gaussian(arrived + 0.5 * variance * direction, variance.sqrt())
