"""Group-relative advantages (GRPO): episodes from one start are held against each other instead of against a critic."""

from typing import NamedTuple

import torch
from torch import Tensor

from flowpolicy.rl.rounding import differ, masked_sum
from flowpolicy.types import Observation


class GroupAdvantage(NamedTuple):
    """advantage: (T, N), the same for all decisions of an episode.

    Args:
        advantage: (T, N) or (B,), of each decision.
        valid: (T, N) bool, without the groups in which every episode had the same return up to rounding: they say
            nothing.
        used: Share of the groups that are left.
    """

    advantage: Tensor
    valid: Tensor
    used: float


def first_episodes(done: Tensor) -> Tensor:
    """(T, N) bool: the decisions of each environment up to its first done, that one included.

    Args:
        done: (T, N).
    """
    return done.int().cumsum(0) - done.int() == 0


def refuse_batch(advantage: str) -> None:
    """Raise ValueError for group advantages of simulators in one batch, which seed all starts from one number.

    Args:
        advantage: (T, N) or (B,), of each decision.
    """
    if advantage == "group":
        raise ValueError("`advantage='group'` needs equal starts, which a batch does not give; use gae")


def require_equal_starts(obs: Observation, group_size: int) -> None:
    """Raise ValueError unless the environments of each group see the same after a reset, key -> (N, To, ...).

    Vectors alone are compared: renderers need not give the same picture twice.

    Args:
        obs: Key -> (B, To, ...), robot units.
        group_size: Environments per group.
    """
    for key, value in obs.items():
        groups = value.unflatten(0, (-1, group_size))
        if value.ndim == 3 and not torch.equal(groups, groups[:, :1].expand_as(groups)):
            raise ValueError(
                f"`advantage='group'` needs equal starts, and environments of one group began with different {key}; "
                "the simulator's reset must follow the seed of each, or use `advantage='gae'`"
            )


def group_advantage(reward: Tensor, valid: Tensor, *, discount: Tensor, group_size: int) -> GroupAdvantage:
    """(R - mean) / (standard deviation + 1e-4) over each group, with R the discounted return of the valid decisions.

    Sources: Shao et al. 2024 (GRPO); for robots RLinf's groups of environments that are reset alike.

    Args:
        reward: (T, N); environments i G to (i + 1) G - 1 are a group of G = `group_size` from one start. N must be
            divisible by G. Groups without a difference have advantage 0.
        valid: As `reward`.
        discount: As `reward`.
        group_size: Environments per group.
    """
    before = torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).double().cumprod(0)
    earned = reward * before  # float64: what is left is the rounding of the rewards themselves
    groups, magnitude = (
        masked_sum(x, valid, 0).unflatten(0, (-1, group_size)) for x in (earned, earned.abs())
    )  # (M, G)
    spread = groups.std(dim=1, unbiased=False, keepdim=True)
    told_apart = differ(groups, magnitude)
    relative = (groups - groups.mean(dim=1, keepdim=True)) / (spread + 1e-4)
    relative = torch.where(told_apart[:, None], relative, 0.0).flatten().to(reward.dtype)
    kept = told_apart.repeat_interleave(group_size)
    return GroupAdvantage(relative.expand_as(reward), valid & kept, float(told_apart.float().mean()))
