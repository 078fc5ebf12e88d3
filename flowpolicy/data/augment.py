"""Augmentation on the training path only: what the policy sees is disturbed, what it must do is not."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowpolicy.checks import require_number
from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.seeding import normal, uniform
from flowpolicy.types import Batch

_LUMA = (0.299, 0.587, 0.114)  # brightness of red, green and blue, ITU-R BT.601


@final
@dataclass(frozen=True)
class Augmentation:
    """How clouds and images are disturbed in training; each number off at 0, image_crop at 1. One draw per sample.

    Args:
        image_shift: Pixels an image may move in each direction, its border repeated; 4 in DrQ and DM1.
        image_crop: Least side of a random window, as share of the image's, drawn up to 1 and resized back (nearest
            pixel).
        image_color: Brightness, contrast and saturation are each multiplied by 1 +- this; 0.2 in LeRobot (brightness,
            contrast).
        point_jitter_m: Standard deviation of the noise on each coordinate, metres; a choice, small against a finger.
        point_dropout: Share of the points that is replaced by others of the cloud; 0.25 keeps about 384 of 512, which
            is what Meta-World's assembly was first learnt with (0.92 from ten demonstrations).
        train_points: Train on that many random points of each cloud (cheaper than dropout, and the policy still sees
            all).
        rotation_deg: Largest turn of a cloud about a vertical axis through (rotation_x, rotation_y), metres. State and
            actions do not turn with it: an arm's length r away the cloud is off by r times the angle, 1 cm at 0.6 m and
            1 degree, which is what the policy then learns to ignore. Keep it below the precision that the task needs.
        rotation_x: Where that axis stands, metres.
        rotation_y: The same.
    """

    image_shift: int = 4
    image_crop: float = 1.0
    image_color: float = 0.2
    point_jitter_m: float = 0.002
    point_dropout: float = 0.25
    train_points: int = 0
    rotation_deg: float = 0.0
    rotation_x: float = 0.0
    rotation_y: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range."""
        for name in ("image_shift", "train_points"):
            require_number(f"`{name}`", getattr(self, name), least=0, whole=True)
        for name in ("point_jitter_m", "rotation_deg"):
            require_number(f"`{name}`", getattr(self, name), least=0)
        for name in ("image_color", "point_dropout"):
            require_number(f"`{name}`", getattr(self, name), least=0, below=1)
        require_number("`image_crop`", self.image_crop, above=0, most=1)


def augment(
    batch: Batch,
    normalizers: dict[str, LinearNormalizer],
    settings: Augmentation,
    *,
    obs_noise: float,
    generator: torch.Generator,
) -> Batch:
    """Disturb each observation by its kind: state (B, To, D), cloud (B, To, N, 3 or 6), uint8 image (B, To, H, W, 3).

    The actions stay as recorded. A chunk-relative action is computed from the disturbed state afterwards, so it points
    back to the recorded path: the policy learns to recover from its own small errors. State draws first, so its noise
    does not depend on what else is seen.

    Args:
        batch: Raw, robot units.
        normalizers: Of the state keys at least.
        settings: How much of what.
        obs_noise: Standard deviation of the noise on state, in normalised units (the training range is 2 wide), scaled
            back through each key's normaliser.
        generator: On the data's device.

    Raises:
        ValueError: For any other kind of key.

    Source: the state-noise view of DART (Laskey et al. 2017), with labels from the recording instead of an expert.
    """
    obs = dict(batch.obs)
    for key, value in obs.items():
        if value.ndim <= 3 and obs_noise > 0.0:
            noise = normal(value.shape, generator)
            obs[key] = value + noise * (obs_noise / normalizers[key].scale)
    for key, value in obs.items():
        if value.ndim == 4 and value.is_floating_point() and value.shape[-1] in (3, 6):
            obs[key] = disturb_cloud(value, settings, generator=generator)
        elif value.ndim == 5 and value.dtype == torch.uint8 and value.shape[-1] == 3:
            obs[key] = disturb_image(value, settings, generator=generator)
        elif value.ndim > 3:
            raise ValueError(
                f"augment: '{key}' is {tuple(value.shape)} {value.dtype}; wanted state (B, To, D), clouds "
                "(B, To, N, 3 or 6) or uint8 images (B, To, H, W, 3)"
            )
    return batch._replace(obs=obs)


def disturb_cloud(cloud: Tensor, settings: Augmentation, *, generator: torch.Generator) -> Tensor:
    """Subset, dropout, jitter, rotation of clouds (B, To, N, 3 or 6) in metres; N becomes train_points if that is less.

    Colours go with their points and are not changed.

    Args:
        cloud: (B, To, N, 3 or 6), metres, colours 0 to 1.
        settings: How much of what.
        generator: Where random numbers come from.
    """
    if 0 < settings.train_points < cloud.shape[2]:
        draw = uniform(cloud.shape[:3], generator)
        cloud = _take(cloud, draw.topk(settings.train_points, dim=2, sorted=False).indices)
    if settings.point_dropout > 0:
        draw = uniform(cloud.shape[:3], generator)
        cloud = _take(cloud, _kept_instead(draw >= settings.point_dropout))
    xyz, color = cloud[..., :3], cloud[..., 3:]
    if settings.point_jitter_m > 0:
        xyz = xyz + settings.point_jitter_m * normal(xyz.shape, generator)
    if settings.rotation_deg > 0:
        xyz = _rotate(xyz, settings, generator)
    return torch.cat([xyz, color], dim=-1)


def disturb_image(image: Tensor, settings: Augmentation, *, generator: torch.Generator) -> Tensor:
    """Shift, crop and colours of images (B, To, H, W, 3) uint8; the observation steps of a sample move together.

    Args:
        image: (B, To, H, W, 3) uint8.
        settings: How much of what.
        generator: Where random numbers come from.
    """
    if settings.image_shift > 0 or settings.image_crop < 1:
        image = _move(image, settings, generator)
    return _recolor(image, settings.image_color, generator) if settings.image_color > 0 else image


def _take(cloud: Tensor, index: Tensor) -> Tensor:
    """Points `index` (B, To, M) of clouds (B, To, N, C)."""
    return cloud.gather(2, index[..., None].expand(-1, -1, -1, cloud.shape[-1]))


def _kept_instead(keep: Tensor) -> Tensor:
    """For every point (B, To, N) its own index if it is kept, else that of the last kept point before it, cyclically.

    Clouds come in farthest-point order, so neighbours in the list are strangers in space. One point always stays.
    """
    keep[..., 0] |= ~keep.any(dim=-1)
    index = torch.where(keep, torch.arange(keep.shape[-1], device=keep.device), -1).cummax(dim=-1).values
    return torch.where(index < 0, index[..., -1:], index)


def _rotate(xyz: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    draw = uniform((len(xyz), 1, 1), generator)
    angle = math.radians(settings.rotation_deg) * (2 * draw - 1)
    x, y = xyz[..., 0] - settings.rotation_x, xyz[..., 1] - settings.rotation_y  # (B, To, N)
    cos, sin = angle.cos(), angle.sin()
    turned = [cos * x - sin * y + settings.rotation_x, sin * x + cos * y + settings.rotation_y, xyz[..., 2]]
    return torch.stack(turned, dim=-1)


def _move(image: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """One table of source pixels per sample does shift and crop: image moves by whole pixels, windows by shares."""
    batch, steps, height, width, channels = image.shape
    device = image.device
    draw = uniform((5, batch, 1), generator)
    share = 1 - (1 - settings.image_crop) * draw[0]
    sources = []
    for size, shift, place in ((height, draw[1], draw[2]), (width, draw[3], draw[4])):
        pixels = (shift * (2 * settings.image_shift + 1)).floor() - settings.image_shift
        window = place * (1 - share) * size + share * (torch.arange(size, device=device) + 0.5)
        sources.append((window.floor() + pixels).clamp(0, size - 1).long())  # (B, size)
    rows, columns = sources
    frame = (torch.arange(batch * steps, device=device) * height * width).reshape(batch, steps, 1, 1)
    index = frame + (rows * width)[:, None, :, None] + columns[:, None, None, :]
    return image.reshape(-1, channels).index_select(0, index.reshape(-1)).reshape(image.shape)


def _recolor(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, then contrast about the mean, then saturation: together one affine map of colour per sample."""
    draw = uniform((3, len(image), 1, 1), generator)
    brightness, contrast, saturation = 1 + strength * (2 * draw - 1)
    pixels = image.reshape(len(image), -1, 3).float()
    luma = torch.tensor(_LUMA, device=image.device, dtype=torch.float32)
    gray = luma[:, None].expand(3, 3)  # colours as rows: each channel becomes the luma
    kept = torch.eye(3, device=image.device, dtype=torch.float32)
    matrix = contrast * brightness * (saturation * kept + (1 - saturation) * gray)
    mean = brightness * (pixels.mean(dim=1, keepdim=True) @ luma)[..., None]  # (B, 1, 1)
    recolored = torch.baddbmm(((1 - contrast) * mean).expand(-1, 1, 3), pixels, matrix)
    return recolored.clamp_(0, 255).round_().to(torch.uint8).reshape(image.shape)
