"""The contract: it survives JSON, and every way in which two clouds can differ is named."""

from dataclasses import replace

import pytest

from flowpolicy.embodiment import (
    CloudSpec,
    Embodiment,
    KeySpec,
    differences,
    load_embodiment,
    remedies,
    require_match,
)
from flowpolicy.embodiment import save_embodiment as save
from tests.helpers import EMBODIMENT

CLOUD = CloudSpec(crop_low=(-0.5, 0.3, 0.01), crop_high=(0.5, 1.0, 0.4))


def with_cloud(cloud: CloudSpec) -> Embodiment:
    return replace(EMBODIMENT, obs={**EMBODIMENT.obs, "point_cloud": KeySpec(cloud.shape, "m", cloud=cloud)})


def test_a_cloud_survives_the_record_on_disk(tmp_path):
    save(with_cloud(CLOUD), tmp_path / "embodiment.json")
    loaded = load_embodiment(tmp_path / "embodiment.json")
    assert loaded == with_cloud(CLOUD) and loaded.obs["point_cloud"].cloud == CLOUD
    assert differences(loaded, with_cloud(CLOUD)) == []


def test_keys_without_a_cloud_are_recorded_as_they_always_were():
    record = EMBODIMENT.to_dict()
    assert set(record["obs"]["agent_pos"]) == {"shape", "unit", "frame", "names", "dtype"} == set(record["action"])
    assert Embodiment.from_dict(record) == EMBODIMENT


def test_corners_given_as_lists_make_the_same_spec():
    assert CloudSpec(crop_low=[-0.5, 0.3, 0.01], crop_high=[0.5, 1, 0.4]) == CLOUD  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"crop_low": (-0.5, 0.3, 0.0)}, "cloud.crop_low: wanted [-0.5, 0.3, 0.01], got [-0.5, 0.3, 0.0]"),
        ({"crop_high": (0.5, 1.0, 0.5)}, "cloud.crop_high: wanted [0.5, 1.0, 0.4], got [0.5, 1.0, 0.5]"),
        ({"frame": "base"}, "cloud.frame: wanted world, got base"),
        ({"voxel_m": 0.005}, "cloud.voxel_m: wanted 0.0, got 0.005"),
        ({"points": 1024}, "cloud.points: wanted 512, got 1024"),
        ({"color": True}, "cloud.color: wanted False, got True"),
    ],
)
def test_clouds_that_were_made_differently_do_not_meet(change, line):
    wanted, got = with_cloud(CLOUD), with_cloud(replace(CLOUD, **change))
    assert f"obs.point_cloud.{line}" in differences(wanted, got)
    with pytest.raises(ValueError, match=r"dataset and task disagree on the embodiment: obs\.point_cloud"):
        require_match(wanted, got, what="dataset and task")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": 1024}, "pass task.view.points=512"),
        ({"crop_low": (-0.5, 0.3, 0.0)}, "pass 'task.view.crop_low=[-0.5,0.3,0.01]'"),
        ({"color": True, "voxel_m": 0.005}, "pass task.view.color=false task.view.voxel_m=0.0"),
    ],
)
def test_the_error_says_how_a_simulator_can_be_made_to_see_the_same(change, words):
    wanted, got = with_cloud(CLOUD), with_cloud(replace(CLOUD, **change))
    with pytest.raises(ValueError) as error:
        require_match(wanted, got, what="checkpoint and task", simulated=True)
    assert str(error.value).endswith(f". To see as the checkpoint does, {words}")
    with pytest.raises(ValueError) as error:  # a robot's cameras take no such words
        require_match(wanted, got, what="checkpoint and robot")
    assert "pass" not in str(error.value)


def test_the_error_names_the_kind_of_observation_or_the_size_of_the_images():
    def with_image(side):
        return replace(EMBODIMENT, obs={"image_front": KeySpec((side, side, 3), dtype="uint8")})

    assert remedies(with_image(96), with_image(128)) == ["task.view.image_size=96"]
    assert remedies(with_image(96), with_cloud(CLOUD)) == ["task.obs=rgb"]
    assert remedies(with_cloud(CLOUD), EMBODIMENT) == ["task.obs=point_cloud"]
    assert remedies(EMBODIMENT, with_image(96)) == ["task.obs=state"]
    assert remedies(EMBODIMENT, replace(EMBODIMENT, robot="another")) == []  # words do not help


def test_a_cloud_that_does_not_say_how_it_was_made_differs_from_one_that_does():
    silent = replace(EMBODIMENT, obs={**EMBODIMENT.obs, "point_cloud": KeySpec((512, 3), "m")})
    assert differences(with_cloud(CLOUD), silent) == ["obs.point_cloud.cloud: wanted, but not there"]
    assert differences(silent, with_cloud(CLOUD)) == ["obs.point_cloud.cloud: there, but not wanted"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_low": (0.5, 0.3, 0.01)}, "wanted crop_low < crop_high on each axis"),
        ({"crop_low": (0.0, 0.0)}, "wanted 3 numbers per corner"),
        ({"points": 0}, "wanted points >= 1"),
        ({"voxel_m": -0.01}, "voxel_m >= 0"),
        ({"voxel_m": float("nan")}, "voxel_m >= 0"),
    ],
)
def test_impossible_clouds_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CLOUD, **change)


def test_a_key_may_not_contradict_its_cloud():
    with pytest.raises(ValueError, match=r"the cloud has shape \(512, 3\), got shape \(1024, 3\)"):
        KeySpec((1024, 3), cloud=CLOUD)
    with pytest.raises(ValueError, match="the cloud is in frame world, got frame base"):
        KeySpec((512, 3), frame="base", cloud=CLOUD)
