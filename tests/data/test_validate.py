"""Validate: a sound store has no findings; every kind of damage is found and named."""

from dataclasses import replace

import numpy as np
import pytest
import zarr

from flowpolicy.data.store import Episode, EpisodeWriter
from flowpolicy.data.validate import validate_store
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
