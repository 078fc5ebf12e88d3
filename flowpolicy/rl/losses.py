"""What an update minimises: the clipped objective of the actor and the clipped error of the critic."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

_MAX_LOG_RATIO = 20.0  # exp of 89 overflows float32; a ratio of 5e8 is as wrong as any


class PolicyLoss(NamedTuple):
    """loss: scalar.

    Args:
        loss: Scalar.
        kl: Scalar, E[ratio - 1 - log ratio] of the density.
        clipped: Share of ratios outside the bounds.
    """

    loss: Tensor
    kl: Tensor
    clipped: Tensor


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    entries: Tensor | float = 1.0,
) -> PolicyLoss:
    """The clipped objective, negated; all (B,).

    A decision whose log ratio is beyond 20 on either side has no gradient.

    Args:
        log_prob: (B,), under the present weights.
        old_log_prob: (B,), when they were drawn.
        advantage: (T, N) or (B,), of each decision.
        clip_low: The ratio's lower bound is 1 - clip_low.
        clip_high: The ratio's upper bound is 1 + clip_high.
        entries: See `Score`, for the divergence.

    Source: Schulman et al. 2017; kl: Schulman's "k3", 2020.
    """
    log_ratio = (log_prob - old_log_prob).float()
    ratio = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = -torch.minimum(ratio * advantage, bounded * advantage).mean()
    whole = (log_ratio.detach() * entries).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return PolicyLoss(loss, (whole.exp() - 1.0 - whole).mean(), (ratio != bounded).float().mean().detach())


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, *, clip: float, huber: float) -> Tensor:
    """Mean of the larger of two errors: of the value, and of the value kept within `clip` of the old one (0: off).

    Args:
        value: (B,), under the present weights.
        old_value: (B,), when the decisions were made.
        returns: (B,).
        clip: How far a value may move; 0 is anywhere.
        huber: Huber's delta, 0 for half the squared error; all (B,).

    Source: Schulman et al.'s code; π_RL (Huber).
    """

    def error(guess: Tensor) -> Tensor:
        if huber > 0.0:
            return nn.functional.huber_loss(guess, returns, reduction="none", delta=huber)
        return 0.5 * (guess - returns).square()

    if clip == 0.0:
        return error(value).mean()
    return torch.maximum(error(value), error(old_value + (value - old_value).clamp(-clip, clip))).mean()
