"""The toy: both ways equally often, seeds fix everything, and the average of the two ways collides."""

from contextlib import closing

import numpy as np
import pytest
import torch

from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy_envs.experts.toy import make_expert
from flowpolicy_envs.toy import EMBODIMENT, GOAL, OBSTACLE, OBSTACLE_RADIUS, make_env, move, way_of

EXPERT = make_expert()


class ChunkPolicy:
    """Plays the mean, over demonstrations that look like the observation, of the next `action_horizon` actions.

    side: average only demonstrations that went this way; None averages both, as squared error does.
    """

    embodiment, obs_keys, obs_horizon = EMBODIMENT, ("agent_pos", "env_state"), 1
    device = torch.device("cpu")

    def __init__(self, side, action_horizon):
        episodes = [EXPERT.episode(seed) for seed in range(200)]
        kept = [e for e in episodes if side in (None, way_of(e.obs["agent_pos"]))]
        windows = [(e, t) for e in kept for t in range(len(e.action))]
        self.positions = np.stack([e.obs["agent_pos"][t] for e, t in windows])
        index = np.arange(action_horizon)
        self.chunks = np.stack([e.action[np.minimum(t + index, len(e.action) - 1)] for e, t in windows])

    def predict(self, obs, *, sampler, generator):
        distance = np.linalg.norm(self.positions - obs["agent_pos"][0, -1].numpy(), axis=1)
        weight = np.exp(-0.5 * (distance / 0.05) ** 2) + 1e-12
        return torch.from_numpy((weight[:, None, None] * self.chunks).sum(0) / weight.sum()).float()[None]


def rollouts(policy, episodes=40):
    with closing(make_vector_env(make_env, 1)) as env:
        return run_episodes(policy, env, range(100_000, 100_000 + episodes))


@pytest.mark.parametrize("action_horizon", [8, 12])
def test_the_mean_of_both_ways_fails_and_either_way_alone_succeeds(action_horizon):
    mean = rollouts(ChunkPolicy(None, action_horizon))
    assert np.mean([r.success_once for r in mean]) < 0.4
    assert {r.outcome for r in mean if not r.success_once} == {r.failure for r in mean if r.failure} == {"collision"}
    for side in ("left", "right"):
        one = rollouts(ChunkPolicy(side, action_horizon))
        assert np.mean([r.success_once for r in one]) >= 0.95
        assert {r.outcome for r in one if r.success_once} == {side}


def test_the_expert_takes_both_ways_equally_often_and_keeps_clear():
    episodes = [EXPERT.episode(seed) for seed in range(100)]
    assert all(e.success for e in episodes)
    ways = [way_of(e.obs["agent_pos"]) for e in episodes]
    assert ways.count("left") == ways.count("right") == 50
    closest = min(np.linalg.norm(e.obs["agent_pos"] - OBSTACLE, axis=1).min() for e in episodes)
    assert closest > OBSTACLE_RADIUS + 0.15
    assert max(np.abs(e.action).max() for e in episodes) < EMBODIMENT.action_high[0]
    assert min(len(e.action) for e in episodes) >= 12 and max(len(e.action) for e in episodes) <= 15


def test_the_way_cannot_be_seen_in_the_first_observation():
    first = {way: [] for way in ("left", "right")}
    for seed in range(400):
        episode = EXPERT.episode(seed)
        first[way_of(episode.obs["agent_pos"])].append(np.concatenate([o[0] for o in episode.obs.values()]))
    left, right = (np.array(values) for values in first.values())
    # the means of twice 200 uniform draws of width 0.06 differ by 0.0017 (one standard deviation)
    np.testing.assert_allclose(left.mean(0), right.mean(0), atol=0.007)


def test_the_seed_fixes_the_episode_whatever_ran_before():
    env = make_env()
    first, _ = env.reset(seed=5)
    env.reset(seed=6)
    env.step(np.ones(2))
    again, _ = env.reset(seed=5)
    other, _ = make_env().reset(seed=6)
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
        assert not np.array_equal(first[key], other[key])
    a, b = EXPERT.episode(3), make_expert().episode(3)
    np.testing.assert_array_equal(a.action, b.action)


def test_straight_ahead_collides_and_a_detour_arrives():
    env = make_env()
    obs, _ = env.reset(seed=0)
    terminated, info = False, {}
    while not terminated:
        obs, reward, terminated, truncated, info = env.step(np.array([1.6, 0.0]))
        assert reward == 0.0 and not truncated
    assert not info["success"] and info["outcome"] == "collision"
    obs, _ = env.reset(seed=0)
    for target in (np.array([0.0, -0.5]), GOAL):
        while np.linalg.norm(target - obs["agent_pos"]) > 0.1 and not info["success"]:
            obs, reward, terminated, _, info = env.step(5 * (target - obs["agent_pos"]))
    assert terminated and reward == 1.0 and info == {"success": True, "way": "right", "outcome": "right"}


def test_a_batch_moves_like_its_rows_and_a_segment_that_cuts_the_edge_collides():
    radius = OBSTACLE_RADIUS
    position = torch.tensor([[-0.1, 0.14], [-0.1, 0.16], [-0.6, 0.0], [0.5, 0.0]], dtype=torch.float64)
    velocity = torch.tensor([[1.6, 0.0], [1.6, 0.0], [9.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    after, hit = move(position, velocity)
    # the first two end outside the obstacle; the first one passes at 0.14 < radius, the second at 0.16
    assert radius == 0.15 and hit.tolist() == [True, False, False, False]
    assert after[2].tolist() == pytest.approx([-0.44, 0.0])
    for row in range(4):
        one, hit_one = move(position[row : row + 1], velocity[row : row + 1])
        assert torch.equal(one[0], after[row]) and hit_one[0] == hit[row]


def test_time_runs_out_without_success_and_actions_are_clipped():
    env = make_env(max_episode_steps=3)
    start, _ = env.reset(seed=1)
    ends = [env.step(np.array([-50.0, 0.0])) for _ in range(3)]
    assert [truncated for _, _, _, truncated, _ in ends] == [False, False, True]
    assert ends[0][0]["agent_pos"][0] == pytest.approx(start["agent_pos"][0] - 0.16)


def test_observations_fit_their_spaces_and_the_embodiment():
    env = make_env()
    obs, _ = env.reset(seed=2)
    assert env.observation_space.contains(obs)
    assert {key: value.shape for key, value in obs.items()} == {k: s.shape for k, s in EMBODIMENT.obs.items()}


def test_the_picture_shows_obstacle_goal_and_point():
    env = make_env()
    obs, _ = env.reset(seed=2)
    picture = env.render()
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8

    def colour(x, y):
        return tuple(picture[round((1.1 - y) / 2.2 * 255), round((x + 1.1) / 2.2 * 255)])

    assert colour(*OBSTACLE) == (120, 120, 120)
    assert colour(*obs["env_state"]) == (90, 190, 110)
    assert colour(*obs["agent_pos"]) == (40, 90, 200)
    assert colour(0.0, 0.9) == (255, 255, 255)


def test_unknown_tasks_are_refused():
    for bad in ({"id": "maze"}, {"obs": "rgb"}):
        with pytest.raises(ValueError, match="two-ways with obs=state"):
            make_env(**bad)
    with pytest.raises(ValueError, match="max_episode_steps"):
        make_env(max_episode_steps=0)
