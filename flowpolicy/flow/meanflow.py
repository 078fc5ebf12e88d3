"""The MeanFlow identity as a training residual, with the Jacobian product only where it is needed."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flowpolicy.flow.exact import without_tf32
from flowpolicy.flow.path import expand

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, H, A), t (B,), r (B,), cond (B, D)) -> average velocity over [r, t], (B, H, A)."""
Objective = Literal["meanflow", "imf"]
Derivative = Literal["jvp", "difference"]


def time_derivative(
    velocity: Velocity,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    cond: Tensor,
    tangent: Tensor,
    *,
    derivative: Derivative = "jvp",
) -> Tensor:
    """Total derivative du/dt along dx_t/dt = tangent with r held fixed, no graph.

    Runs in the dtype of its inputs, with autocast and TF32 off: bf16 keeps 8 significant bits, so for t - r < 0.004 the
    correction (t - r) du/dt would round away against u; convolutions in TF32 cost a Jacobian product 0.1 % and the
    quotient of differences up to all its digits (`without_tf32`).

    Args:
        velocity: Average velocity over [r, t] at x_t, as `Head.velocity`.
        x_t: (B, H, A).
        t: (B,).
        r: As `t`.
        cond: (B, D).
        tangent: As `x_t`.
        derivative: "jvp" is one Jacobian-vector product; "difference" two plain evaluations, see `time_difference`, for
            nets that a Jacobian product cannot go through (fused attention, sharded weights).

    Returns:
        (B, H, A), detached.

    Source: Geng et al. 2025, equation 8: du/dt = v d_x u + d_t u.
    """
    with torch.no_grad(), torch.autocast(x_t.device.type, enabled=False), without_tf32():
        if derivative == "difference":
            return time_difference(velocity, x_t, t, r, cond, tangent)
        return torch.func.jvp(
            lambda x, t_, r_: velocity(x, t_, r_, cond),
            (x_t.clone(), t.clone(), r.clone()),  # slices of the batch: under torch.compile a view takes no tangent
            (tangent.clone(), torch.ones_like(t), torch.zeros_like(r)),
        )[1]


def time_difference(
    velocity: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor, tangent: Tensor, *, step: float = 5e-3
) -> Tensor:
    """`time_derivative` as (u(x + e v, t + e) - u(x - e v, t - e)) / 2e; two evaluations, x and t moving together.

    e is `step`, in units of flow time, but neither end leaves [r, 1]: next to those the quotient is one-sided, exact
    to the first order of `step` instead of the second.
    Sources: OMP (arXiv 2512.19347), the differential derivation equation; 5e-3 is from MeanFlowNFT (arXiv 2607.15273).

    Args:
        velocity: Average velocity over [r, t] at x_t, as `Head.velocity`.
        x_t: (B, H, A), the state at flow time t.
        t: (B,), flow time, 1 noise, 0 action.
        r: (B,), flow time to go to, r <= t.
        cond: (B, D), the condition.
        tangent: (B, H, A), the direction in which x moves per unit of t.
        step: e, in units of flow time.
    """
    ahead, behind = (1.0 - t).clamp(0.0, step), (t - r).clamp(0.0, step)
    ends = [velocity(x_t + expand(shift, x_t) * tangent, t + shift, r, cond) for shift in (ahead, -behind)]
    return (ends[0] - ends[1]) / expand((ahead + behind).clamp_min(1e-9), x_t)


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
    derivative: Derivative = "jvp",
) -> Tensor:
    """(t - r) du/dt, detached, (B, H, A); exactly zero in the first `num_equal` rows, where r = t.

    The training residual of both objectives is  u + (t - r) stop-gradient(du/dt) - (noise - action); they differ in the
    direction of the derivative: `meanflow` follows the sampled path velocity (Geng et al. 2025, equation 11), `imf` the
    predicted instantaneous velocity u(x_t, t, t), which depends on x_t alone and so has less variance (Geng et al.
    2025, "Improved Mean Flows", boundary form). All of it with autocast and TF32 off, for the reason that
    `time_derivative` gives.

    Args:
        velocity: Average velocity over [r, t] at x_t, as `Head.velocity`.
        x_t: (B, H, A), the state at flow time t.
        t: (B,), flow time, 1 noise, 0 action.
        r: (B,), flow time to go to, r <= t.
        cond: (B, D), the condition.
        path_velocity: (B, H, A) = noise - action.
        num_equal: Rows at the front with r = t.
        objective: "meanflow" or "imf".
        derivative: See `time_derivative`.

    Raises:
        ValueError: For an unknown objective.
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
        with torch.no_grad(), torch.autocast(x_t.device.type, enabled=False), without_tf32():
            tangent = velocity(x_t, t, t, cond)
    slope = time_derivative(velocity, x_t, t, r, cond, tangent, derivative=derivative)
    correction[num_equal:] = expand(t - r, x_t) * slope
    return correction
