"""Distributions whose velocity and flow map are known in closed form: a Gaussian and a mixture in the plane."""

import math

import torch
from torch import Tensor

MEAN, STD = 0.5, 0.2
CENTRES = torch.tensor([[1.0, 0.6], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = 0.15


def spread_at(t: Tensor) -> Tensor:
    """Standard deviation of the Gaussian's marginal at t."""
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def gaussian_velocity(x: Tensor, t: Tensor, r: Tensor, cond: Tensor | None = None) -> Tensor:
    """Exact average velocity over [r, t] of the flow to N(MEAN, STD^2), the same for every entry."""
    t, r = (time.reshape(-1, 1, 1) for time in (t, r))
    centred = x - (1 - t) * MEAN
    instant = -MEAN + (t - (1 - t) * STD**2) / spread_at(t) ** 2 * centred
    landed = (1 - r) * MEAN + spread_at(r) / spread_at(t) * centred
    gap = torch.where(t > r, t - r, torch.ones_like(t))
    return torch.where(t > r, (x - landed) / gap, instant)


def mixture_velocity(x: Tensor, t: Tensor, r: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
    """Exact instantaneous velocity E[noise - action | x] of the flow to the mixture. x: (B, 1, 2)."""
    t = t.reshape(-1, 1, 1)
    variance = (1 - t) ** 2 * SPREAD**2 + t**2  # (B, 1, 1)
    offset = x - (1 - t) * CENTRES  # (B, 3, 2)
    weight = (WEIGHTS.log() - offset.square().sum(-1) / (2 * variance[..., 0])).softmax(-1)  # (B, 3)
    # E[action | x, component] = centre + (1-t) s^2 / variance * offset
    action = (weight[..., None] * (CENTRES + (1 - t) * SPREAD**2 / variance * offset)).sum(1, keepdim=True)
    return (x - action) / t


def mixture_log_density(x: Tensor, t: Tensor) -> Tensor:
    """Log-density of the marginal at t; x: (B, 1, 2), t: (B,)."""
    t = t.reshape(-1, 1)
    variance = (1 - t) ** 2 * SPREAD**2 + t**2  # (B, 1)
    square = (x - (1 - t)[..., None] * CENTRES).square().sum(-1)  # (B, 3)
    return (WEIGHTS.log() - square / (2 * variance) - torch.log(2 * math.pi * variance)).logsumexp(-1)


def mixture_map(x: Tensor, t: Tensor, r: Tensor, cond: Tensor | None = None, *, steps: int = 100) -> Tensor:
    """Average velocity over [r, t] by integrating the exact velocity with Heun's method."""
    if torch.equal(t, r):
        return mixture_velocity(x, t)
    state = x
    for i in range(steps):
        now, after = t + (r - t) * i / steps, t + (r - t) * (i + 1) / steps
        length = (after - now).reshape(-1, 1, 1)
        slope = mixture_velocity(state, now)
        there = mixture_velocity(state + length * slope, after) if float(after.min()) > 0 else slope
        state = state + 0.5 * length * (slope + there)
    return (x - state) / (t - r).reshape(-1, 1, 1)


def mixture_samples(count: int, seed: int) -> Tensor:
    """(N, 2)."""
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    return CENTRES[component] + SPREAD * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def sliced_w2(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Sliced Wasserstein-2 distance of two equally large samples in the plane."""
    angle = torch.arange(directions, dtype=torch.float64) * math.pi / directions
    axes = torch.stack([angle.cos(), angle.sin()])  # (2, L)
    return float(((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean().sqrt())


def affine(gaussian_of, x=0.7) -> tuple[float, float, float]:
    """Slope and intercept of a transition's mean in x, and its std: `gaussian_of(x)` -> Gaussian, one entry."""

    def at(value: float) -> Tensor:
        return gaussian_of(torch.full((1, 1, 1), value, dtype=torch.float64))

    zero, one = at(0.0), at(1.0)
    assert torch.allclose(at(x).mean, zero.mean + x * (one.mean - zero.mean), atol=1e-12)
    return float(one.mean - zero.mean), float(zero.mean), float(zero.std.reshape(-1)[0])
