"""ChunkEnv: known rewards and successors, chunks that stop at a done, seeds, histories, processes."""

from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from flowpolicy.rollout.chunk_env import Reward, make_chunk_env
from flowpolicy.rollout.vector_env import episode_seed
from tests.rollout.counting import CountingEnv, length

OWN = Reward(env=1.0, success=0.0, terminate_on_success=False)
make = partial(make_chunk_env, CountingEnv, action_horizon=4, reward=OWN)


@pytest.fixture(params=[1, 2], ids=["in_process", "two_processes"])
def workers(request):
    return request.param


def expected(root: int, chunks: int, *, size: int = 4):
    """What one counting environment must do: a list of (rewards, steps, seed, count, terminated, next seed, next
    count), by walking its definition."""
    rows, episode, count = [], 0, 0
    for _ in range(chunks):
        seed, rewards = episode_seed(root, episode), [0.0] * size
        for h in range(size):
            count += 1
            rewards[h] = float(count)
            if count == length(seed):
                break
        done = count == length(seed)
        after = (episode_seed(root, episode + 1), 0) if done else (seed, count)
        rows.append((rewards, h + 1, seed, count, done and seed % 2 == 0, done and seed % 2 == 1, *after))
        episode, count = (episode + 1, 0) if done else (episode, count)
    return rows


def test_rewards_ends_and_successors_are_the_known_ones(workers):
    roots = [11, 12, 13, 14]
    with closing(make(4, workers=workers)) as env:
        first = env.reset(roots)["agent_pos"]
        assert first.shape == (4, 1, 3) and first[:, 0, 0].tolist() == [0, 0, 0, 0]
        wanted = [expected(root, 12) for root in roots]
        ends = 0
        for j in range(12):
            chunk = 10.0 * j + torch.arange(4.0)[None, :, None].expand(4, 4, 1)
            result = env.step(chunk)
            for i in range(4):
                rewards, steps, seed, count, terminated, truncated, next_seed, next_count = wanted[i][j]
                assert result.reward[i].tolist() == rewards
                assert int(result.steps[i]) == steps
                assert (bool(result.terminated[i]), bool(result.truncated[i])) == (terminated, truncated)
                assert bool(result.success[i]) == terminated
                # the last action that ran is number steps - 1 of the chunk; none leaks into the next episode
                true = np.array([count, seed, 10 * j + steps - 1], np.float32)
                assert result.final_obs["agent_pos"][i, 0].tolist() == true.tolist()
                after = true if not (terminated or truncated) else np.array([0, next_seed, 0], np.float32)
                assert result.obs["agent_pos"][i, 0].tolist() == after.tolist()
                assert result.obs["agent_pos"][i, 0, 0] == next_count
                ends += terminated or truncated
        assert ends > 20


def test_a_done_inside_the_chunk_ignores_what_follows():
    root = next(root for root in range(100) if length(episode_seed(root, 0)) == 2)
    with closing(make(1)) as env:
        env.reset([root])
        result = env.step(torch.ones(1, 4, 1))
    assert result.reward.tolist() == [[1.0, 2.0, 0.0, 0.0]] and result.steps.tolist() == [2]


def test_earlier_results_do_not_change_afterwards(workers):
    with closing(make(2, workers=workers)) as env:
        first = env.reset([1, 2])["agent_pos"]
        before, result = first.clone(), env.step(torch.zeros(2, 4, 1))
        kept = [value.clone() for value in (result.obs["agent_pos"], result.final_obs["agent_pos"], result.reward)]
        env.step(torch.ones(2, 4, 1))
        assert torch.equal(first, before)
        for value, old in zip((result.obs["agent_pos"], result.final_obs["agent_pos"], result.reward), kept):
            assert torch.equal(value, old)


def test_the_history_repeats_the_first_observation_and_never_crosses_an_episode():
    with closing(make(3, obs_horizon=3)) as env:
        obs = env.reset([1, 2, 3])["agent_pos"]
        assert obs.shape == (3, 3, 3) and (obs[:, :, 0] == 0).all()
        for _ in range(10):
            result = env.step(torch.zeros(3, 4, 1))
            for seen in (result.obs["agent_pos"], result.final_obs["agent_pos"]):
                assert (seen[:, :, 1] == seen[:, :1, 1]).all()
                assert (seen[:, 1:, 0] - seen[:, :-1, 0] >= 0).all()


def test_the_success_bonus_is_paid_once_and_taken_back():
    class Flickering(CountingEnv):
        def step(self, action):
            obs, _, _, _, info = super().step(action)
            return obs, 5.0, False, self.count >= 6, info | {"success": self.count in (2, 3, 5)}

    for terminate, wanted in ((False, [[0, 2, 0, -2], [2, -2, 0, 0]]), (True, [[0, 2, 0, 0], [0, 2, 0, 0]])):
        reward = Reward(env=0.0, success=2.0, terminate_on_success=terminate)
        with closing(make_chunk_env(Flickering, 1, action_horizon=4, reward=reward)) as env:
            env.reset([0])
            results = [env.step(torch.zeros(1, 4, 1)) for _ in range(2)]
        assert [result.reward[0].tolist() for result in results] == wanted
        assert [bool(result.terminated[0]) for result in results] == [terminate, terminate]
        assert [bool(result.truncated[0]) for result in results] == [False, not terminate]
        assert results[0].success.all()
    assert Reward().sparse and not OWN.sparse


def test_a_process_that_dies_is_named():
    with closing(make_chunk_env(partial(CountingEnv, crash_at=2), 2, action_horizon=4, workers=2, reward=OWN)) as env:
        env.reset([0, 1])
        with pytest.raises(RuntimeError, match=r"simulator process 0 \(exit code 3\), 1 \(exit code 3\) of .*Counting"):
            env.step(torch.zeros(2, 4, 1))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="multiple of workers"):
        make(3, workers=2)
    with closing(make(2)) as env:
        with pytest.raises(ValueError, match="2 seeds"):
            env.reset([1])
        env.reset([1, 2])
        with pytest.raises(ValueError, match=r"\(2, 4, 1\)"):
            env.step(torch.zeros(2, 1))
        with pytest.raises(ValueError, match="not finite"):
            env.step(torch.full((2, 4, 1), float("nan")))


def test_only_episodes_that_follow_others_may_keep_the_scene():
    """What a resumed run starts with must not depend on what was simulated before."""
    made = []
    with closing(make_chunk_env(lambda: made.append(CountingEnv()) or made[-1], 1, action_horizon=5)) as env:
        env.reset([7])
        assert made[0].options is None
        env.step(torch.zeros(1, 5, 1))  # longer than any episode
        assert made[0].options == {"keep_scene": True}
        env.reset([7])
        assert made[0].options is None
