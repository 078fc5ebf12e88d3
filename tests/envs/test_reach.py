"""The reach task: what a step does, when it ends, what its expert is worth."""

import numpy as np
import pytest

from flowpolicy_envs.experts.reach import make_expert
from flowpolicy_envs.reach import GOAL_RADIUS, STEP, make_env


def test_a_step_moves_a_tenth_of_a_metre_and_is_clipped():
    env = make_env()
    before = env.reset(seed=3)[0]["agent_pos"]
    after = env.step(np.array([0.5, -7.0]))[0]["agent_pos"]
    np.testing.assert_allclose(after - before, [0.5 * STEP, -STEP], atol=1e-6)


def test_the_seed_fixes_start_and_goal():
    one, two = (make_env().reset(seed=5)[0] for _ in range(2))
    other = make_env().reset(seed=6)[0]
    for key in one:
        assert np.array_equal(one[key], two[key]) and not np.array_equal(one[key], other[key])
        assert np.abs(one[key]).max() <= 1.0


def test_success_is_within_5_cm_and_ends_the_episode_and_so_does_the_limit():
    env = make_env(max_episode_steps=30)
    obs = env.reset(seed=1)[0]
    for _ in range(30):
        action = np.clip((obs["env_state"] - obs["agent_pos"]) / STEP, -1, 1)
        obs, reward, terminated, truncated, info = env.step(action)
        near = np.linalg.norm(obs["env_state"] - obs["agent_pos"]) < GOAL_RADIUS
        assert info["success"] == terminated == near == (reward == 1.0)
        if terminated:
            break
    assert terminated and not truncated
    env.reset(seed=1)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(30)]
    assert ends == [(False, False)] * 29 + [(False, True)]


def test_the_noisy_expert_succeeds_and_repeats_itself():
    expert = make_expert()
    episodes = [expert.episode(seed) for seed in range(20)]
    assert sum(episode.success for episode in episodes) >= 15
    again = expert.episode(4)
    assert np.array_equal(again.action, episodes[4].action)


def test_the_picture_shows_goal_and_point():
    env = make_env(render=True)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (256, 256, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) == 3


def test_another_task_is_refused():
    with pytest.raises(ValueError, match="id=reach"):
        make_env("push")
    with pytest.raises(ValueError, match="max_episode_steps"):
        make_env(max_episode_steps=0)
