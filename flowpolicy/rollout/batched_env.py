"""Whole chunks for a simulator that steps all its environments as one batch, on a GPU as a rule."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

from flowpolicy.embodiment import Embodiment
from flowpolicy.rollout.chunk_env import ChunkResult, Reward
from flowpolicy.rollout.history import ObservationHistory
from flowpolicy.rollout.vector_env import episode_seed
from flowpolicy.types import Observation


class BatchStep(NamedTuple):
    """One control step of N environments. obs: key -> (N, ...).

    Args:
        obs: Key -> (N, ...).
        reward: (N,). the others: (N,) bool.
        success: (N,) bool.
        terminated: (N,) bool.
        truncated: (N,) bool.
    """

    obs: Observation
    reward: Tensor
    success: Tensor
    terminated: Tensor
    truncated: Tensor


class BatchedSimulator(Protocol):
    """N environments in one batch, without resets of its own."""

    num_envs: int
    embodiment: Embodiment

    def reset(self, seeds: Sequence[int], done: Tensor) -> Observation:
        """Begin new episodes where `done` (N,) bool is set; seeds: one per environment. Returns all, key -> (N, ...).

        The rows of the others must be what they were.

        Args:
            seeds: (N,).
            done: (N,) bool.
        """
        ...

    def step(self, action: Tensor) -> BatchStep:
        """action: (N, A), robot units.

        Args:
            action: (N, A), robot units.
        """
        ...

    def close(self) -> None: ...


@final
class BatchedChunkEnv:
    """See `ChunkEnv`. An environment that is done inside a chunk is held at its last action until the others are
    through, nothing of which counts; then its next episode begins, with the next seed of its own stream.

    Args:
        simulator: Is closed with this.
        action_horizon: Ta.
        obs_horizon: To.
        reward: Which reward counts, see `Reward`.
    """

    def __init__(
        self, simulator: BatchedSimulator, *, action_horizon: int, obs_horizon: int = 1, reward: Reward | None = None
    ) -> None:
        self._simulator, self._reward, self._action_horizon = simulator, reward or Reward(), action_horizon
        self.num_envs, self.embodiment = simulator.num_envs, simulator.embodiment
        self._history: ObservationHistory[Tensor] = ObservationHistory(obs_horizon)
        self._root, self._episode = [0] * self.num_envs, [0] * self.num_envs
        self._success = torch.zeros(self.num_envs, dtype=torch.bool, device="cpu")

    def reset(self, seeds: Sequence[int]) -> Observation:
        """See `ChunkEnv`. Environment i starts with the seed `episode_seed(seeds[i], 0)`.

        Args:
            seeds: (N,).
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset: wanted {self.num_envs} seeds, got {len(seeds)}")
        self._root, self._episode = [int(seed) for seed in seeds], [0] * self.num_envs
        self._history.clear()
        return self._start(torch.ones(self.num_envs, dtype=torch.bool, device="cpu"))

    def step(self, chunk: Tensor) -> ChunkResult:
        """See `ChunkEnv`. Raises ValueError for actions that are not finite or of a wrong shape.

        Args:
            chunk: (N, Ta, A), robot units.
        """
        wanted = (self.num_envs, self._action_horizon, self.embodiment.action_dim)
        if tuple(chunk.shape) != wanted:
            raise ValueError(f"step: chunk must be (N, Ta, A) = {wanted}, got {tuple(chunk.shape)}")
        if not torch.isfinite(chunk).all():
            raise ValueError("step: the policy's actions are not finite; lower `actor_lr`")
        reward = torch.zeros(wanted[:2], device="cpu", dtype=torch.float32)
        steps = torch.zeros(self.num_envs, dtype=torch.int64, device="cpu")
        none = torch.zeros(self.num_envs, dtype=torch.bool, device="cpu")
        terminated, truncated, succeeded = none.clone(), none.clone(), none.clone()
        action = chunk[:, 0]
        for h in range(self._action_horizon):
            running = ~(terminated | truncated)
            if not running.any():
                break
            action = torch.where(running.to(chunk.device)[:, None], chunk[:, h], action)
            step = self._simulator.step(action)
            success = torch.where(running, step.success.cpu(), self._success)
            earned = self._reward.of(step.reward.cpu(), success.float() - self._success.float())
            reward[:, h] = torch.where(running, earned, 0.0)
            self._success, succeeded, steps = success, succeeded | (success & running), steps + running
            self._history.append(step.obs, partial(_where, running))
            ends = step.terminated.cpu() | (success if self._reward.terminate_on_success else torch.zeros_like(success))
            terminated, truncated = terminated | (ends & running), truncated | (step.truncated.cpu() & running)
        final_obs = self._history.stacked(torch.stack, axis=1)
        done = terminated | truncated
        obs = self._start(done) if done.any() else final_obs
        return ChunkResult(obs, final_obs, reward, steps, terminated, truncated, succeeded)

    def close(self) -> None:
        """Close the simulator."""
        self._simulator.close()

    def _start(self, done: Tensor) -> Observation:
        """Next episodes where done; their first observation fills the history."""
        if self._history:  # empty when all begin anew
            self._episode = [n + int(ended) for n, ended in zip(self._episode, done, strict=True)]
        seeds = [episode_seed(root, n) for root, n in zip(self._root, self._episode, strict=True)]
        first = self._simulator.reset(seeds, done)
        self._success &= ~done
        self._history.begin(first, partial(_where, done))
        return self._history.stacked(torch.stack, axis=1)


def _where(chosen: Tensor, obs: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Observation:
    """Rows of `obs` where chosen (N,), else of `other`."""
    return {
        key: torch.where(chosen.to(value.device).reshape(-1, *[1] * (value.ndim - 1)), value, other[key])
        for key, value in obs.items()
    }
