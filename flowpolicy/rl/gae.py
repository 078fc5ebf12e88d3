"""Generalised advantage estimation over chunk decisions, with true successors and discounts of their own."""

from typing import Literal

import torch
from torch import Tensor

Discount = Literal["per_chunk", "per_substep"]


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, *, discount: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (advantage + value), (T, N) each.

    Args:
        reward: (T, N).
        value: As `reward`.
        next_value: (T, N), value of the true successor of each decision: where an episode ended, that of its final
            observation, never of the next episode's first one.
        terminated: (T, N) bool, there is nothing after it: no bootstrap.
        done: Terminated or truncated: the trace ends, a truncated episode bootstraps.
        discount: (T, N), see `discounts`.
        lam: 0 to 1: 0 trusts the critic, 1 the rewards.

    Source: Schulman et al. 2016, with Pardo et al. 2018 for time limits.
    """
    delta = reward + torch.where(terminated, 0.0, discount * next_value) - value
    advantage, following = torch.empty_like(delta), torch.zeros_like(delta[0])
    for j in reversed(range(len(delta))):
        following = delta[j] + torch.where(done[j], 0.0, discount[j] * lam * following)
        advantage[j] = following
    return advantage, advantage + value


def discounts(steps: Tensor, *, gamma: float, kind: Discount) -> Tensor:
    """What the value after each decision counts, same shape as `steps` (control steps executed, int).

    "per_chunk": gamma, whatever the chunk's length: 0.99 per chunk of 5 is 0.998 per control step.
    "per_substep": gamma ** steps.

    Args:
        steps: Control steps executed, int.
        gamma: 0 to 1.
        kind: "per_chunk" or "per_substep".
    """
    if kind == "per_chunk":
        return torch.full(steps.shape, gamma, device=steps.device, dtype=torch.float32)
    return gamma ** steps.float()


def chunk_reward(reward: Tensor, *, gamma: float, kind: Discount) -> Tensor:
    """(..., Ta) per control step -> (...) per decision: the sum, discounted inside the chunk for "per_substep".

    Args:
        reward: (..., Ta).
        gamma: 0 to 1.
        kind: "per_chunk" or "per_substep".
    """
    if kind == "per_chunk":
        return reward.sum(-1)
    return (reward * gamma ** torch.arange(reward.shape[-1], device=reward.device)).sum(-1)
