"""ManiSkill: a seed fixes the episode bit for bit, contacts included, with no renderer; the planner solves PickCube."""

from contextlib import closing
from functools import partial

import numpy as np
import pytest

pytest.importorskip("mani_skill", reason="needs the extra maniskill")

from mani_skill import ASSET_DIR  # noqa: E402
from mani_skill.utils.assets import DATA_SOURCES  # noqa: E402

from flowpolicy.data.collect import collect_episodes  # noqa: E402
from flowpolicy.data.store import EpisodeStore  # noqa: E402
from flowpolicy.rollout.vector_env import make_vector_env  # noqa: E402
from flowpolicy_envs.experts.maniskill import SOLUTIONS, make_expert  # noqa: E402
from flowpolicy_envs.maniskill import make_env  # noqa: E402


@pytest.fixture(scope="module")
def env():
    with closing(make_env("PickCube-v1")) as made:
        yield made


@pytest.fixture(scope="module")
def expert():
    with closing(make_expert("PickCube-v1")) as made:
        yield made


def same(a, b):
    return np.array_equal(a.action, b.action) and all(np.array_equal(a.obs[key], b.obs[key]) for key in a.obs)


def test_the_embodiment_says_what_the_numbers_are(env):
    embodiment = env.embodiment
    obs, _ = env.reset(seed=0)
    assert {key: value.shape for key, value in obs.items()} == {k: s.shape for k, s in embodiment.obs.items()}
    assert env.observation_space.contains(obs)
    assert embodiment.robot == "panda" and embodiment.control_hz == 20.0
    assert embodiment.obs["agent_pos"].shape == (9,) and embodiment.obs["agent_pos"].names[0] == "panda_joint1"
    names = embodiment.obs["env_state"].names
    assert len(names) == len(obs["env_state"]) == len(set(names)) and not any("qpos" in name for name in names)
    goal = obs["env_state"][[names.index(f"extra.goal_pos.{i}") for i in range(3)]]
    cube = obs["env_state"][[names.index(f"extra.obj_pose.{i}") for i in range(3)]]
    offset = obs["env_state"][[names.index(f"extra.obj_to_goal_pos.{i}") for i in range(3)]]
    np.testing.assert_allclose(goal - cube, offset, atol=1e-6)
    assert embodiment.reference_key == "agent_pos" and embodiment.reference_index == (0, 1, 2, 3, 4, 5, 6, -1)
    assert embodiment.action_low[-1] == -1.0 and embodiment.action_high[-1] == 1.0


def test_actions_are_joint_targets(env):
    obs, _ = env.reset(seed=0)
    target = np.append(obs["agent_pos"][:7], 1.0).astype(np.float32)
    target[:7] += 0.05
    for _ in range(20):
        obs, _, terminated, truncated, info = env.step(target)
    np.testing.assert_allclose(obs["agent_pos"][:7], target[:7], atol=5e-3)
    assert not terminated and not truncated and info["success"] is False


def test_a_seed_fixes_the_episode_whatever_ran_before(expert):
    first = expert.episode(1)
    expert.episode(2)
    again = expert.episode(1)
    assert first.success and same(first, again)
    assert not np.array_equal(first.obs["env_state"][0], expert.episode(2).obs["env_state"][0])


def test_a_scene_that_is_kept_starts_the_same_episode_and_is_forgotten_by_the_next_rebuilt_one(env, expert):
    episode = expert.episode(1)

    def replayed(**options):
        first, _ = env.reset(seed=1, options=options)
        return [first, *(env.step(action)[0] for action in episode.action)]

    wanted = replayed()
    env.reset(seed=2)
    for action in episode.action[::-1]:  # leaves the cube somewhere else
        env.step(action)
    scene = env.base.scene
    kept = replayed(keep_scene=True)
    assert all(np.array_equal(kept[0][key], wanted[0][key]) for key in wanted[0])
    assert np.allclose(kept[-1]["agent_pos"], wanted[-1]["agent_pos"], atol=1e-2)
    assert env.base.scene is scene
    again = replayed()
    assert env.base.scene is not scene
    assert all(np.array_equal(a[key], b[key]) for a, b in zip(wanted, again, strict=True) for key in a)


def test_replaying_a_demonstration_gives_its_observations_and_success(env, expert):
    episode = expert.episode(3)
    obs, _ = env.reset(seed=3)
    terminated = False
    for t, action in enumerate(episode.action):
        for key in obs:
            np.testing.assert_array_equal(obs[key], episode.obs[key][t])
        obs, reward, terminated, _, _ = env.step(action)
        assert reward == pytest.approx(float(episode.reward[t]))
        if terminated:
            break
    assert terminated and episode.success


def test_the_planner_is_silent_and_its_actions_fit(expert, capfd):
    episode = expert.episode(5)
    assert capfd.readouterr() == ("", "")
    low, high = np.float32(expert.embodiment.action_low), np.float32(expert.embodiment.action_high)
    assert (episode.action >= low).all() and (episode.action <= high).all() and episode.action.dtype == np.float32
    assert 40 <= len(episode.action) <= 120 and len(episode.reward) == len(episode.action)


def test_time_runs_out():
    with closing(make_env("PickCube-v1", max_episode_steps=3)) as env:
        env.reset(seed=0)
        assert [env.step(np.zeros(8))[3] for _ in range(3)] == [False, False, True]


def test_bad_names_are_refused(env):
    with pytest.raises(ValueError, match="no 'PickCube-v9'; it knows .*PickCube-v1"):
        make_env("PickCube-v9")
    with pytest.raises(ValueError, match="no motion planner for 'TurnFaucet-v1'; .*PickCube-v1"):
        make_expert("TurnFaucet-v1")
    with pytest.raises(ValueError, match="gives state, point_cloud, rgb, got 'video'"):
        make_env("PickCube-v1", obs="video")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="made with render=False"):
        env.render()


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("MS-CartpoleBalance-v1", "with absolute joint targets: pd_joint_pos not in supported modes"),
        ("MS-HumanoidStand-v1", "its robot, humanoid, has no arm"),
        ("PickCubeSO100-v1", "its robot, so100, has no arm"),
        ("Empty-v1", "tells no state of it but the joints"),
    ],
)
def test_tasks_that_cannot_be_controlled_are_one_line(id, said):
    with pytest.raises(ValueError, match=rf"^{id}: .*{said}"):
        make_env(id)


def test_a_task_that_reads_its_own_pictures_shapes_is_made_all_the_same():
    with closing(make_env("PushT-v1")) as env:
        obs, _ = env.reset(seed=0)
        assert {key: value.shape for key, value in obs.items()} == {
            "agent_pos": (7,),
            "agent_vel": (7,),
            "env_state": (17,),
        }
        assert np.isfinite(env.step(env.action_space.sample())[1])


@pytest.mark.parametrize(
    ("id", "said", "fetch"),
    [
        ("PickSingleYCB-v1", "ycb, looked for at {}/assets/mani_skill2_ycb;", "ycb"),
        (
            "PickClutterYCB-v1",
            "pick_clutter_ycb_configs, ycb, looked for at {}/tasks/pick_clutter;",
            "PickClutterYCB-v1",
        ),
        ("OpenCabinetDrawer-v1", " more, looked for at ", "OpenCabinetDrawer-v1"),
        ("AnymalC-Reach-v1", "anymal_c, looked for at ", "anymal_c"),
    ],
)
def test_assets_that_must_be_downloaded_are_named_and_never_asked_for(tmp_path, monkeypatch, id, said, fetch):
    monkeypatch.delenv("MS_SKIP_ASSET_DOWNLOAD_PROMPT", raising=False)
    for name in ("ycb", "pick_clutter_ycb_configs"):
        monkeypatch.setattr(DATA_SOURCES[name], "output_dir", tmp_path)
    if id in ("OpenCabinetDrawer-v1", "AnymalC-Reach-v1") and any(ASSET_DIR.glob("*/*")):
        pytest.skip("this machine has downloaded assets")
    with pytest.raises(FileNotFoundError) as error:
        make_env(id)
    line = str(error.value)
    assert line.startswith(f"{id} needs assets that ManiSkill does not bring: ") and said.format(tmp_path) in line
    assert f"`python -m mani_skill.utils.download_asset {fetch}` fetches them" in line and "MS_ASSET_DIR" in line


@pytest.mark.slow
def test_another_process_gives_the_same_observations(env):
    with closing(make_vector_env(partial(make_env, "PickCube-v1"), 1, asynchronous=True)) as there:
        obs, vector = env.reset(seed=4)[0], there.reset([4])
        for key in obs:
            np.testing.assert_array_equal(obs[key], vector[key][0].numpy())


@pytest.mark.slow
def test_collected_demonstrations_do_not_depend_on_the_workers(tmp_path):
    for workers in (1, 2):
        make = partial(make_expert, "PickCube-v1")
        collect_episodes(make, tmp_path / f"{workers}.zarr", episodes=4, workers=workers, progress=False)
    one, two = (EpisodeStore.open(tmp_path / f"{workers}.zarr").content_hash() for workers in (1, 2))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("id", SOLUTIONS)
def test_every_planner_solves_some_of_its_episodes(id):
    with closing(make_expert(id)) as expert:
        assert any(expert.episode(seed).success for seed in range(4))
