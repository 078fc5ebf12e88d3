"""Episodes: known returns, histories and chunks, and results that the number of environments cannot change."""

import dataclasses
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from flowpolicy.encoders.state import StateEncoder
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.policy import build_policy
from flowpolicy.rollout.episodes import run_episodes
from flowpolicy.rollout.vector_env import make_vector_env
from flowpolicy.rollout.video import write_video
from tests.rollout.counting import EMBODIMENT, CountingEnv, CountingPolicy, length


def run(policy, num_envs, seeds, **options):
    with closing(make_vector_env(partial(CountingEnv, random_reward=True), num_envs)) as env:
        results = run_episodes(policy, env, seeds, **options)
    return [result._replace(infer_ms=len(result.infer_ms)) for result in results]


def test_results_are_bit_identical_for_one_two_and_three_environments():
    one, two, three = (run(CountingPolicy(noise=1.0), n, range(100, 111)) for n in (1, 2, 3))
    assert one == two == three
    assert len({result.return_ for result in one}) == 11


def test_an_episode_does_not_depend_on_its_neighbours():
    alone, among = run(CountingPolicy(noise=1.0), 1, [104]), run(CountingPolicy(noise=1.0), 2, [101, 107, 104, 103])
    assert alone[0] == among[2]
    assert [result.seed for result in among] == [101, 107, 104, 103]


def test_known_returns_lengths_and_failures():
    with closing(make_vector_env(CountingEnv, 2, asynchronous=False)) as env:
        for result in run_episodes(CountingPolicy(), env, range(8)):
            steps = length(result.seed)
            assert result.episode_len == steps and result.return_ == steps * (steps + 1) / 2
            assert result.success_once == result.success_at_end == (result.seed % 2 == 0)
            assert result.failure == ("" if result.seed % 2 == 0 else "timeout")
            assert result.outcome == f"at {steps}"
            assert len(result.infer_ms) == -(-steps // 2) and min(result.infer_ms) >= 0


def test_history_repeats_the_first_observation_and_chunks_run_out_before_the_next_look():
    policy = CountingPolicy(obs_horizon=3, action_horizon=2)
    with closing(make_vector_env(CountingEnv, 1)) as env:
        run_episodes(policy, env, [3])  # 5 steps: predictions at 0, 2, 4
    assert [seen[:, 0].tolist() for seen in policy.seen] == [[0, 0, 0], [0, 1, 2], [2, 3, 4]]
    assert [seen[:, 2].tolist() for seen in policy.seen] == [[0, 0, 0], [0, 0, 1], [1, 20, 21]]


def test_an_action_that_is_not_finite_ends_the_episode_and_reaches_no_simulator():
    class Diverged(CountingPolicy):
        def predict(self, obs, *, sampler, generator):
            chunk = super().predict(obs, sampler=sampler, generator=generator)
            return chunk * float("nan") if obs["agent_pos"][0, -1, 0] >= 2 else chunk

    with closing(make_vector_env(CountingEnv, 2, asynchronous=False)) as env:
        results = run_episodes(Diverged(), env, [3, 0, 3])
    assert [result.failure for result in results] == ["non_finite_action", "", "non_finite_action"]
    assert [result.episode_len for result in results] == [2, 2, 2] and not results[0].success_once


def test_an_observation_that_is_not_finite_ends_the_episode_as_a_failure():
    class BlownUp(CountingEnv):
        def observe(self, last_action):
            seen = super().observe(last_action)
            return {"agent_pos": seen["agent_pos"] * np.float32("nan")} if self.count >= 2 else seen

    policy = build_policy(
        embodiment=EMBODIMENT,
        encoder=StateEncoder,
        net=partial(ResidualMLP, width=8),
        head=MeanFlowHead,
        horizon=4,
        action_horizon=2,
    )
    with closing(make_vector_env(BlownUp, 2, asynchronous=False)) as env:
        results = run_episodes(policy, env, [3, 4, 2])
    assert [result.failure for result in results] == ["non_finite_observation", "", "non_finite_observation"]
    assert [result.episode_len for result in results] == [2, 2, 2] and not results[0].success_once


def test_a_policy_of_another_robot_is_refused():
    other = dataclasses.replace(EMBODIMENT, control_hz=20.0)
    with closing(make_vector_env(CountingEnv, 1)) as env, pytest.raises(ValueError, match="control_hz"):
        run_episodes(CountingPolicy(embodiment=other), env, [0])


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    run(CountingPolicy(noise=1.0), 1, [1, 2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_first_episodes_are_filmed(tmp_path):
    imageio = pytest.importorskip("imageio.v2", reason="needs the extra video")
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")
    with closing(make_vector_env(CountingEnv, 1)) as env:
        run_episodes(CountingPolicy(), env, [4, 3, 2], video_dir=tmp_path / "videos", video_episodes=2)
    files = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert files == ["3_failure.mp4", "4_success.mp4"]
    frames = imageio.mimread(tmp_path / "videos" / "3_failure.mp4")
    assert len(frames) == 6 and frames[0].shape == (32, 20, 3)
    assert frames[5].mean() == pytest.approx(50, abs=6)


def test_no_renderer_is_one_clear_line(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra video")

    class Blind(CountingEnv):
        def render(self):
            raise RuntimeError("no OpenGL; install libegl1")

    with closing(make_vector_env(Blind, 1)) as env, pytest.raises(ValueError, match="cannot film: no OpenGL"):
        run_episodes(CountingPolicy(), env, [0], video_dir=tmp_path, video_episodes=1)


def test_an_empty_video_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], fps=10)
    assert np.array_equal(list(tmp_path.iterdir()), [])
