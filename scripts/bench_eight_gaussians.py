"""Eight Gaussians on a circle: 1-step MeanFlow against a 100-step flow-matching sampler of the same budget.

  python scripts/bench_eight_gaussians.py [--seeds 3] [--steps 4000]

The points are action chunks with H = 1, A = 2 under a constant condition. Distances are sliced Wasserstein-2 to a
sample that nobody trained on; a second fresh sample gives the floor that sampling noise alone leaves.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowpolicy.flow.sample import sample_ode
from flowpolicy.flow.times import time_grid
from flowpolicy.heads.base import Head
from flowpolicy.heads.flow_matching import FlowMatchingHead
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.seeding import derive, stream
from flowpolicy.trainers.ema import ExponentialMovingAverage
from flowpolicy.trainers.schedule import warmup_cosine

RADIUS, STD = 0.7, 0.1  # the circle and each Gaussian on it; everything lies in [-1, 1]
SAMPLES = 20_000  # of each side of a distance


class Result(NamedTuple):
    """Sliced Wasserstein-2 distances to fresh data, and seconds of training of each head."""

    meanflow: float
    flow_matching: float
    floor: float
    meanflow_s: float
    flow_matching_s: float


def eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    """(count, 1, 2): each point picks one of eight centres at RADIUS, plus N(0, STD^2)."""
    angle = torch.randint(8, (count,), generator=generator) * (2 * math.pi / 8)
    centre = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return (centre + STD * torch.randn(count, 2, generator=generator))[:, None]


def sliced_wasserstein2(a: Tensor, b: Tensor, *, directions: int = 64) -> float:
    """Root of the mean over directions of the squared 1-D Wasserstein-2 distance.   a, b: (N, ..., 2), equally many.

    In the plane the directions need not be drawn: they are spread evenly over the half circle.
    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures".
    """
    angle = torch.arange(directions) * (math.pi / directions)
    axes = torch.stack([angle.cos(), angle.sin()])  # (2, directions)
    difference = (a.reshape(-1, 2) @ axes).sort(dim=0).values - (b.reshape(-1, 2) @ axes).sort(dim=0).values
    return float(difference.square().mean().sqrt())


def measure(
    *,
    seed: int,
    steps: int = 4000,
    batch: int = 256,
    width: int = 128,
    lr: float = 1e-3,
    meanflow: dict[str, Any] | None = None,
    flow_matching: dict[str, Any] | None = None,
) -> Result:
    """Train both heads on the same net, data, order, optimiser and averaging, then sample.

    meanflow, flow_matching: keywords of the heads where they shall differ from the library's defaults.
    """
    target, again = (eight_gaussians(SAMPLES, stream(seed, name)) for name in ("target", "floor"))
    noise = torch.randn(SAMPLES, 1, 2, generator=stream(seed, "sample"))
    distance, seconds = {}, {}
    for name, make, options, num_steps in (
        ("meanflow", MeanFlowHead, meanflow, 1),
        ("flow_matching", FlowMatchingHead, flow_matching, 100),
    ):
        began = time.perf_counter()
        head = _train(partial(make, **(options or {})), seed=seed, steps=steps, batch=batch, width=width, lr=lr)
        seconds[name] = time.perf_counter() - began
        with torch.no_grad():
            points = sample_ode(head.velocity, noise, torch.zeros(SAMPLES, 1), time_grid(num_steps))
        distance[name] = sliced_wasserstein2(points, target)
    floor = sliced_wasserstein2(again, target)
    return Result(distance["meanflow"], distance["flow_matching"], floor, seconds["meanflow"], seconds["flow_matching"])


def _train(make: Callable[[ResidualMLP], Head], *, seed: int, steps: int, batch: int, width: int, lr: float) -> Head:
    """The averaged head after `steps` optimiser steps, every one on new points."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "model"))
        head = make(ResidualMLP(action_dim=2, horizon=1, cond_dim=1, width=width))
    ema = ExponentialMovingAverage(head, max_decay=0.999)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)
    data, noise = stream(seed, "data"), stream(seed, "train_noise")
    cond, mask = torch.zeros(batch, 1), torch.ones(batch, 1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps=steps, warmup=100)
        head.loss(eight_gaussians(batch, data), cond, mask, noise).loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update()
    return ema.module


def main() -> None:
    """Print one line per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("seed  MeanFlow 1 step  flow matching 100 steps  ratio  data against data  training s")
    for seed in range(options.seeds):
        result = measure(seed=seed, steps=options.steps)
        print(
            f"{seed:4d}{result.meanflow:17.4f}{result.flow_matching:25.4f}{result.meanflow / result.flow_matching:7.2f}"
            f"{result.floor:19.4f}{result.meanflow_s:8.1f} +{result.flow_matching_s:.1f}"
        )


if __name__ == "__main__":
    main()
