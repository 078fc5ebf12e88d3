"""State observations: all keys and all observation steps side by side."""

import math
from typing import final

import torch
from torch import Tensor

from flowpolicy.encoders.base import Encoder
from flowpolicy.types import Observation


@final
class StateEncoder(Encoder):
    """Concatenate the keys; no parameters, because the nets start with a linear layer of their own.

    Args:
        obs_shapes: key -> (D,) per time step, in the order in which they are concatenated.
        obs_horizon: To.
        step_by_step: All keys of the first step, then of the next, as nets need that cut them into steps
            (`JointTransformer`); or all steps of the first key, then of the next, as in checkpoints that do not say.

    Raises:
        ValueError: For a cloud or an image: as a row of numbers neither would be learnt.
    """

    def __init__(self, *, obs_shapes: dict[str, tuple[int, ...]], obs_horizon: int, step_by_step: bool = False) -> None:
        super().__init__()
        if not obs_shapes:
            raise ValueError("StateEncoder: no observation keys; give at least one of the dataset's keys")
        for key, shape in obs_shapes.items():
            if len(shape) > 1:
                encoder = "point_cloud" if len(shape) == 2 else "resnet18"
                raise ValueError(
                    f"StateEncoder: wanted states (D,), got '{key}' {shape}; pass `encoder={encoder!r}`, a "
                    "MultiModalEncoder, or leave it out of `obs_keys`"
                )
        self.keys, self.step_by_step = list(obs_shapes), step_by_step
        self.feature_dim = obs_horizon * sum(math.prod(shape) for shape in obs_shapes.values())

    def forward(self, obs: Observation) -> Tensor:
        """obs: key -> (B, To, ...).   Returns (B, To * sum of sizes)."""
        if self.step_by_step:
            return torch.cat([obs[key] for key in self.keys], dim=-1).flatten(1)
        return torch.cat([obs[key].flatten(1) for key in self.keys], dim=-1)
