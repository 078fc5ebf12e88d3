"""Every head of configs/policy/head on a distribution that is known, with the same net, data, steps and optimiser.

  python scripts/bench_targets.py [--target eight_gaussians] [--seeds 3] [--steps 4000] [--heads meanflow,drift,...]

  eight_gaussians   points on a circle, as chunks with H = 1, A = 2 under a constant condition
  toy               the first 8 actions of task=toy's expert, given where it and the goal are: two ways, equally often
Prints a Markdown table of sliced Wasserstein-2 distances, in normalised units, of (condition, chunk) to a sample that
nobody trained on: mean and standard deviation over the seeds. A second fresh sample gives the floor that sampling noise
alone leaves.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import NamedTuple, Protocol, final

import numpy as np
import torch
from torch import Tensor

from flowpolicy.cli import config
from flowpolicy.heads.base import Head
from flowpolicy.nets.base import VelocityNet
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.paths import config_dir
from flowpolicy.samplers import as_sampler
from flowpolicy.seeding import derive, stream
from flowpolicy.trainers.ema import ExponentialMovingAverage
from flowpolicy.trainers.schedule import warmup_cosine

NUM_STEPS = (1, 2, 4, 16)  # of the table
REFERENCE, REFERENCE_STEPS = "flow_matching_published", 100  # a line after the table
BATCH, WIDTH, LR = 256, 128, 1e-3
DIRECTIONS = 128


class Target(Protocol):
    """A distribution of (condition, chunk)."""

    horizon: int
    action_dim: int
    cond_dim: int
    samples: int  # of each side of a distance

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training data: chunks (count, H, A) and conditions (count, D)."""
        ...

    def fresh(self, name: str, seed: int) -> tuple[Tensor, Tensor]:
        """`samples` of them, another set for each name and seed, none of them for training."""
        ...


@final
class EightGaussians:
    """Each point picks one of eight centres on a circle of radius 0.7, plus N(0, 0.1^2)."""

    horizon, action_dim, cond_dim, samples = 1, 2, 1, 20_000

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Target`; never the same twice."""
        angle = torch.randint(8, (count,), generator=generator) * (2 * math.pi / 8)
        centre = 0.7 * torch.stack([angle.cos(), angle.sin()], dim=-1)
        return (centre + 0.1 * torch.randn(count, 2, generator=generator))[:, None], torch.zeros(count, 1)

    def fresh(self, name: str, seed: int) -> tuple[Tensor, Tensor]:
        """See `Target`."""
        return self.draw(self.samples, stream(seed, name))


@final
class TwoWays:
    """Chunks of task=toy's expert at the start of an episode, divided by the bound of the actions.

    Condition: offsets of the mass and of the goal from their means, by their spread, each in [-1, 1].
    """

    horizon, action_dim, cond_dim, samples = 8, 2, 4, 4_000

    def __init__(self) -> None:
        from flowpolicy_envs.experts.toy import make_expert  # noqa: PLC0415  # only this target needs a simulator

        self._expert = make_expert()
        self._pool = self._episodes(list(range(10_000)))
        self._fresh: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}  # the expert takes 3 ms an episode

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Target`; of 10,000 episodes."""
        rows = torch.randint(len(self._pool[0]), (count,), generator=generator)
        return self._pool[0][rows], self._pool[1][rows]

    def fresh(self, name: str, seed: int) -> tuple[Tensor, Tensor]:
        """See `Target`."""
        if (name, seed) not in self._fresh:  # drawn: even seeds go left, and in a row they would be exactly half
            drawn = torch.randint(100_000, 10_000_000, (self.samples,), generator=stream(seed, name))
            self._fresh[name, seed] = self._episodes(drawn.tolist())
        return self._fresh[name, seed]

    def _episodes(self, seeds: list[int]) -> tuple[Tensor, Tensor]:
        from flowpolicy_envs.toy import GOAL, MAX_SPEED, SPREAD, START  # noqa: PLC0415

        chunks, conditions = [], []
        for seed in seeds:
            episode = self._expert.episode(seed)
            chunks.append(episode.action[: self.horizon] / MAX_SPEED)
            offsets = (episode.obs["agent_pos"][0] - START, episode.obs["env_state"][0] - GOAL)
            conditions.append(np.concatenate(offsets) / SPREAD)
        return torch.from_numpy(np.stack(chunks)).float(), torch.from_numpy(np.stack(conditions)).float()


TARGETS: dict[str, Callable[[], Target]] = {"eight_gaussians": EightGaussians, "toy": TwoWays}


def sliced_wasserstein2(a: Tensor, b: Tensor) -> float:
    """Root of the mean over DIRECTIONS of the squared 1-D Wasserstein-2 distance.   a, b: (N, D), equally many.

    In the plane the directions are spread evenly over the half circle, otherwise drawn, always the same ones.
    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures".
    """
    if a.shape[1] == 2:
        angle = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
        axes = torch.stack([angle.cos(), angle.sin()])  # (2, directions)
    else:
        drawn = torch.randn(a.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0))
        axes = drawn / drawn.norm(dim=0)
    difference = (a @ axes).sort(dim=0).values - (b @ axes).sort(dim=0).values
    return float(difference.square().mean().sqrt())


class Row(NamedTuple):
    """One head and seed.

    distances: for each of NUM_STEPS, None beyond what the head can do.
    many: for REFERENCE_STEPS, None but for REFERENCE.
    hybrid: distance of the hybrid sampler with 2 evaluations, None for a head without an instantaneous velocity.
    step_ms: milliseconds of a training step.
    """

    distances: list[float | None]
    many: float | None
    hybrid: float | None
    step_ms: float


def measure_head(name: str, target: Target, *, seed: int, steps: int) -> Row:
    """Train configs/policy/head/<name>.yaml and sample it in 1, 2, 4 and 16 steps."""
    make = config.instantiate(config.load("train", ["dataset.path=none", f"policy/head={name}"]).policy.head)
    began = time.perf_counter()
    head = _train(make, target, seed=seed, steps=steps)
    step_ms = 1e3 * (time.perf_counter() - began) / steps
    chunks, conditions = target.fresh("target", seed)
    noise = torch.randn(chunks.shape, generator=stream(seed, "sample"))

    def distance(num_steps: int, hybrid: bool = False) -> float:
        sampler = as_sampler("hybrid" if hybrid else "jump", num_steps)
        with torch.no_grad():
            sampled = sampler(head, noise, conditions, stream(seed, "second"))
        return sliced_wasserstein2(_flat(sampled, conditions), _flat(chunks, conditions))

    most = head.max_steps or max(NUM_STEPS)
    distances = [distance(num_steps) if num_steps <= most else None for num_steps in NUM_STEPS]
    many = distance(REFERENCE_STEPS) if name == REFERENCE else None
    return Row(distances, many, distance(2, hybrid=True) if head.has_velocity else None, step_ms)


def _train(make: Callable[[VelocityNet], Head], target: Target, *, seed: int, steps: int) -> Head:
    """The averaged head after `steps` optimiser steps."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "model"))
        net = ResidualMLP(action_dim=target.action_dim, horizon=target.horizon, cond_dim=target.cond_dim, width=WIDTH)
        head = make(net)
    ema = ExponentialMovingAverage(head, max_decay=0.999)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LR, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)
    data, noise = stream(seed, "data"), stream(seed, "train_noise")
    mask = torch.ones(BATCH, target.horizon)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * warmup_cosine(step, steps=steps, warmup=100)
        head.loss(*target.draw(BATCH, data), mask, noise).loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update()
        head.after_step((step + 1) / steps)
    return ema.module


def floor(target: Target, seed: int) -> float:
    """Distance of one sample of the data to another."""
    return sliced_wasserstein2(*(_flat(*target.fresh(name, seed)) for name in ("floor", "target")))


def _flat(chunks: Tensor, conditions: Tensor) -> Tensor:
    """(N, H, A), (N, D) -> (N, H * A + D), without a condition that never changes."""
    changing = conditions[:, conditions.std(dim=0) > 0]
    return torch.cat([chunks.flatten(1), changing], dim=1)


def print_table(names: Sequence[str], target: Target, *, seeds: int, steps: int) -> None:
    """One line per head; one for the reference's many steps, one for the floor."""
    headings = [*(f"{num_steps} step{'s' * (num_steps > 1)}" for num_steps in NUM_STEPS), "hybrid, 2", "ms per step"]
    print(f"| head | {' | '.join(headings)} |\n|---|{'---:|' * len(headings)}", flush=True)
    reference = ""
    for name in names:
        rows = [measure_head(name, target, seed=seed, steps=steps) for seed in range(seeds)]
        cells = [*zip(*(row.distances for row in rows), strict=True), [row.hybrid for row in rows]]
        step_ms = fmean(row.step_ms for row in rows)
        print(f"| {name} | {' | '.join(map(_cell, cells))} | {step_ms:.1f} |", flush=True)
        if name == REFERENCE:
            reference = _cell([row.many for row in rows])
    if reference:
        print(f"{REFERENCE}, {REFERENCE_STEPS} steps: {reference}")
    print(f"data against data: {_cell([floor(target, seed) for seed in range(seeds)])}")


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.3f}" if known else "-"
    return f"{fmean(known):.3f} ± {stdev(known):.3f}"


def main() -> None:
    """Print the table."""
    every = sorted(file.stem for file in (config_dir() / "policy" / "head").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, default="eight_gaussians")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000, help="training steps of each head")
    parser.add_argument("--heads", default=",".join(every), help="yaml names, comma-separated; default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_table(options.heads.split(","), TARGETS[options.target](), seeds=options.seeds, steps=options.steps)


if __name__ == "__main__":
    main()
