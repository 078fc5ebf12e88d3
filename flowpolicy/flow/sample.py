"""Deterministic sampling: jump from time to time with the average velocity; one jump is the one-step policy."""

from torch import Tensor

from flowpolicy.flow.meanflow import Velocity


def sample_ode(velocity: Velocity, noise: Tensor, cond: Tensor, times: Tensor) -> Tensor:
    """x <- x - (t - r) u(x, t, r) for each neighbouring pair of `times`; len(times) - 1 network evaluations.

    noise: (B, H, A), the state at times[0].   cond: (B, D).   times: (K+1,), falling, e.g. `time_grid(K)`.
    Returns the state at times[-1], (B, H, A). With a flow-matching velocity (which ignores r) this is Euler's method.
    Source: Geng et al. 2025, equation 12 (one step) and algorithm 2.
    """
    x = noise
    steps = times.tolist()
    for t, r in zip(steps[:-1], steps[1:], strict=True):
        x = x - (t - r) * velocity(x, x.new_full((x.shape[0],), t), x.new_full((x.shape[0],), r), cond)
    return x
