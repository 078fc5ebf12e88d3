"""The contract: it survives JSON, says nothing impossible, and every way in which two clouds can differ is named."""

import json
from dataclasses import replace

import numpy as np
import pytest

from flowpolicy.embodiment import CloudSpec, Embodiment, KeySpec, load_embodiment, save_embodiment as save
from flowpolicy.matching import differences, remedies, require_match
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
        ({"points": 1024}, "pass `points=512`"),
        ({"crop_low": (-0.5, 0.3, 0.0)}, "pass `crop_low=(-0.5, 0.3, 0.01)`"),
        ({"color": True, "voxel_m": 0.005}, "pass `color=False` `voxel_m=0.0`"),
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
        image = {"image_front": KeySpec((side, side, 3), dtype="uint8")}
        return replace(EMBODIMENT, obs=image, reference_key="", reference_index=())

    assert remedies(with_image(96), with_image(128)) == ["`image_size=96`"]
    assert remedies(with_image(96), with_cloud(CLOUD)) == ["`obs='rgb'`"]
    assert remedies(with_cloud(CLOUD), EMBODIMENT) == ["`obs='point_cloud'`"]
    assert remedies(EMBODIMENT, with_image(96)) == ["`obs='state'`"]
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
        ({"points": 0}, "points: wanted a whole number >= 1"),
        ({"voxel_m": -0.01}, "voxel_m: wanted a number >= 0"),
        ({"voxel_m": float("nan")}, "voxel_m: wanted finite"),
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


NAN, INF = float("nan"), float("inf")
IMPOSSIBLE = [
    ({"action_low": (-2.0, NAN, -1.0)}, "action_low: wanted finite numbers, got nan"),
    ({"action_high": (2.0, INF, 1.0)}, "action_high: wanted finite numbers, got inf"),
    ({"action_high": (2.0, 10**400, 1.0)}, "action_high: wanted finite numbers"),
    ({"action_low": (-2.0, 3.2, -1.0)}, r"action_low\[1\]: wanted at most action_high\[1\] = 2, got 3.2"),
    ({"action_low": (-2.0, -2.0)}, r"action_low: wanted 3 numbers, one per entry of action.shape, got \(-2.0, -2.0\)"),
    ({"action_high": (2.0, 2.0, None)}, "action_high: wanted finite numbers, got None"),
    ({"action_high": None}, "action_high: wanted a list of numbers, got None"),
    ({"control_hz": 0}, "control_hz: wanted a number above 0, got 0"),
    ({"control_hz": -20.0}, "control_hz: wanted a number above 0, got -20.0"),
    ({"control_hz": NAN}, "control_hz: wanted finite numbers, got nan"),
    ({"control_hz": True}, "control_hz: wanted finite numbers, got True"),
    ({"control_hz": "20"}, "control_hz: wanted finite numbers, got '20'"),
    ({"reference_index": (1, 0, -2)}, "reference_index: wanted a whole number >= -1, got -2"),
    ({"reference_index": (1, 0)}, r"reference_index: wanted 3 numbers, .* or none, got \(1, 0\)"),
    (
        {"reference_index": (1, 0, 3)},
        r"reference_index: wanted numbers below 3, the length of agent_pos, .*\(1, 0, 3\)",
    ),
    ({"reference_index": (1, 0, 0.5)}, "reference_index: wanted a whole number >= -1, got 0.5"),
    ({"reference_key": "joints"}, r"reference_key: wanted one of the vectors in obs \['agent_pos', .*got 'joints'"),
    ({"reference_key": ""}, r"reference_key: wanted a key of obs for reference_index .*\(1, 0, -1\), got ''"),
    ({"robot": 7}, "robot: wanted text, got 7"),
    ({"action_kind": None}, "action_kind: wanted text, got None"),
    ({"gripper": ["open"]}, "gripper: wanted text, got "),
    ({"obs": {}}, "obs: wanted key -> KeySpec, got {}"),
]


@pytest.mark.parametrize(("change", "line"), IMPOSSIBLE)
def test_an_impossible_field_is_refused_where_it_is_made_and_where_it_is_read(tmp_path, change, line):
    with pytest.raises(ValueError, match=f"^embodiment: (?:{line})"):
        replace(EMBODIMENT, **change)
    (tmp_path / "embodiment.json").write_text(json.dumps(EMBODIMENT.to_dict() | change))
    with pytest.raises(ValueError, match=f"embodiment.json: embodiment: (?:{line})") as error:
        load_embodiment(tmp_path / "embodiment.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["camera/front", ".agent_pos", "action", "reward", "", "-x", "two words", 3])
def test_a_key_is_a_plain_word_that_a_store_and_a_policy_can_carry(key):
    with pytest.raises(ValueError, match="embodiment: obs: wanted keys "):
        replace(EMBODIMENT, obs={**EMBODIMENT.obs, key: KeySpec((2,))})


IMPOSSIBLE_KEYS = [
    ({"shape": 3}, "shape: wanted a list of whole numbers, got 3"),
    ({"shape": "3"}, "shape: wanted a list of whole numbers, got '3'"),
    ({"shape": [0]}, "shape: wanted a whole number >= 1, got 0"),
    ({"shape": [2.0]}, "shape: wanted a whole number >= 1, got 2.0"),
    ({"shape": [True]}, "shape: wanted a whole number >= 1, got True"),
    ({"shape": [3], "names": ["x", "y"]}, r"names: wanted one per entry of shape \(3,\) or none, got \('x', 'y'\)"),
    ({"shape": [3], "names": "xyz"}, "names: wanted a list of texts, got 'xyz'"),
    ({"shape": [1], "names": [1]}, "names: wanted text, got 1"),
    ({"shape": [3], "dtype": "float64"}, "dtype: wanted float32 or uint8, got 'float64'"),
    ({"shape": [3], "dtype": "floaty"}, "dtype: wanted float32 or uint8, got 'floaty'"),
    ({"shape": [3], "dtype": None}, "dtype: wanted text, got None"),
    (
        {"shape": [3], "dtype": "uint8"},
        r"dtype: wanted uint8 for images \(H, W, C\) only, got 'uint8 with shape \(3,\)'",
    ),
    ({"shape": [3], "unit": 1}, "unit: wanted text, got 1"),
    ({"shape": [3], "frame": None}, "frame: wanted text, got None"),
]


@pytest.mark.parametrize(("change", "line"), IMPOSSIBLE_KEYS)
def test_an_impossible_key_is_refused_where_it_is_made_and_where_it_is_read(change, line):
    with pytest.raises(ValueError, match=f"^KeySpec: {line}"):
        KeySpec(**change)
    record = EMBODIMENT.to_dict()
    record["obs"]["env_state"] = change
    with pytest.raises(ValueError, match=f"^embodiment: obs.env_state: KeySpec: {line}"):
        Embodiment.from_dict(record)


@pytest.mark.parametrize("action", [KeySpec((2, 2)), KeySpec(()), KeySpec((4, 4, 3), dtype="uint8"), {"shape": [3]}])
def test_an_action_is_a_vector_of_float32(action):
    with pytest.raises(
        ValueError, match=r"embodiment: action: wanted a KeySpec of shape \(A,\) and dtype float32, got"
    ):
        replace(EMBODIMENT, action=action)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"crop_low": (-INF, 0.3, 0.01)}, "crop_low: wanted finite numbers, got -inf"),
        ({"crop_low": 0.1}, "crop_low: wanted a list of numbers, got 0.1"),
        ({"points": 512.0}, "points: wanted a whole number >= 1, got 512.0"),
        ({"points": "512"}, "points: wanted a whole number >= 1, got '512'"),
        ({"color": 1}, "color: wanted true or false, got 1"),
        ({"voxel_m": None}, "voxel_m: wanted finite numbers, got None"),
        ({"frame": 3}, "frame: wanted text, got 3"),
    ],
)
def test_an_impossible_cloud_is_refused_where_it_is_made_and_where_it_is_read(change, line):
    with pytest.raises(ValueError, match=f"^CloudSpec: {line}"):
        replace(CLOUD, **change)
    record = with_cloud(CLOUD).to_dict()
    record["obs"]["point_cloud"]["cloud"] |= change
    with pytest.raises(ValueError, match=f"^embodiment: obs.point_cloud: CloudSpec: {line}"):
        Embodiment.from_dict(record)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (None, "embodiment: wanted an object, got None"),
        ([1], "embodiment: wanted an object, got"),
        ({"obs": [1]}, "embodiment: obs: wanted an object"),
        ({"obs": {"agent_pos": 3}}, "embodiment: obs.agent_pos: wanted shape and any of"),
        ({"action": [3]}, "embodiment: action: wanted shape and any of"),
        ({"obs": {"cloud": {"shape": [512, 3], "cloud": 5}}}, r"embodiment: obs.cloud: cloud: wanted \['crop_high', "),
        ({"obs": {"cloud": {"shape": [512, 3], "cloud": {"points": 5}}}}, "embodiment: obs.cloud: cloud: wanted"),
        ({"schema_version": "1"}, "embodiment: wanted schema_version 1, got 1"),
    ],
)
def test_a_record_of_another_form_is_one_line(change, line):
    record = EMBODIMENT.to_dict() | change if isinstance(change, dict) else change
    with pytest.raises(ValueError, match=f"^{line}"):
        Embodiment.from_dict(record)


def test_numbers_of_numpy_become_python_s_own_so_that_the_record_is_json():
    low, rate, index = np.float32([-2, -2, -1]), np.float32(20), np.int64([1, 0, -1])
    made = replace(
        EMBODIMENT,
        action_low=tuple(low),
        control_hz=rate,
        reference_index=tuple(index),
        obs={**EMBODIMENT.obs, "agent_pos": KeySpec(tuple(np.int64([3])), "rad")},
    )
    assert made == EMBODIMENT and Embodiment.from_dict(json.loads(json.dumps(made.to_dict()))) == EMBODIMENT


def test_equal_bounds_are_an_entry_that_never_changes():
    fixed = replace(EMBODIMENT, action_low=(-2.0, 0.25, -1.0), action_high=(2.0, 0.25, 1.0))
    assert Embodiment.from_dict(fixed.to_dict()) == fixed


def test_a_caller_s_dictionary_may_change_afterwards():
    obs = dict(EMBODIMENT.obs)
    made = replace(EMBODIMENT, obs=obs)
    obs["camera/front"] = KeySpec((2,))
    assert made == EMBODIMENT
