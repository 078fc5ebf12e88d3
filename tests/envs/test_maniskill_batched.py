"""ManiSkill as a batch, on the CPU with a batch of one: the same numbers as one environment by itself."""

import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import torch

pytest.importorskip("mani_skill", reason="needs the extra maniskill")

from flowpolicy.rollout.batched_env import BatchedChunkEnv  # noqa: E402
from flowpolicy_envs.maniskill import make_env  # noqa: E402
from flowpolicy_envs.maniskill_batched import ManiSkillBatch, make_batched  # noqa: E402

LIMIT = 10


def test_an_episode_is_that_of_the_environment_by_itself() -> None:
    with (
        closing(ManiSkillBatch("PickCube-v1", 1, max_episode_steps=LIMIT, backend="physx_cpu")) as batch,
        closing(make_env("PickCube-v1", max_episode_steps=LIMIT)) as env,
    ):
        assert batch.embodiment == env.embodiment  # type: ignore[attr-defined]
        single, _ = env.reset(seed=7)
        obs = batch.reset([7], torch.ones(1, dtype=torch.bool))
        rng = np.random.default_rng(0)
        for k in range(1, LIMIT + 1):
            for key, value in single.items():
                np.testing.assert_allclose(obs[key][0].numpy(), value, atol=1e-5, err_msg=f"{key} at {k}")
            action = single["agent_pos"][:8] + rng.uniform(-0.1, 0.1, 8).astype(np.float32)
            single, reward, _, truncated, info = env.step(action)
            step = batch.step(torch.from_numpy(action)[None])
            obs = step.obs
            assert float(step.reward) == pytest.approx(reward, abs=1e-4)
            assert bool(step.truncated) == truncated == (k == LIMIT) and bool(step.success) == info["success"]


def test_episodes_follow_each_other_with_other_starts_and_stored_numbers_stay() -> None:
    simulator = ManiSkillBatch("PickCube-v1", 1, max_episode_steps=LIMIT, backend="physx_cpu")
    with closing(BatchedChunkEnv(simulator, action_horizon=4)) as env:
        obs = env.reset([3])
        starts, kept = [obs["env_state"].clone()], (obs["env_state"], obs["env_state"].clone())
        for k in range(1, 10):
            result = env.step(obs["agent_pos"][:, :, :8].repeat(1, 4, 1))
            done = bool((result.terminated | result.truncated).any())
            assert done == (k % 3 == 0) and int(result.steps) == (2 if done else 4)  # 4 + 4 + 2 control steps
            assert done != torch.equal(result.obs["env_state"], result.final_obs["env_state"])
            obs = result.obs
            starts += [obs["env_state"].clone()] if done else []
        assert len(starts) == 4 and all(not torch.equal(a, b) for a in starts for b in starts if a is not b)
        assert torch.equal(*kept)
        again = [env.reset([3])["env_state"], env.reset([4])["env_state"]]
        torch.testing.assert_close(again[0], starts[0], atol=1e-5, rtol=0)
        assert not torch.allclose(again[1], starts[0], atol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would simulate")
def test_without_a_gpu_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="batched=False"):
        make_batched("PickCube-v1", 4)


def test_it_needs_no_renderer() -> None:
    """In a process of its own: what Vulkan finds is fixed when it is first loaded."""
    code = (
        "from flowpolicy_envs.maniskill_batched import ManiSkillBatch\n"
        "ManiSkillBatch('PickCube-v1', 1, max_episode_steps=5, backend='physx_cpu').close()\n"
        "print('made')"
    )
    nowhere = {"VK_DRIVER_FILES": "/nonexistent.json", "VK_ICD_FILENAMES": "/nonexistent.json"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | nowhere, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.endswith("made\n"), done.stderr[-500:]
