"""PointNet of DP3 and MP1: one small MLP for all points, the maximum over points, a projection."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from flowpolicy.encoders.base import KeyEncoder
from flowpolicy.normalizer import LinearNormalizer

_BLOCK = 4  # clouds per pass of the search for maxima: the activations of 4 x 512 points stay in a CPU's cache


@final
class PointNet(KeyEncoder):
    """Cloud (M, N, 3), or (M, N, 6) with colour, to (M, feature_dim).

    Every point: Linear - LayerNorm - ReLU for each of `widths`, and with colour one more bare Linear to twice the last
    width. Maximum over the points, so a repeated point (padding) changes nothing. Linear - LayerNorm. Sizes at the
    defaults: 59,072 parameters for xyz, 207,232 with colour.

    Args:
        shape: (N, 3) or (N, 6).
        state_dim: Length of the state vector beside.
        widths: Of the layers that every point passes.
        feature_dim: Length of what comes out.
        color: Whether the columns after x, y, z are read; DP3's and MP1's published results leave them out.
        relative: Each point enters a second time, relative to the hand. The first state key must then begin with the
            hand's x, y, z in the cloud's frame and unit, as Meta-World's does; joint positions do not.

    Source: Ze et al. 2024, 3D Diffusion Policy; Sheng et al. 2025, MP1.
    """

    hand_scale: Tensor
    hand_offset: Tensor

    def __init__(
        self,
        *,
        shape: Sequence[int],
        state_dim: int,
        widths: Sequence[int] = (64, 128, 256),
        feature_dim: int = 64,
        color: bool = True,
        relative: bool = False,
    ) -> None:
        super().__init__()
        if len(shape) != 2 or shape[1] not in (3, 6):
            raise ValueError(f"PointNet: a cloud must be (N, 3), or (N, 6) with colour, got {tuple(shape)}")
        if relative and state_dim < 3:
            raise ValueError(
                f"PointNet: `relative=True` needs the hand's x, y, z first in the state, which has {state_dim} "
                "entries; add agent_pos to `obs_keys`"
            )
        self.columns = shape[1] if color else 3
        self.relative, self.feature_dim = relative, feature_dim
        sizes = [self.columns + 3 * relative, *widths]
        layers: list[nn.Module] = []
        for size, width in zip(sizes[:-1], widths):
            layers += [nn.Linear(size, width), nn.LayerNorm(width), nn.ReLU(inplace=True)]
        if self.columns > 3:
            layers.append(nn.Linear(sizes[-1], 2 * sizes[-1]))
        self.first, self.rest = layers[0], nn.Sequential(*layers[1:])
        self.project = nn.Sequential(
            nn.Linear(sizes[-1] * (2 if self.columns > 3 else 1), feature_dim), nn.LayerNorm(feature_dim)
        )
        self.register_buffer("hand_scale", torch.ones(3))
        self.register_buffer("hand_offset", torch.zeros(3))

    def forward(self, value: Tensor, state: Tensor) -> Tensor:
        """value: (M, N, 3 or 6).

        Args:
            state: (M, Ds). Both normalised; see `KeyEncoder`.
        """
        points = value[..., : self.columns]
        if self.relative:
            hand = state[:, None, :3] * self.hand_scale + self.hand_offset  # (M, 1, 3), in the cloud's normalised unit
            points = torch.cat([points[..., :3] - hand, points], dim=-1)
        clouds, count, columns = points.shape
        if torch.is_grad_enabled() and points.device.type == "cpu":
            return self.project(self._maxima_of_few(points))
        return self.project(self._each(points.reshape(-1, columns)).view(clouds, count, -1).amax(dim=1))

    @torch.no_grad()
    def align(self, value: LinearNormalizer, state: LinearNormalizer) -> None:
        """What takes a hand position from the state's normalised unit to the cloud's."""
        if not self.relative:
            return
        self.hand_scale.copy_(value.scale[:3] / state.scale[:3])
        self.hand_offset.copy_(value.offset[:3] - state.offset[:3] * self.hand_scale)

    def _each(self, points: Tensor) -> Tensor:
        """(P, columns) -> (P, W), every point by itself."""
        # float32 under autocast too: bfloat16 would round coordinates to 1/256 of their range, millimetres
        with torch.autocast(points.device.type, enabled=False):
            hidden = self.first(points.float())
        return self.rest(hidden)

    def _maxima_of_few(self, points: Tensor) -> Tensor:
        """(M, N, columns) -> (M, W) with the gradient of the plain maximum, four times faster on a CPU.

        Only points that attain a maximum receive a gradient: about 0.3 of 512. They are found without a graph, block
        by block, and only they pass through the layers a second time, with one.
        """
        clouds, count, columns = points.shape
        with torch.no_grad():
            best = [
                self._each(block.reshape(-1, columns)).view(len(block), count, -1).max(dim=1).indices
                for block in points.split(_BLOCK)
            ]
        torch.clear_autocast_cache()  # torch < 2.10 would go on with the weights that were cast without a graph
        first = count * torch.arange(clouds, device=points.device)[:, None]
        row = torch.cat(best) + first  # (M, W), rows of all points
        rows, place = row.unique(return_inverse=True)
        return self._each(points.reshape(-1, columns).index_select(0, rows)).gather(0, place)
