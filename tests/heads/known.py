"""Nets whose answer is known: what a head makes of them can be written down."""

import torch
from torch import Tensor, nn

from flowpolicy.flow.path import expand
from flowpolicy.nets.base import Features, VelocityNet


class PointMass(VelocityNet):
    """The exact velocity where every action is 0.3, as a parameter so that losses have a gradient."""

    cond_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """(x_t - a) / t."""
        return (x_t - self.point) / expand(t, x_t), {}


class Gaussian(VelocityNet):
    """The exact average velocity where actions are N(0, spread^2): the flow maps x_t to x_t sigma(r) / sigma(t)."""

    cond_dim = 1

    def __init__(self, spread: float = 0.5) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(spread, dtype=torch.float64))

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation at time t."""
        return ((1 - t) ** 2 * self.spread**2 + t**2).sqrt()

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """See the class."""
        t, r = t.double(), r.double()
        same = t - r < 1e-9
        average = x_t * expand((1 - self.sigma(r) / self.sigma(t)) / torch.where(same, 1.0, t - r), x_t)
        instant = x_t * expand((t - (1 - t) * self.spread**2) / self.sigma(t) ** 2, x_t)
        return torch.where(expand(same, x_t), instant, average), {}


class TwoLayers(VelocityNet):
    """A plain net of two hidden layers for single actions of two entries; blind to times and condition."""

    cond_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """See the class."""
        return self.layers(x_t), {}


class Linear(VelocityNet):
    """u = x_t k(t, r) with a small net for k: learns Gaussian flows to the last digit in seconds."""

    cond_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward_with_features(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> tuple[Tensor, Features]:
        """See the class."""
        return x_t * self.k(torch.stack([t, r], dim=-1))[..., None], {}
