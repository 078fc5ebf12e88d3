"""One batch of simulators gives what the same ones give in groups, whatever ends inside a chunk."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from flowpolicy.rollout.batched_env import BatchedChunkEnv, BatchStep
from flowpolicy.rollout.chunk_env import Reward, make_chunk_env
from flowpolicy.types import Observation
from tests.rollout.counting import EMBODIMENT, CountingEnv


class CountingBatch:
    """Steps all its environments every time, those that have ended too, as a GPU does."""

    embodiment = EMBODIMENT

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._envs = [CountingEnv(random_reward=True) for _ in range(num_envs)]
        self._obs = torch.zeros(num_envs, 3)

    def reset(self, seeds: Sequence[int], done: Tensor) -> Observation:
        for i in done.nonzero().flatten().tolist():
            self._obs[i] = torch.from_numpy(self._envs[i].reset(seed=seeds[i])[0]["agent_pos"])
        return {"agent_pos": self._obs.clone()}

    def step(self, action: Tensor) -> BatchStep:
        rows = [env.step(one.numpy()) for env, one in zip(self._envs, action, strict=True)]
        self._obs = torch.stack([torch.from_numpy(row[0]["agent_pos"]) for row in rows])
        reward, success = torch.tensor([row[1] for row in rows]), torch.tensor([row[4]["success"] for row in rows])
        terminated, truncated = (torch.tensor([row[i] for row in rows]) for i in (2, 3))
        return BatchStep({"agent_pos": self._obs.clone()}, reward, success, terminated, truncated)

    def close(self) -> None:
        self.num_envs = 0


@pytest.mark.parametrize("obs_horizon", [1, 3])
@pytest.mark.parametrize("reward", [Reward(), Reward(env=1.0, success=5.0, terminate_on_success=False)])
def test_a_batch_equals_groups(obs_horizon: int, reward: Reward) -> None:
    words = {"action_horizon": 3, "obs_horizon": obs_horizon, "reward": reward}
    batch = BatchedChunkEnv(CountingBatch(6), **words)
    groups = make_chunk_env(partial(CountingEnv, random_reward=True), 6, **words)
    generator = torch.Generator().manual_seed(0)
    for seeds in (range(6), range(40, 46)):  # the second reset comes in the middle of episodes
        pair = [env.reset(list(seeds)) for env in (batch, groups)]
        assert torch.equal(*(obs["agent_pos"] for obs in pair))
        ended = 0
        for _ in range(12):
            chunk = torch.randn(6, 3, 1, generator=generator)
            one, other = batch.step(chunk), groups.step(chunk)
            for name in ("reward", "steps", "terminated", "truncated", "success"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), msg=name)
            for name in ("obs", "final_obs"):
                assert torch.equal(getattr(one, name)["agent_pos"], getattr(other, name)["agent_pos"]), name
            ended += int((one.terminated | one.truncated).sum())
        assert ended > 12


def test_wrong_chunks_are_refused() -> None:
    batch = BatchedChunkEnv(CountingBatch(2), action_horizon=3)
    batch.reset([0, 1])
    with pytest.raises(ValueError, match=r"\(2, 3, 1\)"):
        batch.step(torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match="not finite"):
        batch.step(torch.full((2, 3, 1), torch.nan))
    with pytest.raises(ValueError, match="2 seeds"):
        batch.reset([0])
