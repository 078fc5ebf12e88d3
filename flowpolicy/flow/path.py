"""The one time convention: t = 1 is noise, t = 0 is the action, and the path between them is straight."""

from torch import Tensor


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, ..., 1) so that it broadcasts against `like` (B, ...).

    Args:
        value: (B,).
        like: (B, ...).
    """
    return value.reshape(value.shape[0], *([1] * (like.dim() - 1)))


def interpolate(action: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the straight path from the action (t = 0) to noise (t = 1), and its velocity.

    Args:
        action: (B, H, A), normalised.
        noise: As `action`.
        t: (B,) flow time in [0, 1], unitless.

    Returns:
        x_t = (1 - t) action + t noise and dx_t/dt = noise - action, both (B, H, A).

    Raises:
        ValueError: When the shapes differ or t is not one number per sample.

    Source: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", section 3 (z_t and v there).
    """
    if action.shape != noise.shape:
        raise ValueError(f"interpolate: action {tuple(action.shape)} and noise {tuple(noise.shape)} must agree")
    if t.shape != action.shape[:1]:
        raise ValueError(
            f"interpolate: t must be (B,) = {tuple(action.shape[:1])}, got {tuple(t.shape)}; "
            "pass one flow time per sample, not per action step"
        )
    velocity = noise - action
    return action + expand(t, action) * velocity, velocity


def velocity_from_action(x_t: Tensor, action: Tensor, t: Tensor, *, t_min: float) -> Tensor:
    """Average velocity over [0, t] of the path through x_t that ends at `action`: (x_t - action) / max(t, t_min).

    Used by heads whose net predicts the action itself (x-prediction, imitation of pixel MeanFlow; the identity is exact
    for a path that ends in a single action).

    Args:
        x_t: (B, H, A).
        action: As `x_t`.
        t: (B,). t_min bounds the factor 1/t, which has no limit at t = 0.
        t_min: Bounds the factor 1/t of a net that predicts the action, which has no limit at t = 0.
    """
    return (x_t - action) / expand(t.clamp_min(t_min), x_t)
