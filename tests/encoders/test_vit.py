"""Light ViT: the reference sizes, and that place, picture and state all count."""

import pytest
import torch

from flowpolicy.encoders.vit import LightViT


def _net(side: int = 40, state_dim: int = 2, **changes) -> LightViT:
    torch.manual_seed(0)
    return LightViT(shape=(side, side, 3), state_dim=state_dim, **changes)


def test_sizes_are_those_of_the_reference() -> None:
    """DM1 on Can: 96 x 96 pixels, 9 state entries."""
    net = _net(96, 9)
    embedding = sum(parameter.numel() for parameter in net.embedding.parameters())
    assert embedding == 33_408
    assert sum(parameter.numel() for parameter in net.parameters()) - embedding == 386_304


@pytest.mark.parametrize("shape", [(16, 16, 3), (40, 57, 3), (96, 96, 3)])
def test_any_size_of_picture_fits(shape: tuple) -> None:
    net = LightViT(shape=shape, state_dim=0)
    assert net(torch.zeros(2, *shape, dtype=torch.uint8), torch.empty(2, 0)).shape == (2, 128)


def test_picture_place_and_state_all_change_the_feature() -> None:
    net, state = _net(), torch.zeros(1, 2)
    image = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    image[:, 4:12, 4:12] = 255
    moved = image.roll((16, 16), dims=(1, 2))
    with torch.no_grad():
        first, *others = net(image, state), net(moved, state), net(255 - image, state), net(image, state + 1)
    assert all(float((first - other).abs().max()) > 1e-2 for other in others)


def test_every_parameter_learns() -> None:
    net = _net()
    net(torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8), torch.ones(2, 2)).square().sum().backward()
    assert not [name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) and at least 16"):
        _net(15)
    with pytest.raises(ValueError, match="divisible by num_heads, got 128 and 3"):
        _net(num_heads=3)
