"""Validate: a sound store has no findings; every kind of damage is found and named."""

from dataclasses import replace

import numpy as np
import pytest
import zarr

from flowpolicy.cli.main import main
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.data.validate import Finding, validate_store
from flowpolicy.embodiment import CloudSpec, Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="test",
    obs={"agent_pos": KeySpec((3,)), "env_state": KeySpec((2,))},
    action=KeySpec((2,)),
    action_kind="velocity",
    control_hz=10.0,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)


@pytest.fixture
def path(tmp_path):
    """Six sound episodes of ten steps."""
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "a.zarr", EMBODIMENT, {}) as writer:
        for seed in range(6):
            obs = {key: rng.normal(size=(10, *spec.shape)) for key, spec in EMBODIMENT.obs.items()}
            writer.add(Episode(obs, rng.uniform(-0.9, 0.9, (10, 2)), np.zeros(10), True, seed))
    return tmp_path / "a.zarr"


def edit(path, key, rows, value):
    array = zarr.open_array(path / "data" / key, mode="r+")
    array[rows] = value


def messages(path, severity):
    return [finding.message for finding in validate_store(path) if finding.severity == severity]


def test_a_sound_store_has_no_findings(path):
    assert validate_store(path) == []


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_infinity(path, value):
    edit(path, "action", (slice(23, 25), 0), value)
    (error,) = messages(path, "error")
    assert error == "action: NaN or infinity in 2 of 60 steps, first at episode 2, step 3; episodes 2"


def test_missing_and_truncated_chunks_are_both_named(path):
    (path / "data/agent_pos/0.0").unlink()
    file = path / "data/action/0.0"
    file.write_bytes(file.read_bytes()[:30])
    found = messages(path, "error")
    assert any("data/agent_pos: chunk 0.0 is missing" in line for line in found)
    assert any("data/action: chunk 0.0 is truncated" in line for line in found) and len(found) == 2


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([], "empty (0 episodes)"),
        ([10, 9, 60], "must increase"),
        ([10, 50], "60 steps, meta/episode_ends ends at 50"),
    ],
)
def test_a_wrong_episode_table(path, ends, message):
    zarr.open_group(path / "meta", mode="r+").create_array(
        "episode_ends", data=np.array(ends, np.int64), overwrite=True
    )
    assert any(message in line for line in messages(path, "error"))


def test_shape_type_and_missing_key_against_the_embodiment(path):
    group = zarr.open_group(path, mode="r+")
    group["data"].create_array("agent_pos", data=np.random.default_rng(0).normal(size=(60, 4)), overwrite=True)
    del group["data/env_state"]
    assert messages(path, "error") == [
        "data/agent_pos: the embodiment wants (3,) per step, got (4,)",
        "data/agent_pos: the embodiment wants float32, got float64",
        "data/env_state is missing; the embodiment declares it",
    ]


def test_no_store_is_an_error_and_no_path_raises(tmp_path):
    assert "not a zarr store" in messages(tmp_path, "error")[0]
    with pytest.raises(FileNotFoundError):
        validate_store(tmp_path / "missing")


def test_a_store_without_embodiment_is_a_warning(path):
    del zarr.open_group(path, mode="r+").attrs["embodiment"]
    assert messages(path, "error") == [] and "no embodiment record" in messages(path, "warning")[0]


def test_a_frozen_episode_is_an_error_and_a_frozen_sensor_a_warning(path):
    edit(path, "agent_pos", slice(20, 30), 0.5)
    assert messages(path, "error") == []
    assert messages(path, "warning") == ["agent_pos is frozen in episodes 2 and moves in the others"]
    edit(path, "env_state", slice(20, 30), 0.5)
    assert messages(path, "error") == ["episodes 2: frozen, no observation ever changes"]


def test_a_goal_that_is_fixed_in_every_episode_is_no_finding(path):
    for start in range(0, 60, 10):
        edit(path, "env_state", slice(start, start + 10), start / 10.0)
    assert validate_store(path) == []


def test_a_long_pause_is_a_warning_and_a_short_one_is_not(path):
    for key in EMBODIMENT.obs:
        edit(path, key, slice(33, 37), 0.25)
    assert validate_store(path) == []
    for key in EMBODIMENT.obs:
        edit(path, key, slice(33, 40), 0.25)
    assert messages(path, "warning") == ["episodes 3: idle for more than 50% of the steps"]


def test_a_constant_action_is_a_warning(path):
    edit(path, "action", slice(10, 20), 0.5)
    assert messages(path, "warning") == ["episodes 1: one constant action throughout"]


def test_actions_outside_the_bounds_are_an_error(path):
    edit(path, "action", (slice(15, 18), 1), 4.0)
    (error,) = messages(path, "error")
    assert "5.0% of the steps have actions outside the declared bounds (dimension: share 1: 5.0%)" in error
    assert "measured action_low=[" in error and ",4]" in error and error.endswith("; episodes 1")
    edit(path, "action", (slice(15, 18), 1), np.float32(1.0))
    assert validate_store(path) == []


def test_many_clipped_actions_are_a_warning_but_a_switch_is_not(path):
    edit(path, "action", (slice(0, 45), 0), 1.0)
    assert messages(path, "warning") == ["action: large share of values exactly on a bound (dimension: share) 0: 75%"]
    edit(path, "action", (slice(0, 60, 2), 0), -1.0)
    edit(path, "action", (slice(1, 60, 2), 0), 1.0)
    assert validate_store(path) == []


def test_duplicate_episodes_are_a_warning(path):
    for key in ("agent_pos", "env_state", "action"):
        array = zarr.open_array(path / "data" / key, mode="r+")
        array[40:50] = array[0:10]
    assert messages(path, "warning") == ["identical episodes: [0, 4]; the copies count twice in training"]


def test_near_constant_dimensions_are_a_warning(path):
    edit(path, "env_state", (slice(0, 60), 1), 3.0)
    assert messages(path, "warning") == ["env_state: dimensions [1] are near-constant (range < 0.0001)"]


def test_failed_episodes_are_a_warning(path):
    zarr.open_array(path / "meta/episode_success", mode="r+")[4] = False
    assert messages(path, "warning") == ["1 episodes are no successes: 4"]


CLOUD = CloudSpec(points=40, crop_low=(-0.5, -0.5, 0.0), crop_high=(0.5, 0.5, 0.3), color=True)


@pytest.fixture
def clouds(tmp_path):
    """Six sound episodes of ten coloured clouds."""
    rng = np.random.default_rng(0)
    key = KeySpec(CLOUD.shape, "m", "world", cloud=CLOUD)
    with EpisodeWriter(tmp_path / "c.zarr", replace(EMBODIMENT, obs={"point_cloud": key}), {}) as writer:
        for seed in range(6):
            xyz = rng.uniform(CLOUD.crop_low, CLOUD.crop_high, (10, 40, 3))
            obs = {"point_cloud": np.concatenate([xyz, rng.random((10, 40, 3))], axis=2)}
            writer.add(Episode(obs, rng.uniform(-0.9, 0.9, (10, 2)), np.zeros(10), True, seed))
    return tmp_path / "c.zarr"


def test_sound_clouds_have_no_findings_even_with_points_on_the_edge_of_the_crop(clouds):
    for axis in range(3):
        edit(clouds, "point_cloud", (slice(0, 60), 0, axis), np.float32(CLOUD.crop_high[axis]))
    assert validate_store(clouds) == []


def test_empty_clouds_are_an_error_and_padded_ones_a_warning(clouds):
    edit(clouds, "point_cloud", slice(23, 25), 0.0)
    wanted = (
        "point_cloud: empty cloud (all points at the origin) in 2 of 60 steps, first at episode 2, step 3; episodes 2"
    )
    assert messages(clouds, "error") == [wanted] and messages(clouds, "warning") == []
    edit(clouds, "point_cloud", (slice(23, 25), slice(0, 30)), 0.3)
    edit(clouds, "point_cloud", (slice(23, 25), slice(0, 30), 0), np.tile(np.linspace(-0.4, 0.4, 30), (2, 1)))
    (warning,) = messages(clouds, "warning")
    assert warning.startswith("point_cloud: points at the origin (zero padding?) in 2 of 60 steps")
    assert messages(clouds, "error") == []


def test_clouds_of_few_points_repeated_are_a_warning(clouds):
    array = zarr.open_array(clouds / "data/point_cloud", mode="r+")
    array[7] = np.resize(array[7][:20], (40, 6))
    assert validate_store(clouds) == []
    array[7] = np.resize(array[7][:19], (40, 6))
    (warning,) = messages(clouds, "warning")
    assert "more than half of the points are repeated (few points in the crop?) in 1 of 60 steps" in warning


@pytest.mark.parametrize(("axis", "value"), [(2, -0.01), (2, 0.31), (0, -0.51)])
def test_points_outside_the_declared_crop_are_an_error(clouds, axis, value):
    edit(clouds, "point_cloud", (59, 12, axis), value)
    (error,) = messages(clouds, "error")
    assert error == (
        "point_cloud: points outside the declared crop, (-0.5, -0.5, 0.0) to (0.5, 0.5, 0.3) m in 1 of 60 steps, "
        "first at episode 5, step 9; episodes 5"
    )


def test_colours_as_bytes_are_an_error(clouds):
    edit(clouds, "point_cloud", (0, 0, 4), 128.0)
    assert messages(clouds, "error")[0].startswith("point_cloud: colours outside 0..1 in 1 of 60 steps")


def write_lengths(path, lengths, *, idle=0):
    """Episodes of these lengths that walk on evenly, after `idle` steps of standing still; each starts elsewhere."""
    rng = np.random.default_rng(1)
    with EpisodeWriter(path, EMBODIMENT, {"task": "own"}) as writer:
        for seed, steps in enumerate(lengths):
            walk = np.concatenate([np.zeros((min(idle, steps - 1), 3)), rng.normal(1, 0.3, (steps, 3))])[:steps]
            place = 100 * rng.normal(size=3) + walk.cumsum(axis=0)
            obs = {"agent_pos": place, "env_state": np.tile(rng.normal(size=2), (steps, 1))}
            writer.add(Episode(obs, rng.uniform(-0.9, 0.9, (steps, 2)), np.zeros(steps), True, seed))
    return path


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [2], [2, 1, 2], [1, 30, 2, 30]])
def test_every_check_survives_episodes_of_one_and_two_steps(tmp_path, capsys, lengths):
    path = write_lengths(tmp_path / "a.zarr", lengths)
    assert not [line for line in messages(path, "error") if "no observation ever changes" not in line]
    for verb in ("inspect", "validate", "view"):
        assert main(["data", verb, str(path)]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_clouds_and_images_of_one_step_are_checked_too(tmp_path):
    obs = {"image": KeySpec((4, 4, 3), dtype="uint8"), "cloud": KeySpec((8, 3))}
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "a.zarr", replace(EMBODIMENT, obs=obs), {}) as writer:
        for seed in range(2):
            seen = {"image": rng.integers(0, 256, (1, 4, 4, 3), np.uint8), "cloud": rng.normal(size=(1, 8, 3))}
            writer.add(Episode(seen, np.zeros((1, 2)), np.zeros(1), True, seed))
    assert validate_store(tmp_path / "a.zarr") == [
        Finding("warning", "action: dimensions [0, 1] are near-constant (range < 0.0001)")
    ]


@pytest.mark.parametrize("idle", [9, 10, 20])
def test_from_ten_idle_steps_at_the_start_there_is_a_warning_and_a_way_to_trim_them(tmp_path, capsys, idle):
    path = write_lengths(tmp_path / "a.zarr", [60, 50, 45], idle=idle + 1)
    found = messages(path, "warning")
    assert messages(path, "error") == [] and len(found) == (idle >= 10)
    if idle >= 10:
        assert f"episodes 0, 1, 2: nothing moves in the first steps (up to {idle})" in found[0]
        assert f"`trim_store({str(path)!r}, out=NEW)`" in found[0]
    out = tmp_path / "b.zarr"
    assert main(["data", "trim", str(path), f"out={out}"]) == 0
    assert f"{3 * idle} idle steps left out at the start of 3 episodes" in capsys.readouterr().out
    before, after = EpisodeStore.open(path), EpisodeStore.open(out)
    assert np.diff(after.episode_ends, prepend=0).tolist() == [60 - idle, 50 - idle, 45 - idle]
    assert after.episode_seeds.tolist() == [0, 1, 2] and after.attrs == before.attrs
    for key in before.keys:  # the last idle step stays: its action is the one that moves
        np.testing.assert_array_equal(after.load(key, slice(0, 60 - idle)), before.load(key, slice(idle, 60)))
    assert validate_store(out) == []


def test_rollouts_that_were_written_as_one_episode_are_an_error(tmp_path):
    path = write_lengths(tmp_path / "a.zarr", [40] * 20)
    assert validate_store(path) == []
    store = EpisodeStore.open(path)
    with EpisodeWriter(tmp_path / "b.zarr", EMBODIMENT, {}) as writer:
        obs = {key: store.load(key) for key in store.obs_keys}
        writer.add(Episode(obs, store.load("action"), store.load("reward"), True, 0))
    (error,) = messages(tmp_path / "b.zarr", "error")
    assert error.startswith("much of the state jumps at once in 19 steps, as at a reset, first at episode 0, step 40")


def test_a_gripper_that_switches_is_no_reset(path):
    for start in range(0, 60, 10):
        edit(path, "env_state", (slice(start, start + 10), 1), np.repeat([0.0, 1.0], 5))
    assert validate_store(path) == []


def test_dimensions_that_hardly_move_are_named_with_what_training_makes_of_them(tmp_path):
    spec = KeySpec((3,), "m", names=("x", "y", "z"))
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "a.zarr", replace(EMBODIMENT, obs={"agent_pos": spec}), {}) as writer:
        for seed in range(3):
            obs = {"agent_pos": rng.uniform(0, [1, 1.5e-4, 1], (20, 3))}
            writer.add(Episode(obs, rng.uniform(-0.9, 0.9, (20, 2)), np.zeros(20), True, seed))
    assert messages(tmp_path / "a.zarr", "warning") == [
        "agent_pos: dimensions [1 (y)] hardly move (range < 0.002); training scales them as if they ranged over that"
    ]
