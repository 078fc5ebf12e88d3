"""Flow-SDE: Gaussian steps whose marginals are those of the flow ODE (π_RL, Flow-GRPO, MixGRPO)."""

from typing import Literal, final

import torch
from torch import Tensor

from flowpolicy.exploration.base import Exploration, every_step, require_choice, require_noise
from flowpolicy.flow.gaussian import Gaussian, sde_step, split
from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.path import expand
from flowpolicy.flow.times import time_grid

Mode = Literal["hybrid", "full", "window"]


@final
class FlowSDE(Exploration):
    """Euler-Maruyama on the reverse-time SDE, from the instantaneous velocity u(x_t, t, t).

    It trains u(x, t, t). Flow matching deploys just that, in K steps. A MeanFlow head deploys u(x, t, r) instead, which
    improves only through shared weights (toy: 0.84 where flow matching has 1.00): take flow_noise there. Flow matching
    learns best here with parameterization "u": on the reach task "x" diverged at twice the learning rate. Sources: Chen
    et al. 2025 (π_RL); Liu et al. 2025 (Flow-GRPO); Li et al. 2025 (MixGRPO).

    Args:
        num_steps: K; below 4 the discretisation is poor, and at K = 1 the policy is another one (its spread is wrong by
            O(1): 0.52 where the data have 0.20).
        noise_level: a; 0.5 in π_RL.
        mode: Which of the K steps are stochastic; the others are those of the deployed policy. "hybrid": one, drawn
            anew for every sample (π_RL). A semi-gradient: what the deterministic steps contribute is in no density, so
            neither ratio nor KL sees them drift. One network evaluation per update, whatever K. "full": all. The exact
            gradient of the noisy policy. "window": `window` neighbouring steps, the same for every sample, which move
            from the noisiest to the cleanest in the course of training (MixGRPO). A semi-gradient like hybrid.
        window: See `mode`.
    """

    needs = "velocity"

    def __init__(self, *, num_steps: int = 4, noise_level: float = 0.5, mode: Mode = "hybrid", window: int = 2) -> None:
        super().__init__()
        require_choice("mode", mode, Mode)
        require_noise(noise_level)
        if not 1 <= window <= num_steps and mode == "window":
            raise ValueError(f"window must be 1 to num_steps={num_steps}, got {window}")
        time_grid(num_steps)
        self.num_steps = self.deploy_steps = num_steps
        self.noise_level, self.window = noise_level, window
        self.mode: Mode = mode
        self._first = 0

    def times(self) -> Tensor:
        """See `Exploration`."""
        return time_grid(self.num_steps)

    def pick_steps(self, batch: int, generator: torch.Generator) -> Tensor:
        """One per sample, all, or the window."""
        if self.mode == "full":
            return every_step(batch, self.num_steps, generator)
        if self.mode == "window":
            return self._first + every_step(batch, self.window, generator)
        return torch.randint(self.num_steps, (batch, 1), generator=generator, device=generator.device)

    def transition(self, velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Gaussian:
        """See `Exploration`."""
        action, noise = split(x_t, velocity(x_t, t, t, cond), t)
        step = sde_step(t, r, noise_level=self.noise_level)
        return Gaussian(expand(step.w0, x_t) * action + expand(step.w1, x_t) * noise, expand(step.std, x_t))

    def set_progress(self, progress: float) -> None:
        """Move the window."""
        places = self.num_steps - self.window + 1
        self._first = min(int(progress * places), places - 1)
