"""ResNet-18: where things are in the picture, and weight files with torchvision's names."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowpolicy.encoders.resnet import ResNet18, spatial_softmax


def _net(**changes) -> ResNet18:
    torch.manual_seed(0)
    return ResNet18(shape=(40, 40, 3), state_dim=2, **changes)


def _torchvision_weights() -> dict[str, torch.Tensor]:
    """Random values under the 122 names of torchvision's resnet18, batch statistics and classifier included."""
    values: dict[str, torch.Tensor] = {}

    def norm(name: str, channels: int) -> None:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            values[f"{name}.{entry}"] = torch.rand(channels)
        values[f"{name}.num_batches_tracked"] = torch.tensor(7)

    values["conv1.weight"] = torch.randn(64, 3, 7, 7)
    norm("bn1", 64)
    for layer, (inputs, outputs) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            values[f"{name}.conv1.weight"] = torch.randn(outputs, inputs if block == 0 else outputs, 3, 3)
            values[f"{name}.conv2.weight"] = torch.randn(outputs, outputs, 3, 3)
            norm(f"{name}.bn1", outputs), norm(f"{name}.bn2", outputs)
            if block == 0 and layer > 1:
                values[f"{name}.downsample.0.weight"] = torch.randn(outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
    values["fc.weight"], values["fc.bias"] = torch.randn(1000, 512), torch.randn(1000)
    return values


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_of_torchvision_weights_loads_whole(tmp_path: Path, suffix: str) -> None:
    values, file = _torchvision_weights(), tmp_path / f"resnet18.{suffix}"
    assert len(values) == 122
    save_file(values, file) if suffix == "safetensors" else torch.save(values, file)
    net = _net(weights=str(file)).state_dict()
    used = {name for name in values if name.endswith(("weight", "bias")) and not name.startswith("fc")}
    assert len(used) == 60 and sum(values[name].numel() for name in used) == 11_176_512
    assert all(torch.equal(net[name], values[name]) for name in used)
    assert set(net) - used == {"maps.weight", "maps.bias", "project.weight", "project.bias"}


def test_a_file_with_anything_else_is_a_clear_error(tmp_path: Path) -> None:
    values, file = _torchvision_weights(), tmp_path / "resnet.safetensors"
    with pytest.raises(FileNotFoundError, match="no file .*resnet.safetensors"):
        _net(weights=str(file))
    del values["bn1.bias"]
    save_file({**values, "layer1.2.conv1.weight": torch.zeros(1), "conv1.weight": torch.zeros(64, 1, 7, 7)}, file)
    with pytest.raises(ValueError, match="torchvision's resnet18") as error:
        _net(weights=str(file))
    for part in ('Missing key.*"bn1.bias"', 'Unexpected key.*"layer1.2.conv1.weight"', "mismatch for conv1.weight"):
        assert re.search(part, str(error.value))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="state dict, name -> tensor, got list"):
        _net(weights=str(tmp_path / "list.pth"))
    torch.save(values, tmp_path / "cut.pth")
    save_file(values, tmp_path / "cut.safetensors")
    for name, kept in (("cut.pth", 1000), ("cut.safetensors", 1000), ("none.pth", 0), ("text.pth", -1)):
        file = tmp_path / name
        file.write_bytes(b"<html>404</html>" if kept < 0 else (file.read_bytes() if file.exists() else b"")[:kept])
        with pytest.raises(ValueError, match=rf"{name} holds no weights that can be read.*fetch it again"):
            _net(weights=str(file))


def test_spatial_softmax_points_at_the_peak() -> None:
    maps = torch.zeros(1, 2, 5, 9)
    maps[0, 0, 1, 6], maps[0, 1, 4, 0] = 100.0, 100.0
    torch.testing.assert_close(spatial_softmax(maps), torch.tensor([[[0.5, -0.5], [-1.0, 1.0]]]))
    torch.testing.assert_close(spatial_softmax(torch.zeros(1, 2, 5, 9)), torch.zeros(1, 2, 2), atol=1e-6, rtol=0)


def test_a_feature_depends_on_its_own_picture_only() -> None:
    """What batch norm would break."""
    net, images = _net().train(), torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8)
    with torch.no_grad():
        together, alone = net(images, torch.empty(3, 0)), net(images[:1], torch.empty(1, 0))
    assert together.shape == (3, 64)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_every_parameter_learns() -> None:
    net = _net()
    net(torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8), torch.empty(2, 0)).square().sum().backward()
    assert not [name for name, value in net.named_parameters() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize("shape", [(40, 40, 4), (32, 40, 3), (40, 40)])
def test_impossible_images_are_refused(shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) and at least 33"):
        ResNet18(shape=shape, state_dim=0)
