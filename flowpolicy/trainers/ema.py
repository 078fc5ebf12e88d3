"""Exponential moving average of weights with a warm-up of the decay."""

import copy
from typing import Generic, TypeVar, final

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@final
class ExponentialMovingAverage(Generic[M]):
    """Shadow copy of a module; `update` after every optimiser step.

    decay after n updates: min(max_decay, 1 - (1 + n)^-power); power 0.75 forgets the first weights within a few
    hundred steps (Chi et al. 2023, Diffusion Policy). The shadow is `self.module`, in evaluation mode;
    buffers (normalisers, a head's share of training done) are copied, not averaged.

    Args:
        module: What is averaged.
        power: See above.
        max_decay: See above.
    """

    def __init__(self, module: M, *, power: float = 0.75, max_decay: float = 0.9999) -> None:
        self.module: M = copy.deepcopy(module).eval().requires_grad_(False)
        self.power, self.max_decay, self.updates = power, max_decay, 0
        self._shadow: list[Tensor] = list(self.module.parameters())
        self._source: list[Tensor] = list(module.parameters())
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @property
    def decay(self) -> float:
        """Decay that the next update applies."""
        return min(self.max_decay, 1.0 - (1.0 + self.updates) ** -self.power)

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the source."""
        torch._foreach_lerp_(self._shadow, self._source, 1.0 - self.decay)
        for shadow, source in self._buffers:
            shadow.copy_(source)
        self.updates += 1
