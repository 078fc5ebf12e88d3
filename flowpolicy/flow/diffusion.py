"""Denoising diffusion: the cosine noise schedule, the state at a noise level, and the ancestral step to a lower one."""

import math

import torch
from torch import Tensor

from flowpolicy.flow.path import expand

_LARGEST_BETA = 0.999  # keeps the last level from being pure noise exactly, where 1 / sqrt(signal) has no limit


def cosine_signal(train_steps: int) -> Tensor:
    """(T+1,) share of the action's variance left at each noise level: 1 at level 0, almost 0 at level T.

    Level k is diffusers' time step k - 1 of the schedule "squaredcos_cap_v2".

    Args:
        train_steps: T, noise levels.

    Source: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", equation 17.
    """
    if train_steps < 1:
        raise ValueError(f"cosine_signal: wanted at least 1 noise level, got {train_steps}")
    share = [math.cos((k / train_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(train_steps + 1)]
    kept = [max(after / before, 1.0 - _LARGEST_BETA) for before, after in zip(share[:-1], share[1:], strict=True)]
    return torch.tensor([1.0, *kept], dtype=torch.float64, device="cpu").cumprod(dim=0).float()


def add_noise(action: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """sqrt(signal) action + sqrt(1 - signal) noise.

    Also the state at the next level in DDIM, of the action and the noise that the present one was split into.

    Args:
        action: (B, H, A).
        noise: As `action`.
        signal: (B,) in (0, 1].

    Source of the latter: Song et al. 2021, "Denoising Diffusion Implicit Models", equation 12 with sigma = 0.
    """
    signal = expand(signal, action)
    return signal.sqrt() * action + (1.0 - signal).sqrt() * noise


def ancestral_step(x: Tensor, action: Tensor, noise: Tensor, signal: Tensor, next_signal: Tensor) -> Tensor:
    """A draw from q(x_next | x, action), the Gaussian posterior of the forward process; (B, H, A).

    With a = signal / next_signal the mean is (sqrt(next_signal) (1 - a) action + sqrt(a) (1 - next_signal) x) / (1 -
    signal) and the variance (1 - a) (1 - next_signal) / (1 - signal): none at the last level, where next_signal is 1.
    Between neighbouring levels that is DDPM's smaller variance ("fixed_small").

    Args:
        x: The state at the present level.
        action: What the net makes of it, inside the range of actions.
        noise: Fresh, N(0, 1).
        signal: (B,), `cosine_signal` at both levels, next_signal >= signal.
        next_signal: As `signal`.

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equations 6 and 7, for levels further apart.
    """
    signal, next_signal = expand(signal, x), expand(next_signal, x)
    kept = signal / next_signal
    mean = next_signal.sqrt() * (1.0 - kept) * action + kept.sqrt() * (1.0 - next_signal) * x
    variance = (1.0 - kept) * (1.0 - next_signal) / (1.0 - signal)
    return mean / (1.0 - signal) + variance.sqrt() * noise
