"""Warm start: begin on the way from an action that is about right, with any sampler."""

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from flowpolicy.flow.path import interpolate
from flowpolicy.heads.base import Head
from flowpolicy.samplers.base import Need, Sampler, State
from flowpolicy.samplers.jump import Jump


@final
@dataclass(frozen=True, kw_only=True)
class WarmStart(Sampler):
    """Begin at x = (1 - time) start + time noise instead of noise: the start saves the flow the way to it.

    In an episode the start is what is left of the last chunk (`shift_chunk`); the first chunk begins at the noise.

    Args:
        num_steps: K of the wrapped sampler; 0 is its own.
        sampler: What walks from there to the action.
        time: Flow time in (0, 1] at which it begins; 0.85 is a good one (OFP). 1 is a cold start.
        start: Normalised chunk (B, H, A); None is none yet. No part of the description.

    Source: One-Step Flow Policy (arXiv 2603.12480), with t = 1 at the noise.
    """

    num_steps: int = 0
    sampler: Sampler = Jump()
    time: float = 0.85
    start: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a time outside (0, 1], and where one warm start wraps another."""
        if not 0.0 < self.time <= 1.0:
            raise ValueError(f"start_time must lie in (0, 1], got {self.time}; 0.85 is a good one")
        if isinstance(self.sampler, WarmStart):
            raise ValueError("a warm start wraps a sampler that is none itself, such as `Jump(num_steps=1)`")
        if self.num_steps:
            object.__setattr__(self, "sampler", replace(self.sampler, num_steps=self.num_steps))
        else:
            object.__setattr__(self, "num_steps", self.sampler.num_steps)
        super().__post_init__()

    @property
    def evaluations(self) -> int:
        """The wrapped sampler's."""
        return self.sampler.evaluations

    @property
    def needs(self) -> frozenset[Need]:
        """What the wrapped sampler needs, and states on the straight path."""
        return self.sampler.needs | frozenset[Need](("straight_path",))

    @property
    def draws(self) -> bool:
        """The wrapped sampler's."""
        return self.sampler.draws

    def begin_at(self, start: Tensor) -> "WarmStart":
        """The same for one chunk (B, H, A), normalised.

        Args:
            start: (B, H, A), normalised.
        """
        return replace(self, start=start)

    def walk(self, head: Head, state: State, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Sampler`; the state is that of the noise, which the start is mixed into."""
        if self.start is not None:
            noise = state.noise
            x, _ = interpolate(self.start, noise, noise.new_full((noise.shape[0],), self.time))
            state = State(x, self.time, noise)
        return self.sampler.walk(head, state, cond, generator)


def shift_chunk(chunk: Tensor, executed: int) -> Tensor:
    """The part of a chunk (B, H, A) that is still to come, its last action repeated to fill H steps; for warm starts.

    Args:
        chunk: (B, H, A), in whatever unit.
        executed: Steps of it that are over.

    Raises:
        ValueError: Unless 0 <= executed <= H.
    """
    horizon = chunk.shape[1]
    if not 0 <= executed <= horizon:
        raise ValueError(f"shift_chunk: executed must lie in [0, {horizon}], got {executed}")
    return torch.cat([chunk[:, executed:], chunk[:, -1:].expand(-1, executed, -1)], dim=1)
