"""Collection: T decisions in N environments, with the value of every true successor."""

from typing import NamedTuple, final

import torch
from torch import Tensor

from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.rollout_buffer import Rollout
from flowpolicy.rollout.chunk_env import ChunkEnv
from flowpolicy.samplers.base import Chain
from flowpolicy.types import Observation


class Collected(NamedTuple):
    """A rollout, where the environments stand after it, and what the collection noticed.

    saturated: share of executed action entries beyond the demonstrated range.
    """

    rollout: Rollout
    obs: Observation
    saturated: float


def collect(
    actor_critic: ActorCritic, env: ChunkEnv, obs: Observation, *, decisions: int, generator: torch.Generator
) -> Collected:
    """Run `decisions` chunks in every environment, starting at `obs`, key -> (N, To, ...).

    Raises ValueError for a reward or an observation that is not finite.
    """
    rows: list[tuple[Tensor, ...]] = []
    stored, chains, saturated = [], [], 0.0
    _require_finite(obs)
    for _ in range(decisions):
        decision = actor_critic.act(obs, generator)
        result = env.step(decision.chunk)
        if not torch.isfinite(result.reward).all():
            raise ValueError("the simulator gave a reward that is not finite; the last good checkpoint is kept")
        _require_finite(result.obs)
        done = result.terminated | result.truncated
        final_value = torch.zeros(env.num_envs, device=decision.value.device)
        if done.any():
            last = {key: value[done] for key, value in result.final_obs.items()}
            _require_finite(last)
            final_value[done] = actor_critic.value(last)
        facts = (result.reward, result.steps, result.terminated, result.truncated, result.success)
        rows.append((decision.log_prob, decision.value, final_value, *(fact.to(final_value.device) for fact in facts)))
        stored.append(decision.stored)
        chains.append(decision.chain)
        saturated += float(decision.saturated) / decisions
        obs = result.obs
    log_prob, value, final_value, reward, steps, terminated, truncated, success = map(
        torch.stack, zip(*rows, strict=True)
    )
    following = torch.cat([value[1:], actor_critic.value(obs)[None]])
    next_value = torch.where(terminated | truncated, final_value, following)
    chain = Chain(*(torch.stack(part) for part in zip(*chains, strict=True)))
    rollout = Rollout(
        {key: torch.stack([one[key] for one in stored]) for key in stored[0]}, chain, log_prob, value, next_value,
        reward, steps, terminated, truncated, success, torch.ones_like(terminated),
    )  # fmt: skip
    return Collected(rollout, obs, saturated)


class Episodes(NamedTuple):
    """Episodes that ended inside a rollout: how many, how many with success, mean return and mean control steps.

    Their starts may lie in rollouts before: `carry` holds what the open ones have gathered so far.
    """

    finished: int
    succeeded: int
    return_mean: float
    length_mean: float


@final
class EpisodeCounter:
    """Adds up rewards and steps per environment across rollouts."""

    def __init__(self, num_envs: int) -> None:
        self._return = torch.zeros(num_envs)
        self._steps = torch.zeros(num_envs)
        self._success = torch.zeros(num_envs, dtype=torch.bool)

    def restart(self) -> None:
        """All environments begin new episodes."""
        for value in (self._return, self._steps, self._success):
            value.zero_()

    def count(self, rollout: Rollout) -> Episodes:
        """Go through the decisions in order."""
        returns, lengths, successes = [], [], 0
        reward, steps, done, success = (x.cpu() for x in (rollout.reward, rollout.steps, rollout.done, rollout.success))
        for j in range(len(reward)):
            self._return += reward[j].sum(-1)
            self._steps += steps[j]
            self._success |= success[j]
            ended = done[j]
            returns += self._return[ended].tolist()
            lengths += self._steps[ended].tolist()
            successes += int(self._success[ended].sum())
            for value in (self._return, self._steps, self._success):
                value[ended] = 0
        n = len(returns)
        return Episodes(n, successes, sum(returns) / max(n, 1), sum(lengths) / max(n, 1))


def _require_finite(obs: Observation) -> None:
    if bad := [key for key, value in obs.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"the simulator gave an observation {', '.join(bad)} that is not finite; "
                         "the last good checkpoint is kept")  # fmt: skip
