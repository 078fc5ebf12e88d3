"""Eight Gaussians on a circle: every head of configs/policy/head with the same net, data, steps and optimiser.

  python scripts/bench_eight_gaussians.py [--seeds 3] [--steps 4000] [--heads meanflow,drift,...]
  python scripts/bench_eight_gaussians.py --pair     # 1-step MeanFlow against 100 steps of flow matching

The points are action chunks with H = 1, A = 2 under a constant condition. Distances are sliced Wasserstein-2 to a
sample that nobody trained on; a second fresh sample gives the floor that sampling noise alone leaves.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowpolicy.cli import config
from flowpolicy.flow.sample import sample, sample_ode
from flowpolicy.flow.times import time_grid
from flowpolicy.heads.base import Head
from flowpolicy.heads.flow_matching import FlowMatchingHead
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.paths import config_dir
from flowpolicy.seeding import derive, stream
from flowpolicy.trainers.ema import ExponentialMovingAverage
from flowpolicy.trainers.schedule import warmup_cosine

RADIUS, STD = 0.7, 0.1  # the circle and each Gaussian on it; everything lies in [-1, 1]
SAMPLES = 20_000  # of each side of a distance
NUM_STEPS = (1, 2, 4, 16)  # of the table


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
    target, noise = eight_gaussians(SAMPLES, stream(seed, "target")), _noise(seed, "sample")
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
    return Result(
        distance["meanflow"], distance["flow_matching"], floor(seed), seconds["meanflow"], seconds["flow_matching"]
    )


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
        head.after_step((step + 1) / steps)
    return ema.module


class Row(NamedTuple):
    """One head and seed: distance for each of NUM_STEPS (None beyond the head's limit), training milliseconds a step.

    hybrid: distance of the hybrid sampler with 2 evaluations, None for a head without an instantaneous velocity.
    """

    distances: list[float | None]
    hybrid: float | None
    step_ms: float


def measure_head(name: str, *, seed: int, steps: int, batch: int = 256, width: int = 128, lr: float = 1e-3) -> Row:
    """Train configs/policy/head/<name>.yaml and sample it in 1, 2, 4 and 16 steps."""
    make = config.instantiate(config.load("train", ["dataset.path=none", f"policy/head={name}"]).policy.head)
    began = time.perf_counter()
    head = _train(make, seed=seed, steps=steps, batch=batch, width=width, lr=lr)
    step_ms = 1e3 * (time.perf_counter() - began) / steps
    target, noise = eight_gaussians(SAMPLES, stream(seed, "target")), _noise(seed, "sample")

    def distance(num_steps: int, **words: Any) -> float:
        with torch.no_grad():
            points = sample(head.velocity, noise, torch.zeros(SAMPLES, 1), num_steps=num_steps, **words)
        return sliced_wasserstein2(points, target)

    most = head.max_steps or max(NUM_STEPS)
    distances = [distance(num_steps) if num_steps <= most else None for num_steps in NUM_STEPS]
    hybrid = distance(2, sampler="hybrid", generator=stream(seed, "second")) if head.has_velocity else None
    return Row(distances, hybrid, step_ms)


def floor(seed: int) -> float:
    """Distance of one sample of the data to another."""
    return sliced_wasserstein2(*(eight_gaussians(SAMPLES, stream(seed, name)) for name in ("floor", "target")))


def _noise(seed: int, name: str) -> Tensor:
    return torch.randn(SAMPLES, 1, 2, generator=stream(seed, name))


def print_table(names: Sequence[str], *, seeds: int, steps: int) -> None:
    """One line per head, means over the seeds; a line for the floor."""
    print(f"sliced Wasserstein-2 to fresh data, mean of {seeds} seed(s), {steps} training steps")
    heading = "".join(f"{f'{num_steps} step(s)':>12}" for num_steps in NUM_STEPS)
    print(f"{'head':<20}{heading}{'hybrid, 2':>12}{'ms per step':>14}")
    for name in names:
        rows = [measure_head(name, seed=seed, steps=steps) for seed in range(seeds)]
        cells = [*zip(*(row.distances for row in rows), strict=True), tuple(row.hybrid for row in rows)]
        line = "".join(f"{'-' if None in cell else format(fmean(cell), '.4f'):>12}" for cell in cells)
        print(f"{name:<20}{line}{fmean(row.step_ms for row in rows):>14.2f}", flush=True)
    print(f"{'data against data':<20}{fmean(floor(seed) for seed in range(seeds)):>12.4f}")


def main() -> None:
    """Print the table, or the pair."""
    every = sorted(file.stem for file in (config_dir() / "policy" / "head").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000, help="training steps of each head")
    parser.add_argument("--heads", default=",".join(every), help="yaml names, comma-separated; default all")
    parser.add_argument("--pair", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.pair:
        print_table(options.heads.split(","), seeds=options.seeds, steps=options.steps)
        return
    print("seed  MeanFlow 1 step  flow matching 100 steps  ratio  data against data  training s")
    for seed in range(options.seeds):
        result = measure(seed=seed, steps=options.steps)
        print(
            f"{seed:4d}{result.meanflow:17.4f}{result.flow_matching:25.4f}{result.meanflow / result.flow_matching:7.2f}"
            f"{result.floor:19.4f}{result.meanflow_s:8.1f} +{result.flow_matching_s:.1f}"
        )


if __name__ == "__main__":
    main()
