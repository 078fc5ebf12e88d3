"""State, point clouds and images together: every key through an encoder of its kind, side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.encoders.base import Encoder, KeyEncoder, module_name
from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.types import Observation


@final
class MultiModalEncoder(Encoder):
    """[cloud and image features, in the order of the keys | state], for each observation step, step after step.

    Args:
        obs_shapes: key -> shape per time step, which alone decides the kind: (D,) is state, (N, C) a point cloud, (H,
            W, 3) an image.
        obs_horizon: To.
        point: Constructors of a `KeyEncoder`, completed with shape and state_dim; every cloud and every camera gets one
            of its own.
        image: As `point`.
        state_widths: Layers of the MLP on the state, with ReLU in between; none leaves the state as it is. DP3 and MP1:
            64, 64.
    """

    def __init__(
        self,
        *,
        obs_shapes: dict[str, tuple[int, ...]],
        obs_horizon: int,
        point: Callable[..., KeyEncoder],
        image: Callable[..., KeyEncoder],
        state_widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not obs_shapes:
            raise ValueError("MultiModalEncoder: no observation keys; give at least one of the dataset's keys")
        if wrong := {key: shape for key, shape in obs_shapes.items() if not 1 <= len(shape) <= 3}:
            raise ValueError(f"MultiModalEncoder: wanted state (D,), cloud (N, C) or image (H, W, 3), got {wrong}")
        self.state_keys = [key for key, shape in obs_shapes.items() if len(shape) == 1]
        state_dim = sum(obs_shapes[key][0] for key in self.state_keys)
        build = {2: point, 3: image}
        parts = {
            key: build[len(shape)](shape=shape, state_dim=state_dim)
            for key, shape in obs_shapes.items()
            if len(shape) > 1
        }
        self.part_keys = list(parts)
        self.parts = nn.ModuleDict({module_name(key): part for key, part in parts.items()})
        self.state = _mlp([state_dim, *state_widths]) if state_dim else nn.Identity()
        state_out = state_widths[-1] if state_widths and state_dim else state_dim
        self.feature_dim = obs_horizon * (sum(part.feature_dim for part in parts.values()) + state_out)

    def forward(self, obs: Observation) -> Tensor:
        """See `Encoder`."""
        batch, steps = next(iter(obs.values())).shape[:2]
        single = {key: value.flatten(0, 1) for key, value in obs.items()}  # (B * To, ...)
        state = self._state(single, batch * steps)
        features = [part(single[key], state) for key, part in zip(self.part_keys, self.parts.values(), strict=True)]
        # float32 under autocast too: heads differentiate with respect to time in it
        return torch.cat([*features, self.state(state)], dim=-1).float().view(batch, -1)

    def align(self, normalizers: Mapping[str, LinearNormalizer]) -> None:
        """See `Encoder`."""
        for key, part in zip(self.part_keys, self.parts.values(), strict=True):
            assert isinstance(part, KeyEncoder)
            if self.state_keys and key in normalizers:
                part.align(normalizers[key], normalizers[self.state_keys[0]])

    def _state(self, single: Observation, rows: int) -> Tensor:
        """All state keys, (rows, state_dim); no columns where there is no state."""
        if not self.state_keys:
            return torch.empty(rows, 0, device=next(iter(single.values())).device, dtype=torch.float32)
        return torch.cat([single[key] for key in self.state_keys], dim=-1)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, width in zip(widths[:-1], widths[1:]):
        layers += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
