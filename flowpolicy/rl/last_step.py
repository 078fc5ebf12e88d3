"""The last step of an optimiser, of which a part can be taken back."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor


@final
class LastStep:
    """Remembers the weights before each step. The optimiser's moments stay: they are of gradients, not of steps.

    Args:
        parameters: All that the optimiser moves.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []

    def remember(self) -> None:
        """Call before a step."""
        self._before, self._after = self._copies(), []

    def forget(self) -> None:
        """There is nothing to take back any more."""
        self._before, self._after = [], []

    @property
    def taken(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self._before)

    @torch.no_grad()
    def keep(self, share: float) -> None:
        """Leave this share of the step: 1 is all of it, 0 none; may be called again with another.

        Args:
            share: 0 to 1.
        """
        self._after = self._after or self._copies()
        for parameter, before, after in zip(self._parameters, self._before, self._after, strict=True):
            parameter.copy_(torch.lerp(before, after, share))

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]
