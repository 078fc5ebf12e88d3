"""Diagonal Gaussians over chunks: the transitions whose densities reinforcement learning needs."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowpolicy.flow.path import expand

_LOG_2PI = math.log(2.0 * math.pi)


class Gaussian(NamedTuple):
    """mean: (B, H, A).

    Args:
        mean: (B, H, A).
        std: Positive, broadcasts against mean. Densities are float32 at least.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """mean + std * N(0, 1), (B, H, A).

        Args:
            generator: Where random numbers come from.
        """
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each entry of x (B, H, A): sum over what was executed for the chunk's.

        Args:
            x: (B, H, A).
        """
        mean, std = _full(self.mean), _full(self.std)
        return -0.5 * (((x - mean) / std).square() + _LOG_2PI) - std.log()

    def entropy(self) -> Tensor:
        """Differential entropy of each entry, (B, H, A)."""
        return (0.5 * (1.0 + _LOG_2PI) + _full(self.std).log()).expand(self.mean.shape)


class SdeStep(NamedTuple):
    """Euler-Maruyama from t to r: mean = w0 * action estimate + w1 * noise estimate. Each (B,).

    Args:
        w0: Weight of the action estimate.
        w1: Weight of the noise estimate.
        std: Of the noise that is added.
    """

    w0: Tensor
    w1: Tensor
    std: Tensor


def sde_step(t: Tensor, r: Tensor, *, noise_level: float) -> SdeStep:
    """Coefficients of the reverse-time SDE with the flow's marginals and diffusion sigma = a sqrt(t / (1 - t)).

    Sources: Liu et al. 2025, Flow-GRPO; Chen et al. 2025, π_RL, whose code, not whose printed equation 7 to 9, has this
    time convention.

    Args:
        t: (B,), r < t: one step of length d = t - r.
        r: As `t`.
        noise_level: a; 0.5 in π_RL. w0 = 1 - r, w1 = r - sigma^2 d / (2 t), std = sigma sqrt(d). At t = 1, where sigma
            diverges, 1 - r stands for 1 - t, so the first step's std is a for every number of steps.
    """
    length = t - r
    sigma = noise_level * (t / torch.where(t < 1.0, 1.0 - t, length)).sqrt()
    return SdeStep(1.0 - r, r - sigma.square() * length / (2.0 * t), sigma * length.sqrt())


def split(x_t: Tensor, velocity: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The action and the noise that a point and its velocity imply: x - t v and x + (1 - t) v, (B, H, A) each.

    Args:
        x_t: (B, H, A), the state at flow time t.
        velocity: Average velocity over [r, t] at x_t, as `Head.velocity`.
        t: (B,), flow time, 1 noise, 0 action.
    """
    time = expand(t, x_t)
    return x_t - time * velocity, x_t + (1.0 - time) * velocity


def score(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Gradient of the marginal's log-density, -(noise estimate) / t; velocity is the instantaneous one.

    Args:
        x_t: (B, H, A), the state at flow time t.
        velocity: Average velocity over [r, t] at x_t, as `Head.velocity`.
        t: (B,), flow time, 1 noise, 0 action.
    """
    return -split(x_t, velocity, t)[1] / expand(t, x_t)


def _full(x: Tensor) -> Tensor:
    """At least float32: ratios of densities in half precision are noise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
