"""Collection: T decisions in N environments, with the value of every true successor."""

from typing import NamedTuple, final

import torch
from torch import Tensor

from flowpolicy.exploration.base import Chain
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.rollout_buffer import Rollout
from flowpolicy.rollout.chunk_env import ChunkEnv
from flowpolicy.types import Observation

MAX_EPISODE = 10_000
"""Decisions, beyond which an episode is taken to have no end; the longest of our tasks has 500."""


class Collected(NamedTuple):
    """A rollout, where the environments stand after it, and what the collection noticed.

    Args:
        rollout: Decisions of a collection, see `Rollout`.
        obs: Where the environments stand, key -> (N, To, ...).
        saturated: Share of executed action entries beyond the demonstrated range.
    """

    rollout: Rollout
    obs: Observation
    saturated: float


def collect(
    actor_critic: ActorCritic, env: ChunkEnv, obs: Observation, *, decisions: int, generator: torch.Generator
) -> Collected:
    """Run `decisions` chunks in every environment, starting at `obs`, key -> (N, To, ...).

    Args:
        actor_critic: The policy that explores, and its critic.
        env: Environments that execute chunks.
        obs: Where the environments stand, key -> (N, To, ...).
        decisions: T, chunks per environment.
        generator: Where random numbers come from.

    Raises:
        ValueError: For a reward or an observation that is not finite.
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
        final_value = torch.zeros(env.num_envs, device=decision.value.device, dtype=torch.float32)
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
        {key: torch.stack([one[key] for one in stored]) for key in stored[0]},
        chain,
        log_prob,
        value,
        next_value,
        reward,
        steps,
        terminated,
        truncated,
        success,
        torch.ones_like(terminated),
    )
    return Collected(rollout, obs, saturated)


class Episodes(NamedTuple):
    """Episodes that count, see `EpisodeCounter`: how many, how many with success, mean return, mean control steps.

    Args:
        finished: How many.
        succeeded: How many with success.
        return_mean: Mean sum of rewards.
        length_mean: Mean control steps.
    """

    finished: int
    succeeded: int
    return_mean: float
    length_mean: float


@final
class EpisodeCounter:
    """Adds up rewards and steps per environment across rollouts, so that no episode counts for being short.

    The mean over whatever ends in an iteration is of the short episodes, which are mostly successes. So episodes count
    in cohorts, each as a whole once its last episode has ended: cohort 0 are the first ones after a restart, cohort n
    those that began in the n-th iteration after it. The last cohort before a restart is left out; the others are to be
    run to their end, see `waiting` and `finish`. Which cohorts count thus depends on no outcome.

    Args:
        num_envs: Environments that are stepped together.
    """

    def __init__(self, num_envs: int) -> None:
        self._running = torch.zeros(num_envs, 3, dtype=torch.float64, device="cpu")  # success, return, control steps
        self._cohort = torch.zeros(num_envs, dtype=torch.int64, device="cpu")
        self._ended: dict[int, Tensor] = {}  # cohort -> (4,): episodes, and the sums of the three
        self._iteration = 1

    def restart(self) -> None:
        """All environments begin new episodes."""
        self._running.zero_()
        self._cohort.zero_()
        self._ended, self._iteration = {}, 1

    def count(self, rollout: Rollout) -> int:
        """Go through the decisions in order; returns how many episodes ended with success in valid ones.

        Args:
            rollout: Decisions of a collection, see `Rollout`.
        """
        reward, steps, done, success, valid = (
            x.cpu() for x in (rollout.reward, rollout.steps, rollout.done, rollout.success, rollout.valid)
        )
        well = 0
        for j in range(len(reward)):
            self._running[:, 0] = torch.maximum(self._running[:, 0], success[j].double())
            self._running[:, 1] += reward[j].sum(-1)
            self._running[:, 2] += steps[j]
            well += int(self._running[done[j] & valid[j], 0].sum())
            for cohort in self._cohort[done[j]].unique().tolist():
                own = self._running[done[j] & (self._cohort == cohort)]
                sums = torch.cat([torch.tensor([len(own)], device="cpu", dtype=torch.float64), own.sum(0)])
                self._ended[cohort] = self._ended.get(cohort, 0.0) + sums
            self._running[done[j]] = 0.0
            self._cohort[done[j]] = self._iteration
        return well

    @property
    def waiting(self) -> bool:
        """Whether an episode of a cohort that is to count has not ended."""
        return bool((self._cohort < self._iteration).any())

    def report(self) -> Episodes:
        """End this iteration; the episodes of the cohorts that are whole and not yet reported."""
        self._iteration += 1
        whole = [cohort for cohort in self._ended if cohort < int(self._cohort.min())]
        count, *sums = (
            torch.stack([torch.zeros(4, device="cpu", dtype=torch.float64), *map(self._ended.pop, whole)])
            .sum(0)
            .tolist()
        )
        return Episodes(int(count), int(sums[0]), *(total / max(count, 1.0) for total in sums[1:]))


def finish(
    actor_critic: ActorCritic, env: ChunkEnv, obs: Observation, counter: EpisodeCounter, *, generator: torch.Generator
) -> None:
    """Go on from `obs` until `counter` waits for no episode; nobody learns from it. Where the iterations between two
    restarts span an episode and a half, there is next to nothing to do.

    Raises what `collect` raises, and ValueError when an episode does not end within MAX_EPISODE decisions.

    Args:
        actor_critic: The policy that explores, and its critic.
        env: Environments that execute chunks.
        obs: Where the environments stand, key -> (N, To, ...).
        counter: Told every decision.
        generator: Where random numbers come from.
    """
    for _ in range(MAX_EPISODE):
        if not counter.waiting:
            return
        collected = collect(actor_critic, env, obs, decisions=1, generator=generator)
        counter.count(collected.rollout)
        obs = collected.obs
    raise ValueError(f"an episode did not end within {MAX_EPISODE} decisions; give the task a max_episode_steps")


def _require_finite(obs: Observation) -> None:
    if bad := [key for key, value in obs.items() if not torch.isfinite(value).all()]:
        raise ValueError(
            f"the simulator gave an observation {', '.join(bad)} that is not finite; the last good checkpoint is kept"
        )
