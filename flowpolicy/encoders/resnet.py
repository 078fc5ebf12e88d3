"""ResNet-18 with group norm and spatial softmax: Diffusion Policy's image encoder, with torchvision's names."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowpolicy.encoders.base import KeyEncoder

_UNREADABLE = (SafetensorError, torch.serialization.pickle.UnpicklingError, RuntimeError, EOFError)
_SMALLEST = 33  # pixels; the last layer halves five times, and below this leaves one row or column to choose from
_UNUSED = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm; its weight and bias are used
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which published weights expect


@final
class ResNet18(KeyEncoder):
    """Image (M, H, W, 3) uint8 -> (M, feature_dim).

    The convolutions of ResNet-18 (11,176,512 parameters), a 1x1 convolution to `keypoints` maps, the mean position of
    each under its softmax, in [-1, 1], and a linear layer. Group norm (channels / 16 groups) instead of batch norm,
    whose running statistics do not go with averaged weights.

    Args:
        shape: (H, W, 3).
        state_dim: Length of the state vector beside.
        keypoints: Maps of which the mean position is taken.
        feature_dim: Length of what comes out.
        weights: File of torchvision's resnet18 to start from, safetensors or its own .pth; null starts from random
            numbers. Batch statistics and the classifier in it are not used.

    Raises:
        ValueError: For any other difference.

    Source: Chi et al. 2023, Diffusion Policy; He et al. 2015.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        state_dim: int,
        keypoints: int = 32,
        feature_dim: int = 64,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        del state_dim  # the state joins behind the image
        if len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < _SMALLEST:
            raise ValueError(f"ResNet18: an image must be (H, W, 3) and at least {_SMALLEST} wide, got {tuple(shape)}")
        self.feature_dim = feature_dim
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm(64)
        self.layer1 = nn.Sequential(_Block(64, 64, stride=1), _Block(64, 64, stride=1))
        self.layer2 = nn.Sequential(_Block(64, 128, stride=2), _Block(128, 128, stride=1))
        self.layer3 = nn.Sequential(_Block(128, 256, stride=2), _Block(256, 256, stride=1))
        self.layer4 = nn.Sequential(_Block(256, 512, stride=2), _Block(512, 512, stride=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            load_torchvision(self, Path(weights))
        self.maps = nn.Conv2d(512, keypoints, 1)
        self.project = nn.Linear(2 * keypoints, feature_dim)
        self.register_buffer("mean", 255 * torch.tensor(_MEAN), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(_STD), persistent=False)

    def forward(self, value: Tensor, state: Tensor) -> Tensor:
        """See `KeyEncoder`."""
        image = ((value - self.mean) / self.std).permute(0, 3, 1, 2)  # (M, 3, H, W)
        hidden = nn.functional.relu(self.bn1(self.conv1(image)))
        hidden = nn.functional.max_pool2d(hidden, 3, stride=2, padding=1)
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.project(spatial_softmax(self.maps(hidden)).flatten(1))


def spatial_softmax(maps: Tensor) -> Tensor:
    """Mean position under the softmax of each map.

    Args:
        maps: (M, C, H, W).

    Returns:
        (M, C, 2): x to the right, y down, both -1 at the first and 1 at the last pixel.
    """
    height, width = maps.shape[-2:]
    share = maps.float().flatten(2).softmax(dim=-1).unflatten(-1, (height, width))
    x = share.sum(dim=-2) @ torch.linspace(-1.0, 1.0, width, device=maps.device, dtype=torch.float32)
    y = share.sum(dim=-1) @ torch.linspace(-1.0, 1.0, height, device=maps.device, dtype=torch.float32)
    return torch.stack([x, y], dim=-1)


def load_torchvision(module: nn.Module, file: Path) -> None:
    """Copy the weights of torchvision's resnet18 into `module`, which has the same names.

    Args:
        module: A `ResNet18`'s convolutions.
        file: .safetensors, or what torch wrote (read without running code from it).

    Raises:
        FileNotFoundError: See above.
        ValueError: Naming what is missing, unknown or of another shape.
    """
    if not file.is_file():
        raise FileNotFoundError(f"encoder weights: no file {file}; `weights=None` starts from random numbers")
    try:
        if file.suffix == ".safetensors":
            found = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{file} holds no weights that can be read: {' '.join(str(error).split())[:200]}; "
            "fetch it again, or save it as .safetensors"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: wanted a state dict, name -> tensor, got {type(found).__name__}")
    found = {name: value for name, value in found.items() if not name.startswith("fc.") and not name.endswith(_UNUSED)}
    try:
        module.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"{file} does not hold torchvision's resnet18: {' '.join(str(error).split())}") from error


@final
class _Block(nn.Module):
    """Basic block; the names are torchvision's, "bn" although the norms are group norms."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = _norm(outputs)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.bn1(self.conv1(x)))
        hidden = self.bn2(self.conv2(hidden))
        return nn.functional.relu(hidden + (x if self.downsample is None else self.downsample(x)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)
