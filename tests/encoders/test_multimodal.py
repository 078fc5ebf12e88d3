"""Routing by shape: which key goes where, in which order, and what is refused."""

from functools import partial

import pytest
import torch

from flowpolicy.encoders.multimodal import MultiModalEncoder
from flowpolicy.encoders.pointnet import PointNet
from flowpolicy.encoders.resnet import ResNet18
from flowpolicy.encoders.vit import LightViT

SHAPES = {
    "image_front": (40, 40, 3),
    "agent_pos": (3,),
    "point_cloud": (20, 3),
    "image_hand": (33, 48, 3),
    "goal": (2,),
}


def _encoder(keys: list[str], *, obs_horizon: int = 2, **changes) -> MultiModalEncoder:
    torch.manual_seed(0)
    parts = {"point": PointNet, "image": partial(LightViT, width=32, feature_dim=16), **changes}
    return MultiModalEncoder(obs_shapes={key: SHAPES[key] for key in keys}, obs_horizon=obs_horizon, **parts)


def _obs(keys: list[str], batch: int = 3, steps: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randint(0, 256, (batch, steps, *SHAPES[key]), dtype=torch.uint8, generator=generator)
        if key.startswith("image")
        else torch.randn(batch, steps, *SHAPES[key], generator=generator)
        for key in keys
    }


@pytest.mark.parametrize(
    ("keys", "size"),
    [
        (["agent_pos", "goal"], 5),
        (["point_cloud"], 64),
        (["image_front"], 16),
        (["point_cloud", "agent_pos"], 64 + 3),
        (list(SHAPES), 16 + 64 + 16 + 5),
    ],
)
def test_every_mixture_of_kinds_gives_its_sizes_side_by_side(keys: list[str], size: int) -> None:
    encoder = _encoder(keys)
    output = encoder(_obs(keys))
    assert encoder.feature_dim == 2 * size and output.shape == (3, 2 * size)


def test_steps_follow_each_other_and_the_state_is_last() -> None:
    encoder, obs = _encoder(["point_cloud", "agent_pos"]), _obs(["point_cloud", "agent_pos"])
    with torch.no_grad():
        steps = encoder(obs).unflatten(1, (2, -1))
        single = encoder({key: value[:, 1:] for key, value in obs.items()})
    assert torch.equal(steps[:, :, 64:], obs["agent_pos"])
    torch.testing.assert_close(steps[:, 1], single)


def test_dp3s_condition_has_128_entries_per_step() -> None:
    encoder = _encoder(["point_cloud", "agent_pos"], state_widths=[64, 64])
    assert encoder.feature_dim == 256
    assert sum(p.numel() for p in encoder.parameters()) == 59_072 + (3 * 64 + 64) + (64 * 64 + 64)


def test_the_condition_is_float32_under_autocast() -> None:
    encoder, obs = _encoder(["point_cloud", "agent_pos"], state_widths=[64, 64]), _obs(["point_cloud", "agent_pos"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(obs).dtype == torch.float32


def test_every_camera_has_an_encoder_of_its_own() -> None:
    keys = ["image_front", "image_hand", "agent_pos"]
    encoder, obs = _encoder(keys, obs_horizon=1, image=ResNet18), _obs(keys, steps=1)
    with torch.no_grad():
        before = encoder(obs)
        encoder.parts["image_hand"].project.weight.zero_()
        after = encoder(obs)
    assert torch.equal(before[:, :64], after[:, :64]) and not torch.equal(before[:, 64:128], after[:, 64:128])


def test_every_key_counts() -> None:
    keys = list(SHAPES)
    encoder, obs = _encoder(keys), _obs(keys)
    with torch.no_grad():
        before = encoder(obs)
        for key in keys:
            value = 255 - obs[key] if obs[key].dtype == torch.uint8 else -obs[key]
            assert float((encoder({**obs, key: value}) - before).abs().max()) > 1e-2, key


def test_impossible_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        _encoder([])
    with pytest.raises(ValueError, match=r"cloud \(N, C\) or image.*'odd': \(1, 2, 3, 4\)"):
        MultiModalEncoder(obs_shapes={"odd": (1, 2, 3, 4)}, obs_horizon=1, point=PointNet, image=ResNet18)
