"""Group-relative advantages (GRPO): episodes from one start are held against each other instead of against a critic."""

from typing import NamedTuple

import torch
from torch import Tensor


class GroupAdvantage(NamedTuple):
    """advantage: (T, N), the same for all decisions of an episode.   valid: (T, N) bool, without the groups in which
    every episode had the same return: they say nothing.   used: share of the groups that are left."""

    advantage: Tensor
    valid: Tensor
    used: float


def first_episodes(done: Tensor) -> Tensor:
    """(T, N) bool: the decisions of each environment up to its first done, that one included.   done: (T, N)."""
    return done.int().cumsum(0) - done.int() == 0


def group_advantage(reward: Tensor, valid: Tensor, *, discount: Tensor, group_size: int) -> GroupAdvantage:
    """(R - mean) / (standard deviation + 1e-4) over each group, with R the discounted return of the valid decisions.

    reward, valid, discount: (T, N); environments i G to (i + 1) G - 1 are a group of G = `group_size` from one start. N
    must be divisible by G.
    Sources: Shao et al. 2024 (GRPO); for robots RLinf's groups of environments that are reset alike.
    """
    before = torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).cumprod(0)
    groups = (reward * before * valid).sum(0).unflatten(0, (-1, group_size))  # (M, G)
    spread = groups.std(dim=1, unbiased=False, keepdim=True)
    relative = ((groups - groups.mean(dim=1, keepdim=True)) / (spread + 1e-4)).flatten()
    differ = (groups != groups[:, :1]).any(dim=1)
    kept = differ.repeat_interleave(group_size)
    return GroupAdvantage(relative.expand_as(reward), valid & kept, float(differ.float().mean()))
