"""Augmentation: each kind of key is disturbed as stated, state as it always was, and only the trainer does it."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flowpolicy
from flowpolicy.data.augment import Augmentation, augment, disturb_cloud, disturb_image
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.embodiment import CloudSpec, KeySpec
from flowpolicy.encoders.multimodal import MultiModalEncoder
from flowpolicy.encoders.pointnet import PointNet
from flowpolicy.encoders.resnet import ResNet18
from flowpolicy.heads.regression import RegressionHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.policy import build_policy
from flowpolicy.tracking import JsonlTracker
from flowpolicy.trainers import imitation
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings
from flowpolicy.types import Batch
from tests.helpers import EMBODIMENT

OFF = Augmentation(image_shift=0, image_color=0.0, point_jitter_m=0.0, point_dropout=0.0)
NORMALIZERS = {
    "agent_pos": LinearNormalizer(torch.tensor([2.0, 0.5, 4.0]), torch.zeros(3)),
    "env_state": LinearNormalizer(torch.tensor([1.0, 3.0]), torch.zeros(2)),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(*, size=64, cloud=False, image=False):
    generator = rng(9)
    obs = {"agent_pos": torch.randn(size, 2, 3, generator=generator)}
    if image:
        obs["image_front"] = torch.randint(0, 256, (size, 2, 12, 16, 3), generator=generator, dtype=torch.uint8)
    if cloud:
        obs["point_cloud"] = torch.randn(size, 2, 40, 6, generator=generator)
    obs["env_state"] = torch.randn(size, 2, 2, generator=generator)
    return Batch(obs, torch.randn(size, 8, 3, generator=generator), torch.ones(size, 8))


def state_noise_as_it_always_was(obs, std, generator):
    """Key after key, one draw each; trainings of older versions must repeat bit for bit."""
    noisy = {}
    for key, value in obs.items():
        noisy[key] = value + torch.randn(value.shape, generator=generator) * (std / NORMALIZERS[key].scale)
    return noisy


def test_state_gets_the_same_noise_as_ever_and_the_loss_the_same_draws():
    ours, theirs = rng(), rng()
    out = augment(batch(), NORMALIZERS, Augmentation(), obs_noise=0.01, generator=ours)
    for key, value in state_noise_as_it_always_was(batch().obs, 0.01, theirs).items():
        assert torch.equal(out.obs[key], value), key
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(out.action, batch().action) and torch.equal(out.mask, batch().mask)


def test_noise_on_state_does_not_depend_on_what_else_is_seen():
    plain = augment(batch(), NORMALIZERS, Augmentation(), obs_noise=0.01, generator=rng())
    every = batch(cloud=True, image=True)
    mixed = augment(
        every._replace(obs={**every.obs, **batch().obs}), NORMALIZERS, Augmentation(), obs_noise=0.01, generator=rng()
    )
    for key in NORMALIZERS:
        assert torch.equal(mixed.obs[key], plain.obs[key])


def test_everything_off_changes_nothing_and_draws_nothing():
    given, generator = batch(cloud=True, image=True), rng()
    out = augment(given, NORMALIZERS, OFF, obs_noise=0.0, generator=generator)
    assert all(torch.equal(out.obs[key], value) for key, value in given.obs.items())
    assert torch.equal(generator.get_state(), rng().get_state())


def test_one_generator_decides_everything_and_the_input_stays_as_it_is():
    given = batch(cloud=True, image=True)
    before = {key: value.clone() for key, value in given.obs.items()}
    settings = Augmentation(train_points=30, rotation_deg=5.0, image_crop=0.8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (
        augment(given, NORMALIZERS, settings, obs_noise=0.01, generator=rng(seed)).obs for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in before.items():
        assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key]), key
        assert torch.equal(given.obs[key], value) and first[key].dtype == value.dtype, key


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 1, 40, 4), torch.zeros(2, 1, 8, 8, 3), torch.zeros(2, 1, 8, 8, 1, dtype=torch.uint8)]
)
def test_a_key_of_no_known_kind_is_an_error(value):
    given = Batch({"odd": value}, torch.zeros(2, 8, 3), torch.ones(2, 8))
    with pytest.raises(ValueError, match=re.escape(f"'odd' is {tuple(value.shape)} {value.dtype}; wanted state")):
        augment(given, {}, Augmentation(), obs_noise=0.0, generator=rng())


@pytest.mark.parametrize(
    "change",
    [
        {"image_shift": -1},
        {"image_shift": 1.5},
        {"image_crop": 0.0},
        {"image_crop": 1.1},
        {"image_color": 1.0},
        {"point_dropout": 1.0},
        {"point_jitter_m": float("nan")},
        {"train_points": -1},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=rf"`{next(iter(change))}` must be"):
        Augmentation(**change)


def cloud(size=64, points=400):
    return torch.randn(size, 2, points, 6, generator=rng(3))


def test_point_jitter_moves_points_by_its_size_and_leaves_colours():
    out = disturb_cloud(cloud(), replace(OFF, point_jitter_m=0.01), generator=rng())
    moved = out[..., :3] - cloud()[..., :3]
    assert abs(float(moved.std()) - 0.01) < 1e-4 and abs(float(moved.mean())) < 1e-4
    assert torch.equal(out[..., 3:], cloud()[..., 3:])


def test_dropped_points_are_replaced_by_kept_ones_and_the_count_stays():
    out = disturb_cloud(cloud(), replace(OFF, point_dropout=0.25), generator=rng())
    assert out.shape == cloud().shape
    kept = (out == cloud()).all(dim=-1)  # (B, To, N)
    assert abs(float(kept.float().mean()) - 0.75) < 0.01
    for given, got, stays in zip(cloud().flatten(0, 1), out.flatten(0, 1), kept.flatten(0, 1), strict=True):
        survivors = {tuple(row) for row in given[stays].tolist()}
        assert {tuple(row) for row in got.tolist()} == survivors
    assert not torch.equal(kept[0, 0], kept[0, 1]) and not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("points", [1, 2, 3])
def test_dropout_leaves_at_least_one_point(points):
    given = cloud(size=200, points=points)
    out = disturb_cloud(given, replace(OFF, point_dropout=0.95), generator=rng())
    assert (out[:, :, :, None] == given[:, :, None]).all(dim=-1).any(dim=-1).all()


def test_a_random_subset_holds_different_points_of_each_cloud_and_none_twice():
    numbered = torch.arange(400.0).reshape(1, 1, 400, 1).expand(32, 2, 400, 3)
    out = disturb_cloud(numbered, replace(OFF, train_points=100), generator=rng())[..., 0]
    assert out.shape == (32, 2, 100)
    assert all(len(row.unique()) == 100 for row in out.flatten(0, 1))
    assert not torch.equal(out[0, 0].sort().values, out[1, 0].sort().values)
    counts = torch.bincount(out.flatten().long(), minlength=400)
    assert counts.min() > 4 and counts.max() < 32  # 16 expected of 64 clouds
    small = numbered[:, :, :80]
    assert torch.equal(disturb_cloud(small, replace(OFF, train_points=100), generator=rng()), small)


def test_a_rotation_turns_each_sample_about_the_stated_vertical_axis():
    settings = replace(OFF, rotation_deg=3.0, rotation_x=0.5, rotation_y=-1.0)
    given = cloud(points=50)
    out = disturb_cloud(given, settings, generator=rng())
    assert torch.equal(out[..., 2:], given[..., 2:])
    axis = torch.tensor([0.5, -1.0])
    before, after = ((value[..., :2] - axis).numpy().astype(np.float64) @ [1, 1j] for value in (given, out))
    turn = after / before
    np.testing.assert_allclose(abs(turn), 1.0, atol=1e-4)
    degrees = np.median(np.angle(turn, deg=True), axis=-1)  # (B, To)
    np.testing.assert_allclose(degrees[:, 0], degrees[:, 1], atol=1e-3)
    assert abs(degrees).max() <= 3.001 and degrees.min() < -2.5 and degrees.max() > 2.5


def images(size=200):
    return torch.randint(0, 256, (size, 2, 12, 16, 3), generator=rng(4), dtype=torch.uint8)


def test_images_shift_by_whole_pixels_with_their_border_repeated():
    given = images()
    out = disturb_image(given, replace(OFF, image_shift=2), generator=rng())
    assert out.dtype == torch.uint8 and out.shape == given.shape
    flat = given.permute(0, 1, 4, 2, 3).reshape(200, 6, 12, 16).float()
    padded = F.pad(flat, (2, 2, 2, 2), mode="replicate").reshape(200, 2, 3, 16, 20).permute(0, 1, 3, 4, 2)
    seen = set()
    for sample in range(200):
        hits = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(padded[sample, :, row : row + 12, column : column + 16], out[sample].float())
        ]
        assert len(hits) == 1  # both observation steps by the same amount
        seen.add(hits[0])
    assert len(seen) == 25


def test_a_random_crop_is_a_window_of_the_image_resized_back():
    rows = torch.arange(100, dtype=torch.uint8).reshape(1, 1, 100, 1, 1).expand(200, 1, 100, 100, 3)
    out = disturb_image(rows, replace(OFF, image_crop=0.6), generator=rng())[:, 0, :, 0, 0].int()
    assert (out.diff(dim=1) >= 0).all()
    span = (out[:, -1] - out[:, 0] + 1).float() / 100
    assert span.min() < 0.65 and span.max() > 0.95 and span.min() >= 0.59
    assert (out[:, 0] == 0).any() and (out[:, -1] == 99).any() and out[:, 0].max() > 20


def test_colours_change_as_brightness_then_contrast_then_saturation_would():
    given = torch.randint(90, 140, (16, 2, 12, 16, 3), generator=rng(4), dtype=torch.uint8)  # nothing gets clipped
    out = disturb_image(given, replace(OFF, image_color=0.2), generator=rng())
    draws = 0.8 + 0.4 * torch.rand(3, 16, 1, 1, generator=rng())
    for image, got, brightness, contrast, saturation in zip(given, out, *draws.flatten(1), strict=True):
        wanted = image.double() * brightness
        mean = (wanted * torch.tensor([0.299, 0.587, 0.114])).sum(-1).mean()
        wanted = contrast * wanted + (1 - contrast) * mean
        gray = (wanted * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
        wanted = saturation * wanted + (1 - saturation) * gray
        assert (wanted - got.double()).abs().max() < 0.51


def test_colours_stay_in_range():
    given = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2, 1).expand(64, 1, 4, 2, 3)
    out = disturb_image(given, replace(OFF, image_color=0.5), generator=rng())
    assert out[..., 0, :].max() < 100 and out[..., 1, :].min() > 100  # black is no white and white no black


def cloud_trainer(folder: Path) -> ImitationTrainer:
    spec = CloudSpec(points=20, crop_low=(-9, -9, -9), crop_high=(9, 9, 9))
    obs = {"agent_pos": EMBODIMENT.obs["agent_pos"], "point_cloud": KeySpec(spec.shape, "m", cloud=spec)}
    policy = build_policy(
        embodiment=replace(EMBODIMENT, obs=obs),
        encoder=partial(MultiModalEncoder, point=PointNet, image=ResNet18),
        net=partial(ResidualMLP, width=32),
        head=RegressionHead,
        horizon=8,
        obs_horizon=2,
        action_horizon=4,
    )
    generator = rng(5)
    steps = {key: torch.randn(60, *entry.shape, generator=generator) for key, entry in obs.items()}
    action = torch.randn(60, 3, generator=generator)
    dataset = SequenceDataset(steps, action, np.array([30, 60]), horizon=8, obs_horizon=2)
    fit_normalizers(policy, dataset)
    return ImitationTrainer(
        policy,
        dataset,
        settings=TrainerSettings(steps=3, batch_size=16, checkpoint_every=0, warmup_steps=1),
        checkpoints=Checkpoints(folder / "checkpoints", facts={}),
        tracker=JsonlTracker(folder / "metrics.jsonl"),
        seed=0,
        progress=False,
    )


def test_training_disturbs_each_batch_once_and_prediction_none(tmp_path, monkeypatch):
    trainer, seen = cloud_trainer(tmp_path), []

    def spy(given, *rest, **options):
        out = augment(given, *rest, **options)
        seen.append((given.obs["point_cloud"], out.obs["point_cloud"]))
        return out

    monkeypatch.setattr(imitation, "augment", spy)
    trainer.run()
    trainer.tracker.close()
    assert len(seen) == 3 and not any(torch.equal(given, out) for given, out in seen)
    obs = trainer.dataset.batch(torch.arange(4)).obs
    noise = torch.randn(4, 8, 3, generator=rng())
    assert trainer.policy.training
    first, again = trainer.policy.predict(obs, noise=noise), trainer.policy.predict(obs, noise=noise)
    assert torch.equal(first, again) and torch.equal(first, trainer.policy.eval().predict(obs, noise=noise))
    assert len(seen) == 3


def test_nothing_but_the_trainer_knows_how_to_augment():
    root = Path(flowpolicy.__file__).parent
    used = r"\bdata\.augment import .*\b(?:augment|disturb_\w+)\b|import augment"  # not its settings, which data names
    users = [path for path in root.rglob("*.py") if re.search(used, path.read_text())]
    assert [path.relative_to(root).as_posix() for path in users] == ["trainers/imitation.py"]
