"""Names that every layer shares: the axis legend, batches, losses.

Axes: B batch, To observation steps, H prediction horizon, Ta executed steps, A action dim, D feature dim,
K denoising steps, N environments, T episode steps.
"""

from typing import NamedTuple

from torch import Tensor

Observation = dict[str, Tensor]
"""Observation key -> (B, To, ...); which keys and shapes is the embodiment's business."""


class Batch(NamedTuple):
    """What the dataset yields and `FlowPolicy.loss` takes, in robot units.

    Args:
        obs: key -> (B, To, ...).
        action: (B, H, A).
        mask: (B, H), 1.0 where the step counts in the loss.
    """

    obs: Observation
    action: Tensor
    mask: Tensor


class LossOutput(NamedTuple):
    """A scalar to differentiate and detached scalars to log; the metric names are the log names.

    Args:
        loss: Scalar, to differentiate.
        metrics: Name in the log -> detached scalar.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
