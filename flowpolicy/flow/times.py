"""Flow times: those that training sees, alone or as pairs (t, r), and the grid that sampling walks."""

import math
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor

from flowpolicy.seeding import normal, uniform

TimeLaw = Literal["logit_normal", "uniform"]


@final
@dataclass(frozen=True)
class FlowTimes:
    """The flow times that a head trains on; the same object draws them for every head.

    Args:
        law: "logit_normal" of mean and std, or "uniform" on [0, 1), where mean and std play no part.
        mean: Of the logit.
        std: Of the logit.
        p_start: Share of the draws with t = 1, where sampling starts and which neither law ever reaches.

    Raises:
        ValueError: For an unknown law, a share outside of [0, 1] or a negative std.
    """

    law: TimeLaw = "logit_normal"
    mean: float = 1.0
    std: float = 1.5
    p_start: float = 0.1

    def __post_init__(self) -> None:
        if self.law not in get_args(TimeLaw):
            raise ValueError(f"time_law must be one of {', '.join(get_args(TimeLaw))}, got {self.law!r}")
        if not 0.0 <= self.p_start <= 1.0:
            raise ValueError(f"p_start is the share of draws with t = 1 and must lie in [0, 1], got {self.p_start}")
        if not self.std >= 0.0:
            raise ValueError(f"time_std must be at least 0, got {self.std}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Independent times of the law, without starts, of that shape on the generator's device.

        Args:
            shape: Of the tensor.
            generator: Where random numbers come from.
        """
        if self.law == "uniform":
            return uniform(shape, generator)
        return logit_normal(shape, mean=self.mean, std=self.std, generator=generator)

    def single(self, batch: int, generator: torch.Generator) -> Tensor:
        """(B,) times t, a share p_start of them 1.

        Args:
            batch: B.
            generator: Where random numbers come from.
        """
        t = self.draw((batch,), generator)
        return self._with_starts(t, generator) if self.p_start else t

    def pairs(self, batch: int, generator: torch.Generator, *, p_equal: float) -> tuple[Tensor, Tensor]:
        """Pairs 0 <= r <= t <= 1, the first `num_equal_times(batch, p_equal)` of them with r = t.

        Two times of the law, the larger is t; with probability p_start t is 1 instead.

        Args:
            batch: B.
            generator: Where random numbers come from.
            p_equal: Share of the rows with r = t.

        Returns:
            t and r, both (B,), on the generator's device. Batches are drawn independently, so which rows get r = t does
            not matter; fixing them to the front lets the Jacobian product run on a slice of static shape.

        Source: Geng et al. 2025, section 4.2 (there the share of r != t is given); p_start is ours.
        """
        pair = self.draw((2, batch), generator)
        t, r = self._with_starts(pair.amax(dim=0), generator), pair.amin(dim=0)
        equal = num_equal_times(batch, p_equal)
        return t, torch.cat([t[:equal], r[equal:]])

    def _with_starts(self, t: Tensor, generator: torch.Generator) -> Tensor:
        start = uniform(t.shape, generator) < self.p_start
        return torch.where(start, 1.0, t)


def logit_normal(shape: tuple[int, ...], *, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """sigmoid(mean + std * N(0, 1)), in (0, 1).

    Args:
        shape: Of the tensor.
        mean: Of the logit.
        std: Of the logit.
        generator: Where random numbers come from.

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 19.
    """
    return torch.sigmoid(mean + std * normal(shape, generator))


def num_equal_times(batch: int, p_equal: float) -> int:
    """How many rows of a batch have r = t; a fixed count, so shapes never depend on random numbers.

    Args:
        batch: B.
        p_equal: Share of the rows with r = t.
    """
    if not 0.0 <= p_equal <= 1.0:
        raise ValueError(f"p_equal is the share of pairs with r = t and must lie in [0, 1], got {p_equal}")
    return round(batch * p_equal)


def least_batch(p_equal: float) -> int:
    """The smallest batch with rows of both kinds, r = t and r < t; 1 where the share p_equal is 0 or 1.

    Args:
        p_equal: Share of the rows with r = t.
    """
    smaller = min(p_equal, 1.0 - p_equal)
    batch = 1 if smaller <= 0.0 else max(2, math.floor(0.5 / smaller))
    while smaller > 0.0 and not 0 < num_equal_times(batch, p_equal) < batch:
        batch += 1
    return batch


def time_grid(num_steps: int) -> Tensor:
    """(K+1,) uniform times from 1 down to 0. Raises ValueError for num_steps < 1.

    Args:
        num_steps: Network evaluations per chunk.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1 network evaluation, got {num_steps}")
    return torch.linspace(1.0, 0.0, num_steps + 1, device="cpu", dtype=torch.float32)
