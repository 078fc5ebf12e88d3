"""The MeanFlow identity as a training residual, with the Jacobian product only where it is needed."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flowpolicy.flow.path import expand

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, H, A), t (B,), r (B,), cond (B, D)) -> average velocity over [r, t], (B, H, A)."""
Objective = Literal["meanflow", "imf"]


def time_derivative(velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor, tangent: Tensor) -> Tensor:
    """Total derivative du/dt along dx_t/dt = tangent with r held fixed: one Jacobian-vector product, no graph.

    x_t, tangent: (B, H, A).   t, r: (B,).   cond: (B, D).   Returns (B, H, A), detached.
    Runs in the dtype of its inputs with autocast off: bf16 keeps 8 significant bits, so for t - r < 0.004 the
    correction (t - r) du/dt would round away against u.
    Source: Geng et al. 2025, equation 8: du/dt = v d_x u + d_t u.
    """
    with torch.no_grad(), torch.autocast(x_t.device.type, enabled=False):
        derivative = torch.func.jvp(
            lambda x, t_, r_: velocity(x, t_, r_, cond),
            (x_t, t, r),
            (tangent, torch.ones_like(t), torch.zeros_like(r)),
        )[1]
    return derivative


def meanflow_correction(
    velocity: Velocity,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    cond: Tensor,
    path_velocity: Tensor,
    *,
    num_equal: int,
    objective: Objective = "meanflow",
) -> Tensor:
    """(t - r) du/dt, detached, (B, H, A); exactly zero in the first `num_equal` rows, where r = t.

    The training residual of both objectives is  u + (t - r) stop-gradient(du/dt) - (noise - action); they differ in
    the direction of the derivative: `meanflow` follows the sampled path velocity (Geng et al. 2025, equation 11),
    `imf` the predicted instantaneous velocity u(x_t, t, t), which depends on x_t alone and so has less variance
    (Geng et al. 2025, "Improved Mean Flows", boundary form).
    path_velocity: (B, H, A) = noise - action.   Raises ValueError for an unknown objective.
    All of it with autocast off, for the reason that `time_derivative` gives.
    """
    if objective not in ("meanflow", "imf"):
        raise ValueError(f"objective must be 'meanflow' or 'imf', got {objective!r}")
    correction = torch.zeros_like(x_t)
    if num_equal == x_t.shape[0]:
        return correction
    x_t, t, r, cond = x_t[num_equal:], t[num_equal:], r[num_equal:], cond[num_equal:]
    cond = cond.detach()
    if objective == "meanflow":
        tangent = path_velocity[num_equal:]
    else:
        with torch.no_grad(), torch.autocast(x_t.device.type, enabled=False):
            tangent = velocity(x_t, t, t, cond)
    derivative = time_derivative(velocity, x_t, t, r, cond, tangent)
    correction[num_equal:] = expand(t - r, x_t) * derivative
    return correction
