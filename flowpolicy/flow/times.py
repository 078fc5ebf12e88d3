"""Flow times: the pairs (t, r) that training sees and the grid that sampling walks."""

import torch
from torch import Tensor


def logit_normal(shape: tuple[int, ...], *, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """sigmoid(mean + std * N(0, 1)), in (0, 1).

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 19.
    """
    return torch.sigmoid(mean + std * torch.randn(shape, generator=generator, device=generator.device))


def num_equal_times(batch: int, p_equal: float) -> int:
    """How many rows of a batch have r = t; a fixed count, so shapes never depend on random numbers."""
    if not 0.0 <= p_equal <= 1.0:
        raise ValueError(f"p_equal is the share of pairs with r = t and must lie in [0, 1], got {p_equal}")
    return round(batch * p_equal)


def sample_time_pairs(
    batch: int,
    *,
    p_equal: float,
    p_start: float = 0.0,
    mean: float = -0.4,  # Geng et al. 2025, table 1d: logit-normal(-0.4, 1.0) is the best of those tried
    std: float = 1.0,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Pairs 0 <= r <= t <= 1, the first `num_equal_times(batch, p_equal)` of them with r = t.

    Two logit-normal numbers, the larger is t; with probability p_start t is 1 instead, where sampling starts and which
    a logit-normal never reaches.
    Returns t and r, both (B,), on the generator's device. Batches are drawn independently, so which rows get r = t
    does not matter; fixing them to the front lets the Jacobian product run on a slice of static shape.
    Source: Geng et al. 2025, section 4.2 (there the share of r != t is given); p_start is ours.
    """
    pair = logit_normal((2, batch), mean=mean, std=std, generator=generator)
    t, r = pair.amax(dim=0), pair.amin(dim=0)
    start = torch.rand(batch, generator=generator, device=generator.device) < p_start
    t = torch.where(start, 1.0, t)
    equal = num_equal_times(batch, p_equal)
    return t, torch.cat([t[:equal], r[equal:]])


def time_grid(num_steps: int) -> Tensor:
    """(K+1,) uniform times from 1 down to 0. Raises ValueError for num_steps < 1."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1 network evaluation, got {num_steps}")
    return torch.linspace(1.0, 0.0, num_steps + 1)
