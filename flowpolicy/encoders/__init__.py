"""Encoders: normalised observations -> one condition vector per sample."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.encoders.base import Encoder as Encoder, KeyEncoder as KeyEncoder
    from flowpolicy.encoders.multimodal import MultiModalEncoder as MultiModalEncoder
    from flowpolicy.encoders.pointnet import PointNet as PointNet
    from flowpolicy.encoders.resnet import ResNet18 as ResNet18
    from flowpolicy.encoders.state import StateEncoder as StateEncoder
    from flowpolicy.encoders.vit import LightViT as LightViT

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "base": ["Encoder", "KeyEncoder"],
        "multimodal": ["MultiModalEncoder"],
        "pointnet": ["PointNet"],
        "resnet": ["ResNet18"],
        "state": ["StateEncoder"],
        "vit": ["LightViT"],
    },
)
