"""Renoise: one jump to an action, noise it to time r, jump again; both points keep the flow's own law."""

from typing import final

import torch
from torch import Tensor

from flowpolicy.exploration.base import Exploration, every_step, jump
from flowpolicy.flow.gaussian import Gaussian
from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.path import expand


@final
class Renoise(Exploration):
    """x_r ~ N((1 - r) a, r^2) around the one-step action a = x_1 - u(x_1, 1, 0), then the action x_r - r u(x_r, r, 0).

    With an exact flow map a follows the policy's law, so x_r the marginal at r, and the action the policy's law again:
    exploration stays on the actions that the policy knows. The gradient goes through the deployed one-step map; the
    second jump is in no density (a semi-gradient), and needs u trained for every (r, 0): MeanFlow, not a net distilled
    at (1, 0) alone, nor flow matching, whose jump is the mean over all actions. It also wants a net that predicts the
    velocity (`parameterization="u"`), whose second jump moves x_r; with "x" that jump is the net's output itself, and
    nothing ties it to the first: compare `eval/success_once` with `env/success_once`. With "u" the deployed jump rose
    from 0.52 to 0.86 on push-v3 and fell from 0.50 to 0.23 on pick-place-v3 (docs/lab-notes.md).

    Args:
        time: r; towards 0 local noise, towards 1 a fresh draw.

    Source: multistep sampling of Song et al. 2023 (Consistency Models), read as a policy; ours.
    """

    needs = "flow_map"

    def __init__(self, *, time: float = 0.3) -> None:
        super().__init__()
        if not 0.0 < time < 1.0:
            raise ValueError(f"time must lie between 0 (the action) and 1 (noise), got {time}")
        self.time, self.num_steps, self.deploy_steps = time, 2, 1

    def times(self) -> Tensor:
        """1, r, 0."""
        return torch.tensor([1.0, self.time, 0.0], dtype=torch.float64, device="cpu")

    def pick_steps(self, batch: int, generator: torch.Generator) -> Tensor:
        """The first; the second jump is deterministic."""
        return every_step(batch, 1, generator)

    def transition(self, velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Gaussian:
        """See `Exploration`."""
        action = jump(velocity, x_t, t, torch.zeros_like(t), cond)
        return Gaussian((1.0 - expand(r, x_t)) * action, expand(r, x_t))
