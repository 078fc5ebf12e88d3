"""What every observation encoder must offer."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flowpolicy.types import Observation


class Encoder(nn.Module, ABC):
    """Observation dict -> (B, feature_dim). Constructed by `build_policy` with the key shapes and obs_horizon."""

    feature_dim: int

    @abstractmethod
    def forward(self, obs: Observation) -> Tensor:
        """obs: key -> (B, To, ...), normalised.   Returns (B, feature_dim)."""
