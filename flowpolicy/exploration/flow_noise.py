"""Flow-Noise: learned Gaussian noise on every step of the deterministic sampler (π_RL, ReinFlow; DBPO at K = 1)."""

import math
from typing import Literal, final

import torch
from torch import Tensor, nn

from flowpolicy.exploration.base import Exploration, every_step, jump, require_choice
from flowpolicy.flow.gaussian import Gaussian
from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.times import time_grid

StdInputs = Literal["all", "state"]
_HOLD = 0.35  # share of training before the upper bound falls, and how far it falls: ReinFlow's schedule
_FALL = 0.7


@final
class FlowNoise(Exploration):
    """x_r = x_t - (t - r) u(x_t, t, r) + std * N(0, 1), all K steps; one ratio from the joint density of the chain.

    Exact: the policy gradient is that of the noisy policy, for every K, and at K = 1 it goes straight through the
    one-step map that is deployed. The noise widens the marginals by design: this samples no flow's own law. Condition
    features reach the noise net detached: noise does not shape the encoder. Sources: Zhang et al. 2025 (ReinFlow); Chen
    et al. 2025 (π_RL).

    Args:
        action_dim: A, entries of an action.
        horizon: H, steps of a chunk.
        cond_dim: D, length of the condition.
        num_steps: Network evaluations per chunk.
        std_min: Bounds of the standard deviation, in normalised action units (the demonstrated range is 2 wide); equal
            bounds make a constant without parameters. π_RL: 0.08 to 0.16; on the toy task wide bounds learn fastest.
        std_max: As `std_min`.
        std_inputs: What the standard deviation depends on: "all" (x_t, t, cond), or "state" (cond alone, as in DBPO).
        hidden: Width of the noise net.
        decay: Let std_max fall by a cosine after 35 % of training, to 0.3 std_min + 0.7 std_max (ReinFlow).
    """

    needs = "jumps"

    def __init__(
        self,
        *,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        num_steps: int = 1,
        std_min: float = 0.08,
        std_max: float = 0.16,
        std_inputs: StdInputs = "all",
        hidden: int = 64,
        decay: bool = False,
    ) -> None:
        super().__init__()
        require_choice("std_inputs", std_inputs, StdInputs)
        if not 0.0 < std_min <= std_max < math.inf:
            raise ValueError(f"wanted 0 < std_min <= std_max, both finite, got {std_min=}, {std_max=}")
        time_grid(num_steps)
        self.num_steps = self.deploy_steps = num_steps
        self.std_min, self.std_max, self.std_inputs, self.decay = std_min, std_max, std_inputs, decay
        self.shape = (horizon, action_dim)
        self._log_bounds = math.log(std_min), math.log(std_max)
        size = horizon * action_dim
        self.net = None
        if std_min < std_max:
            inputs = cond_dim + (size + 1 if std_inputs == "all" else 0)
            last = nn.Linear(hidden, size)
            nn.init.zeros_(last.weight)  # starts at the bounds' geometric mean
            nn.init.zeros_(last.bias)
            self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), last)

    def times(self) -> Tensor:
        """See `Exploration`."""
        return time_grid(self.num_steps)

    def pick_steps(self, batch: int, generator: torch.Generator) -> Tensor:
        """All of them."""
        return every_step(batch, self.num_steps, generator)

    def transition(self, velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Gaussian:
        """See `Exploration`."""
        return Gaussian(jump(velocity, x_t, t, r, cond), self.std(x_t, t, cond))

    def std(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """(B, H, A), inside the bounds: tanh of the net's output, linear in the log-variance.

        Args:
            x_t: (B, H, A), the state at flow time t.
            t: (B,), flow time, 1 noise, 0 action.
            cond: (B, D), the condition.
        """
        if self.net is None:
            return torch.full_like(x_t, self.std_min)
        seen = cond.detach()
        if self.std_inputs == "all":
            seen = torch.cat([x_t.detach().flatten(1), t[:, None], seen], dim=-1)
        return self.bound(self.net(seen)).unflatten(-1, self.shape)

    def bound(self, raw: Tensor) -> Tensor:
        """Any number to a standard deviation inside the bounds; the slope is positive everywhere.

        Args:
            raw: The noise net's output.
        """
        low, high = self._log_bounds
        return (low + 0.5 * (high - low) * (torch.tanh(raw) + 1.0)).exp()

    def set_progress(self, progress: float) -> None:
        """Lower the upper bound, where `decay` is on."""
        if self.decay:
            turn = min(1.0, max(0.0, progress - _HOLD) / (1.0 - _HOLD))
            share = _FALL + (1.0 - _FALL) * 0.5 * (1.0 + math.cos(math.pi * turn))
            high = self.std_min + share * (self.std_max - self.std_min)
            self._log_bounds = math.log(self.std_min), math.log(high)
