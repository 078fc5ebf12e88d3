"""What every observation encoder must offer, and every part that reads a single cloud or image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.types import Observation

_TAKEN = nn.ModuleDict()  # whose attributes no part can be called after


def module_name(key: str) -> str:
    """What the part for an observation is called in a `ModuleDict`: the key, escaped where torch could not bear it.

    Args:
        key: Of the observation.
    """
    return f"={key.replace('.', ':')}" if "." in key or hasattr(_TAKEN, key) else key


class Encoder(nn.Module, ABC):
    """Observation dict -> (B, feature_dim). Constructed by `build_policy` with the key shapes and obs_horizon."""

    feature_dim: int

    @abstractmethod
    def forward(self, obs: Observation) -> Tensor:
        """obs: key -> (B, To, ...), normalised; images uint8.   Returns (B, feature_dim), always float32.

        Args:
            obs: Key -> (B, To, ...), robot units.
        """

    def align(self, normalizers: Mapping[str, LinearNormalizer]) -> None:
        """Called once, when the normalisers have been fitted; for encoders that compare keys with each other.

        Args:
            normalizers: Key -> its normaliser.
        """


class KeyEncoder(nn.Module, ABC):
    """One cloud or image at one time -> (M, feature_dim). Constructed by `MultiModalEncoder`.

    Constructor keywords: shape, that of the key per time step; state_dim, entries of all state keys together.
    """

    feature_dim: int

    @abstractmethod
    def forward(self, value: Tensor, state: Tensor) -> Tensor:
        """value: (M, *shape), M = B * To.

        Args:
            value: (M, *shape), M = B * To.
            state: (M, state_dim), normalised; may have no entries.
        """

    def align(self, value: LinearNormalizer, state: LinearNormalizer) -> None:
        """See `Encoder.align`.

        Args:
            value: This key's normaliser.
            state: That of the first state key.
        """
