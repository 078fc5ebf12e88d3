"""ManiSkill's clouds and pictures: true world coordinates, fixed by the seed, the goal told and not shown."""

import multiprocessing
import os
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("mani_skill", reason="needs the extra maniskill")

from flowpolicy.embodiment import CloudSpec  # noqa: E402
from flowpolicy.rollout.vector_env import make_vector_env  # noqa: E402
from flowpolicy_envs.experts.maniskill import make_expert  # noqa: E402
from flowpolicy_envs.maniskill import VIEW, make_env  # noqa: E402
from flowpolicy_envs.rendering import maniskill as rendering  # noqa: E402

STATE = ["tcp_pos", "agent_pos", "goal_pos", "tcp_to_goal"]  # the tool first: points enter relative to it


@pytest.fixture(scope="module")
def expert(vulkan):
    with closing(make_expert("PickCube-v1", obs="point_cloud", view=replace(VIEW, color=True))) as made:
        yield made


@pytest.fixture(scope="module")
def env(expert):
    return expert._env


def test_the_policy_sees_joints_goal_and_cloud(env):
    obs, _ = env.reset(seed=0)
    assert list(obs) == list(env.embodiment.obs) == [*STATE, "point_cloud"]
    assert env.observation_space.contains(obs)
    assert env.embodiment.obs["point_cloud"].cloud == replace(VIEW, color=True).cloud
    np.testing.assert_allclose(obs["goal_pos"], env.base.goal_site.pose.p[0], atol=1e-6)
    np.testing.assert_allclose(obs["tcp_pos"], env.base.agent.tcp.pose.p[0], atol=1e-6)
    np.testing.assert_allclose(obs["tcp_pos"] + obs["tcp_to_goal"], obs["goal_pos"], atol=1e-6)


def test_the_cubes_points_lie_on_the_cube_and_are_red(env):
    for seed in range(3):
        cloud = env.reset(seed=seed)[0]["point_cloud"]
        pose = env.base.cube.pose.sp
        local = (cloud[:, :3] - pose.p) @ pose.to_transformation_matrix()[:3, :3]
        red = (cloud[:, 3] > 0.3) & (cloud[:, 4:].max(axis=1) < 0.2)
        assert red.sum() >= 20, "a cube that is hardly seen cannot be picked"
        assert np.abs(np.abs(local[red]).max(axis=1) - 0.02).max() < 3e-3  # half its edge; depth comes in millimetres


def test_the_goal_is_told_and_not_shown(env):
    for seed in range(8):
        obs, _ = env.reset(seed=seed)
        green = (obs["point_cloud"][:, 4] > 0.5) & (obs["point_cloud"][:, [3, 5]].max(axis=1) < 0.3)
        assert not green.any()


def test_a_seed_fixes_the_picture(vulkan):
    with closing(make_env("PickCube-v1", obs="rgb", view=replace(VIEW, image_size=32))) as env:
        frames = [env.reset(seed=seed)[0]["image_base_camera"] for seed in (1, 2, 1)]
        assert env.observation_space["image_base_camera"].contains(frames[0])
    np.testing.assert_array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1]) and frames[0].std() > 20


def test_a_seed_fixes_the_cloud(env):
    clouds = [env.reset(seed=seed)[0]["point_cloud"] for seed in (1, 2, 1)]
    np.testing.assert_array_equal(clouds[0], clouds[2])
    assert not np.array_equal(clouds[0], clouds[1])


def test_the_planner_records_a_cloud_at_every_control_step(expert):
    episode = expert.episode(3)
    clouds = episode.obs["point_cloud"]
    assert episode.success and clouds.shape == (len(episode.action), 512, 6)
    assert set(episode.obs) == {*STATE, "point_cloud"}
    moved = np.abs(np.diff(episode.obs["agent_pos"], axis=0)).max(axis=1) > 0.02
    changed = np.array([not np.array_equal(a, b) for a, b in zip(clouds, clouds[1:])])
    assert changed[moved].all(), "a frame was recorded twice"


def test_an_episode_in_which_nothing_is_in_sight_any_more_is_a_failure_and_no_error(env, monkeypatch):
    env.reset(seed=0)
    still = np.append(env.base.agent.robot.get_qpos()[0, :7].cpu().numpy(), 1.0)
    assert "outcome" not in env.step(still)[4]
    far = CloudSpec(crop_low=(5.0, 5.0, 5.0), crop_high=(6.0, 6.0, 6.0), color=True)
    monkeypatch.setattr(env, "_cloud", far)  # as if the table had been swept
    obs, _, terminated, _, info = env.step(still)
    assert terminated and info == {"success": False, "outcome": "nothing in sight"} and "point_cloud" in obs


def test_without_a_device_the_error_says_what_to_install(monkeypatch):
    import sapien

    class Blind:
        def __init__(self, name):
            if name == "cuda":
                raise RuntimeError('failed to find device "cuda"')

        def can_render(self):
            return False

    monkeypatch.setattr(sapien, "Device", Blind)
    with pytest.raises(RuntimeError, match="no Vulkan device can draw; .*mesa-vulkan-drivers"):
        make_env("PickCube-v1", obs="point_cloud")


def test_a_gpu_that_cannot_draw_is_passed_over(monkeypatch):
    import sapien

    class Device:
        def __init__(self, name):
            self.name = name

        def can_render(self):
            return self.name != "cuda"

    monkeypatch.setattr(sapien, "Device", Device)
    assert rendering._find_device().name == "pci:0"


def test_bad_views_are_refused():
    with pytest.raises(ValueError, match="`image_size`: wanted 8 to 4096 pixels, got 1"):
        replace(VIEW, image_size=1)
    with pytest.raises(ValueError, match="crop_low < crop_high"):
        replace(VIEW, crop_low=(0.5, 0.3, 0.0))
    with pytest.raises(ValueError, match="ManiSkill draws with Vulkan alone, got 'egl'"):
        make_env("PickCube-v1", obs="rgb", view=replace(VIEW, renderer="egl"))


def _what_a_drawing_worker_loads():
    import flowpolicy.rollout.vector_env  # noqa: F401  what every worker of a vector environment loads

    with closing(make_env("PickCube-v1", obs="rgb", view=replace(VIEW, image_size=32))) as env:
        env.reset(seed=0)
    return os.environ["LP_NUM_THREADS"], {"sapien", "triton", "torch._dynamo"} & set(sys.modules)


@pytest.mark.slow
@pytest.mark.ci
def test_a_drawing_worker_never_loads_a_second_compiler_and_draws_with_one_thread(vulkan):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_what_a_drawing_worker_loads) == ("1", {"sapien"})


@pytest.mark.parametrize("way", ["device", "no_device"])
def test_triton_comes_before_a_device_and_before_a_first_material(monkeypatch, way):
    import sapien

    opened = []
    monkeypatch.setattr(rendering, "before_first_context", lambda: opened.append("triton"))
    monkeypatch.setattr(rendering, "_find_device", lambda: opened.append("device") or sapien.Device("cpu"))
    monkeypatch.setattr(sapien.render, "RenderMaterial", lambda: opened.append("material"))
    with getattr(rendering, way)():
        assert opened == ["triton", "device" if way == "device" else "material"]


@pytest.mark.slow
def test_workers_draw_their_own_frames(vulkan):
    make = partial(make_env, "PickCube-v1", obs="rgb", view=replace(VIEW, image_size=32))
    with closing(make_vector_env(make, 2)) as there, closing(make()) as here:
        obs = there.reset([3, 4])["image_base_camera"]
        for i, seed in enumerate([3, 4]):
            np.testing.assert_array_equal(obs[i], here.reset(seed=seed)[0]["image_base_camera"])
    assert obs.dtype == torch.uint8 and not torch.equal(obs[0], obs[1])


@pytest.mark.slow
@pytest.mark.parametrize("id", ["StackCube-v1", "PushCube-v1"])
def test_other_tasks_can_be_seen(vulkan, id):
    with closing(make_env(id, obs="point_cloud")) as env:
        obs, _ = env.reset(seed=0)
        assert list(obs) == list(env.embodiment.obs) and obs["point_cloud"].shape == (512, 3)
