"""What one iteration of fine-tuning has seen: T decisions of N environments."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flowpolicy.exploration.base import Chain
from flowpolicy.types import Observation


class Minibatch(NamedTuple):
    """B decisions, as in `Rollout`, with what `gae` makes of them.

    Args:
        obs: Key -> (B, To, ...), robot units.
        chain: Stored transitions, see `Decision`.
        log_prob: (B,), when they were drawn.
        value: (B,), the critic's when they were drawn.
        advantage: (T, N) or (B,), of each decision.
        returns: (B,), advantage + value.
    """

    obs: Observation
    chain: Chain
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor


class Rollout(NamedTuple):
    """T decisions of N environments. All (T, N, ...).

    Args:
        obs: What the actor stores: observations, or condition features where the encoder is frozen.
        chain: Stochastic transitions.
        log_prob: Under the weights that drew them.
        value: As `log_prob`.
        next_value: Of the true successor.
        reward: (T, N, Ta) per control step.
        steps: Control steps executed.
        terminated: How each decision ended.
        truncated: As `terminated`.
        success: As `terminated`.
        valid: False where nothing was decided.
    """

    obs: Observation
    chain: Chain
    log_prob: Tensor
    value: Tensor
    next_value: Tensor
    reward: Tensor
    steps: Tensor
    terminated: Tensor
    truncated: Tensor
    success: Tensor
    valid: Tensor

    @property
    def done(self) -> Tensor:
        return self.terminated | self.truncated


def minibatches(
    rollout: Rollout, advantage: Tensor, returns: Tensor, *, count: int, generator: torch.Generator | None
) -> Iterator[Minibatch]:
    """The valid decisions in `count` random parts of nearly the same size, each once.

    Args:
        rollout: Decisions of a collection, see `Rollout`.
        advantage: (T, N).
        returns: As `advantage`.
        count: How many parts.
        generator: On the CPU; None takes them as they lie.

    Raises:
        ValueError: When there are fewer decisions than parts.
    """
    index = rollout.valid.flatten().nonzero().squeeze(1)
    if len(index) < count:
        raise ValueError(f"{len(index)} decisions do not fill {count} minibatches; lower `minibatches`")
    if generator is not None:
        index = index[torch.randperm(len(index), generator=generator, device="cpu").to(index.device)]

    def pick(value: Tensor, rows: Tensor) -> Tensor:
        return value.flatten(0, 1)[rows]

    for rows in index.tensor_split(count):
        yield Minibatch(
            {key: pick(value, rows) for key, value in rollout.obs.items()},
            Chain(*(pick(value, rows) for value in rollout.chain)),
            *(pick(value, rows) for value in (rollout.log_prob, rollout.value, advantage, returns)),
        )
