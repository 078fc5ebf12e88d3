"""Sampling an action from noise: jumps with the average velocity, Heun, a denoised jump, ancestral, warm starts."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.path import interpolate
from flowpolicy.flow.times import time_grid
from flowpolicy.seeding import normal

Sampler = Literal["jump", "heun", "hybrid"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


def sample_ode(velocity: Velocity, noise: Tensor, cond: Tensor, times: Tensor) -> Tensor:
    """x <- x - (t - r) u(x, t, r) for each neighbouring pair of `times`; len(times) - 1 network evaluations.

    Args:
        noise: (B, H, A), the state at times[0].
        cond: (B, D).
        times: (K+1,), falling, e.g. `time_grid(K)`.

    Returns:
        The state at times[-1], (B, H, A). With a flow-matching velocity (which ignores r) this is Euler's method.

    Source: Geng et al. 2025, equation 12 (one step) and algorithm 2.
    """
    x = noise
    steps = times.tolist()
    for t, r in zip(steps[:-1], steps[1:], strict=True):
        x = x - (t - r) * velocity(x, x.new_full((x.shape[0],), t), x.new_full((x.shape[0],), r), cond)
    return x


def sample_heun(velocity: Velocity, noise: Tensor, cond: Tensor, times: Tensor) -> Tensor:
    """Heun's method on the instantaneous velocity u(x, t, t); 2 K - 1 network evaluations for K intervals.

    Arguments as for `sample_ode`. Second order in the interval; the last interval is Euler's, because a net that
    predicts the action has no velocity at t = 0.

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 1.
    """

    def slope(x: Tensor, t: float) -> Tensor:
        time = x.new_full((x.shape[0],), t)
        return velocity(x, time, time, cond)

    x = noise
    steps = times.tolist()
    for t, r in zip(steps[:-1], steps[1:], strict=True):
        first = slope(x, t)
        ahead = x - (t - r) * first
        x = ahead if r == steps[-1] else x - (t - r) * 0.5 * (first + slope(ahead, r))
    return x


def sample_hybrid(
    velocity: Velocity, noise: Tensor, cond: Tensor, times: Tensor, *, second_noise: Tensor, tau: float = 0.15
) -> Tensor:
    """Jump to an action as `sample_ode` does, noise it again to time tau, and denoise it with u(x, tau, tau).

    One network evaluation more than `sample_ode`; the last line is the mean of the actions that x may come from.

    Args:
        second_noise: (B, H, A); fresh noise. The first `noise` again is off what training saw: with actions of standard
            deviation 0.5 and an exact u, fresh noise gives 0.47, used noise 0.60.
        tau: 0.15 to 0.2 is best in the paper.

    Raises:
        ValueError: For a tau outside [0, 1).

    Source: HybridFlow (arXiv 2602.13718), with t = 1 at the noise.
    """
    if not 0.0 <= tau < 1.0:
        raise ValueError(f"sample_hybrid: tau must lie in [0, 1), got {tau}; the paper uses 0.15")
    action = sample_ode(velocity, noise, cond, times)
    time = action.new_full((action.shape[0],), tau)
    x_tau, _ = interpolate(action, second_noise, time)
    return x_tau - tau * velocity(x_tau, time, time, cond)


AncestralStep = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, H, A), t (B,), r (B,), cond (B, D), noise (B, H, A)) -> a draw of the state at r, (B, H, A)."""


def sample_ancestral(
    step: AncestralStep, noise: Tensor, cond: Tensor, times: Tensor, *, generator: torch.Generator
) -> Tensor:
    """A draw of the next state, with fresh noise, for each neighbouring pair of `times`; for diffusion heads.

    Arguments as for `sample_ode`; K network evaluations.

    Source: Ho et al. 2020 (DDPM), algorithm 2.
    """
    x = noise
    steps = times.tolist()
    for t, r in zip(steps[:-1], steps[1:], strict=True):
        fresh = normal(x.shape, generator).to(x)
        x = step(x, x.new_full((x.shape[0],), t), x.new_full((x.shape[0],), r), cond, fresh)
    return x


def sample(
    velocity: Velocity,
    noise: Tensor,
    cond: Tensor,
    *,
    num_steps: int,
    sampler: Sampler = "jump",
    start: Tensor | None = None,
    start_time: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Action (B, H, A) from noise (B, H, A) by one of the samplers of this file that follow a velocity.

    Args:
        num_steps: Network evaluations of "jump" and "hybrid", which keeps the last for denoising; intervals of "heun".
        start: Warm start. Sampling begins at x = (1 - start_time) start + start_time noise instead of noise: an action
            that is about right saves the flow the way to it. start: (B, H, A); 0.85 is a good time (OFP).
        start_time: As `start`.
        generator: Of the second noise that "hybrid" needs; None uses `noise` again.

    Raises:
        ValueError: For an unknown sampler, "hybrid" in one step, a time outside (0, 1], a time below 1 with no start.

    Source of the warm start: One-Step Flow Policy (arXiv 2603.12480), with t = 1 at the noise.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}; 'ancestral' is the policy's")
    if not 0.0 < start_time <= 1.0 or (start is None and start_time < 1.0):
        raise ValueError(
            f"start_time must lie in (0, 1] and needs a start below 1, got {start_time} and "
            f"{'no start' if start is None else 'a start'}; pass start=(B, H, A) with start_time=0.85"
        )
    if sampler == "hybrid" and num_steps < 2:
        raise ValueError(f"sampler hybrid: wanted num_steps >= 2, of which the last denoises, got {num_steps}")
    x = noise
    if start is not None:
        x, _ = interpolate(start, noise, noise.new_full((noise.shape[0],), start_time))
    times = start_time * time_grid(num_steps - 1 if sampler == "hybrid" else num_steps)
    if sampler == "jump":
        return sample_ode(velocity, x, cond, times)
    if sampler == "heun":
        return sample_heun(velocity, x, cond, times)
    second = noise
    if generator is not None:
        second = normal(noise.shape, generator).to(noise)
    return sample_hybrid(velocity, x, cond, times, second_noise=second)


def shift_chunk(chunk: Tensor, executed: int) -> Tensor:
    """The part of a chunk (B, H, A) that is still to come, its last action repeated to fill H steps; for warm starts.

    Args:
        executed: Steps of it that are over.

    Raises:
        ValueError: Unless 0 <= executed <= H.
    """
    horizon = chunk.shape[1]
    if not 0 <= executed <= horizon:
        raise ValueError(f"shift_chunk: executed must lie in [0, {horizon}], got {executed}")
    return torch.cat([chunk[:, executed:], chunk[:, -1:].expand(-1, executed, -1)], dim=1)
