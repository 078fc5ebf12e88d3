"""Clouds and images from the store to the robot's chunk: normalisers, types, memory, checkpoints, training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowpolicy.checkpoint import create_policy, load_policy, save_policy
from flowpolicy.cli import config
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.data.store import Episode, EpisodeStore, EpisodeWriter
from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.encoders.resnet import ResNet18
from flowpolicy.policy import FlowPolicy, build_policy
from flowpolicy.seeding import stream
from flowpolicy.tracking import JsonlTracker
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings
from tests.helpers import POLICY_CONFIG

_CLOUD, _IMAGE = KeySpec((24, 3), "m", "world"), KeySpec((40, 40, 3), dtype="uint8")
_EMBODIMENT = Embodiment(
    robot="seeing arm",
    obs={"agent_pos": KeySpec((4,), "m", "world"), "point_cloud": _CLOUD, "image_front": _IMAGE},
    action=KeySpec((3,), "m"),
    action_kind="eef_delta",
    control_hz=20.0,
    action_low=(-1.0, -1.0, -1.0),
    action_high=(1.0, 1.0, 1.0),
    reference_key="agent_pos",
    reference_index=(0, 1, -1),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    path, rng = tmp_path_factory.mktemp("seeing") / "demos.zarr", np.random.default_rng(0)
    with EpisodeWriter(path, _EMBODIMENT, {"task": "test"}) as writer:
        for seed in range(3):
            position = rng.normal(0, 0.05, (12, 4)).cumsum(axis=0).astype(np.float32)
            cloud = rng.uniform([-0.3, 0.4, 0.0], [0.3, 0.9, 0.2], (12, 24, 3)).astype(np.float32)
            image = rng.integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
            obs = {"agent_pos": position, "point_cloud": cloud, "image_front": image}
            writer.add(Episode(obs, np.clip(position[:, :3], -1, 1), np.zeros(12, np.float32), True, seed))
    return EpisodeStore.open(path)


def _config(encoder: str, keys: list[str], *changes: str) -> dict[str, Any]:
    """The small test policy around an encoder of the catalogue."""
    options = [f"policy/encoder={encoder}", "dataset.path=demos.zarr", *changes]
    node = config.plain(config.load("train", options))["policy"]["encoder"]
    return {**POLICY_CONFIG, "encoder": node, "obs_keys": ["agent_pos", *keys]}


_KINDS = {
    "point_cloud": ("point_cloud", ["point_cloud"]),
    "point_cloud_relative": ("point_cloud_relative", ["point_cloud"]),
    "resnet18": ("resnet18", ["image_front"]),
    "vit": ("vit", ["image_front"]),
    "all": ("vit", ["point_cloud", "image_front"]),
}


def _dataset(store: EpisodeStore, policy: FlowPolicy) -> SequenceDataset:
    return SequenceDataset.from_store(store, horizon=8, obs_horizon=2, keys=policy.obs_keys)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_loaded_policy_predicts_the_same_bit_for_bit(store: EpisodeStore, kind: str, tmp_path: Path) -> None:
    policy = create_policy(_config(*_KINDS[kind]), _EMBODIMENT).eval()
    dataset = _dataset(store, policy)
    fit_normalizers(policy, dataset)
    save_policy(policy, tmp_path / "policy")
    obs = dataset.batch(torch.arange(5)).obs
    wanted = policy.predict(obs, generator=stream(0, "n"))
    assert torch.equal(load_policy(tmp_path).predict(obs, generator=stream(0, "n")), wanted)
    for key in obs:
        other = obs[key].roll(1, dims=0)
        assert not torch.equal(policy.predict({**obs, key: other}, generator=stream(0, "n")), wanted), key


@pytest.mark.parametrize("kind", ["point_cloud", "vit", "all"])
def test_a_policy_that_sees_trains_and_stops_at_a_loadable_checkpoint(
    store: EpisodeStore, kind: str, tmp_path: Path
) -> None:
    policy = create_policy(_config(*_KINDS[kind]), _EMBODIMENT)
    dataset = _dataset(store, policy)
    fit_normalizers(policy, dataset)
    before = {name: value.detach().clone() for name, value in policy.encoder.named_parameters()}
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    ImitationTrainer(
        policy,
        dataset,
        settings=TrainerSettings(steps=2, batch_size=4, warmup_steps=0, log_every=1, precision="bf16"),
        checkpoints=Checkpoints(tmp_path / "checkpoints", facts={}),
        tracker=tracker,
        seed=0,
        progress=False,
    ).run()
    tracker.close()
    assert not [name for name, value in policy.encoder.named_parameters() if torch.equal(value, before[name])]
    obs = dataset.batch(torch.arange(2)).obs
    assert load_policy(tmp_path).predict(obs, generator=stream(0, "n")).shape == (2, 4, 3)


def test_images_stay_uint8_in_memory_and_have_no_normaliser(store: EpisodeStore) -> None:
    policy = create_policy(_config(*_KINDS["all"]), _EMBODIMENT)
    dataset = _dataset(store, policy)
    assert dataset.obs["image_front"].dtype == torch.uint8
    assert dataset.batch(torch.arange(3)).obs["image_front"].dtype == torch.uint8
    fit_normalizers(policy, dataset)
    assert policy.normalized_keys == ("agent_pos", "point_cloud")


@pytest.mark.parametrize("mode", ["minmax", "quantile", "meanstd"])
def test_a_cloud_is_normalised_per_coordinate_over_all_points(store: EpisodeStore, mode: Any) -> None:
    policy = create_policy(_config(*_KINDS["point_cloud"]), _EMBODIMENT)
    dataset = _dataset(store, policy)
    fit_normalizers(policy, dataset, obs_mode=mode)
    points = policy.normalizer("point_cloud")(dataset.obs["point_cloud"]).flatten(0, 1)
    found = {
        "minmax": torch.stack([points.amin(0), points.amax(0)]),
        "quantile": points.quantile(torch.tensor([0.01, 0.99]), dim=0),
        "meanstd": torch.stack([points.mean(0) - 1, points.std(0, correction=0)]),
    }[mode]
    torch.testing.assert_close(found, torch.tensor([[-1.0], [1.0]]).expand(2, 3), atol=1e-4, rtol=0)


def test_the_relative_encoder_learns_the_units_from_the_normalisers(store: EpisodeStore) -> None:
    """Hand and points in metres, hand and points normalised: the same differences in the cloud's normalised unit."""
    policy = create_policy(_config(*_KINDS["point_cloud_relative"]), _EMBODIMENT)
    dataset = _dataset(store, policy)
    fit_normalizers(policy, dataset)
    part: Any = policy.encoder.get_submodule("parts.point_cloud")
    obs, cloud = dataset.batch(torch.arange(4)).obs, policy.normalizer("point_cloud")
    hand = policy.normalizer("agent_pos")(obs["agent_pos"])[..., :3] * part.hand_scale + part.hand_offset
    torch.testing.assert_close(hand, cloud(obs["agent_pos"][..., :3]))


def test_an_image_of_another_type_is_refused(store: EpisodeStore) -> None:
    policy = create_policy(_config(*_KINDS["vit"]), _EMBODIMENT)
    obs = _dataset(store, policy).batch(torch.arange(2)).obs
    with pytest.raises(ValueError, match="'image_front' must be uint8 .*, 0 to 255, got float32"):
        policy.predict({**obs, "image_front": obs["image_front"] / 255}, generator=stream(0, "n"))
    floats = replace(_EMBODIMENT, obs={"image": KeySpec((40, 40, 3))}, reference_key="", reference_index=())
    with pytest.raises(ValueError, match=r"images \['image'\] must be uint8"):
        build_policy(embodiment=floats, encoder=None, net=None, head=None)  # type: ignore[arg-type]


def test_a_checkpoint_needs_no_weight_file_that_training_started_from(store: EpisodeStore, tmp_path: Path) -> None:
    torch.manual_seed(1)
    start, file = ResNet18(shape=(40, 40, 3), state_dim=0).state_dict(), tmp_path / "resnet18.pth"
    torch.save({name: value for name, value in start.items() if not name.startswith(("maps", "project"))}, file)
    facts = _config("resnet18", ["image_front"], f"policy.encoder.image.weights={file}")
    policy = create_policy(facts, _EMBODIMENT).eval()
    assert torch.equal(policy.encoder.get_parameter("parts.image_front.conv1.weight"), start["conv1.weight"])
    save_policy(policy, tmp_path / "policy")
    file.unlink()
    obs = _dataset(store, policy).batch(torch.arange(2)).obs
    wanted = policy.predict(obs, generator=stream(0, "n"))
    assert torch.equal(load_policy(tmp_path).predict(obs, generator=stream(0, "n")), wanted)
