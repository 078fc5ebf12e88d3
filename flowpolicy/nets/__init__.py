"""Networks f(x_t, t, r, cond) -> (B, H, A) that heads read as a velocity or an action."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.nets.base import Features as Features, VelocityNet as VelocityNet
    from flowpolicy.nets.joint_transformer import JointTransformer as JointTransformer
    from flowpolicy.nets.mlp import ResidualMLP as ResidualMLP
    from flowpolicy.nets.unet1d import UNet1D as UNet1D
    from flowpolicy.nets.value import ValueMLP as ValueMLP

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "base": ["Features", "VelocityNet"],
        "joint_transformer": ["JointTransformer"],
        "mlp": ["ResidualMLP"],
        "unet1d": ["UNet1D"],
        "value": ["ValueMLP"],
    },
)
