"""VectorEnv: final_obs, resets that nobody hides, frozen finished environments, the same in and out of process."""

from contextlib import closing
from functools import partial

import pytest
import torch

from flowpolicy.rollout.vector_env import make_vector_env
from tests.rollout.counting import CountingEnv, length


def actions(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def asynchronous(request):
    return request.param


def test_without_autoreset_obs_is_final_obs_and_a_done_environment_is_frozen(asynchronous):
    with closing(make_vector_env(CountingEnv, 2, asynchronous=asynchronous)) as env:
        env.reset([0, 3])  # lengths 2 and 5
        env.step(actions(7, 7))
        done = env.step(actions(8, 8))
        assert done.terminated.tolist() == [True, False] and done.success.tolist() == [True, False]
        assert done.reward.tolist() == [2.0, 2.0] and done.outcome == ("at 2", "at 2")
        assert done.obs["agent_pos"].tolist() == [[2, 0, 8], [2, 3, 8]] == done.final_obs["agent_pos"].tolist()
        frozen = env.step(actions(9, 9))
        assert frozen.obs["agent_pos"].tolist() == [[2, 0, 8], [3, 3, 9]]
        assert frozen.reward.tolist() == [0.0, 3.0] and frozen.terminated.tolist() == [True, False]
        assert done.obs["agent_pos"][0].tolist() == [2, 0, 8], "an earlier result must not change afterwards"


def test_a_masked_reset_leaves_the_others_where_they_are(asynchronous):
    with closing(make_vector_env(CountingEnv, 3, asynchronous=asynchronous)) as env:
        env.reset([0, 3, 3])
        env.step(actions(1, 2, 3))
        obs = env.reset([-1, 9, -1], mask=[False, True, False])
        assert obs["agent_pos"].tolist() == [[1, 0, 1], [0, 9, 0], [1, 3, 3]]
        assert env.step(actions(4, 5, 6)).obs["agent_pos"].tolist() == [[2, 0, 4], [1, 9, 5], [2, 3, 6]]


def test_with_autoreset_final_obs_is_the_true_successor_and_returns_add_up(asynchronous):
    with closing(make_vector_env(CountingEnv, 2, autoreset=True, asynchronous=asynchronous)) as env:
        obs = env.reset([0, 3])
        seeds, returns, finished = obs["agent_pos"][:, 1].tolist(), [0.0, 0.0], []
        for _ in range(20):
            step = env.step(actions(1, 1))
            done = step.terminated | step.truncated
            for i in range(2):
                returns[i] += float(step.reward[i])
                assert step.final_obs["agent_pos"][i, 1] == seeds[i]
                if done[i]:
                    finished.append((seeds[i], returns[i], int(step.final_obs["agent_pos"][i, 0])))
                    assert step.obs["agent_pos"][i, 0] == 0 and step.obs["agent_pos"][i, 1] != seeds[i]
                    seeds[i], returns[i] = float(step.obs["agent_pos"][i, 1]), 0.0
                else:
                    assert torch.equal(step.obs["agent_pos"][i], step.final_obs["agent_pos"][i])
        assert len(finished) >= 8
        for seed, total, steps in finished[:2]:  # later seeds exceed float32
            assert steps == length(int(seed)) and total == steps * (steps + 1) / 2


def test_autoreset_seeds_come_from_the_reset_seed_alone():
    def first_seeds(num_envs):
        with closing(make_vector_env(CountingEnv, num_envs, autoreset=True, asynchronous=False)) as env:
            env.reset(list(range(num_envs)))
            return [env.step(torch.zeros(num_envs, 1)).obs["agent_pos"][0, 1].item() for _ in range(12)]

    assert first_seeds(1) == first_seeds(3)
    assert len(set(first_seeds(1))) > 3


def test_a_dead_process_is_a_clear_error_and_close_still_works():
    make = partial(CountingEnv, crash_at=2)
    env = make_vector_env(make, 2)
    env.reset([3, 3])
    env.step(actions(0, 0))
    with pytest.raises(RuntimeError, match=r"process .*exit code 3.*CountingEnv died.*envs=1"):
        for _ in range(3):
            env.step(actions(0, 0))
    env.close()


def test_wrong_shapes_and_counts_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        make_vector_env(CountingEnv, 0)
    with closing(make_vector_env(CountingEnv, 1)) as env:
        with pytest.raises(ValueError, match="1 seeds"):
            env.reset([1, 2])
        env.reset([1])
        with pytest.raises(ValueError, match="not a chunk"):
            env.step(torch.zeros(1, 8, 1))


def test_render_shows_the_asked_environment(asynchronous):
    with closing(make_vector_env(CountingEnv, 2, asynchronous=asynchronous)) as env:
        env.reset([0, 3])
        for _ in range(3):
            env.step(actions(0, 0))
        assert [env.render(i)[0, 0, 0] for i in range(2)] == [20, 30]


def test_processes_use_one_thread():
    with closing(make_vector_env(ThreadCountingEnv, 2)) as env:
        env.reset([0, 0])
        assert env.step(actions(0, 0)).reward.tolist() == [1.0, 1.0]


class ThreadCountingEnv(CountingEnv):
    """Its reward is the number of torch's threads."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, torch.get_num_threads(), *rest
