"""Alpha-flow: the average velocity of an interval from that of its later part and the path of its first."""

import torch
from torch import Tensor

from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.meanflow import Velocity
from flowpolicy.flow.path import expand


def alpha_flow_target(
    velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor, path_velocity: Tensor, kappa: Tensor
) -> Tensor:
    """kappa v + (1 - kappa) u(x_m, m, r) with m = t - kappa (t - r) and x_m on the same path; (B, H, A), no graph.

    Equal to (x_t - x_r) / (t - r) for the x_r that the teacher jumps to from x_m, but with nothing to divide by.
    For actions ~ N(0, 0.5^2) a net that has converged on a constant kappa has one-step actions of standard deviation
    0.489 (kappa 0.05), 0.440 (0.25), 0 (1): kappa must end small.
    Sources: Zhang et al. 2025 (AlphaFlow); One-Step Flow Policy (arXiv 2603.12480), whose target this is.

    Args:
        velocity: a teacher's. kappa = 1 is flow matching; kappa -> 0 MeanFlow by a finite difference, without a
            Jacobian product.
        x_t: (B, H, A).
        t: (B,).
        r: As `t`.
        cond: (B, D).
        path_velocity: As `x_t`.
        kappa: As `t`.
    """
    with torch.no_grad(), torch.autocast(x_t.device.type, enabled=False), without_tf32():
        walked = kappa * (t - r)
        x_m, m = x_t - expand(walked, x_t) * path_velocity, t - walked
        share = expand(kappa, x_t)
        return share * path_velocity + (1.0 - share) * velocity(x_m, m, r, cond)
