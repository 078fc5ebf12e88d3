"""Training step of a point-cloud preset against the same step written plainly, in one run, and its samples per second.

  python scripts/bench_cloud_training.py [experiment=mp1_metaworld_small] [batch=128] [threads=2] [repeats=30]

Whole steps of the trainer: batch, augmentation, loss, backward pass, clipping, AdamW, averaging. The plain ones are in
float32, differentiate the whole batch with a graph and run every point through PointNet with a graph:
  func.jvp               the condition is encoded once, outside of the differentiated function
  func.jvp, encoder in   encoded inside of it
  double backward        torch.autograd.functional.jvp, as MP1's released code
Before anything is timed their losses are compared with ours on one batch. They take turns, so that all see the same
machine; processor time is what other programs disturb least.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_meanflow import double_backward, forward_mode, plain_loss as head_loss
from torch import Tensor

from flowpolicy.checkpoint import create_policy
from flowpolicy.cli import config
from flowpolicy.data.dataset import SequenceDataset
from flowpolicy.embodiment import CloudSpec, Embodiment, KeySpec
from flowpolicy.encoders.pointnet import PointNet
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.policy import FlowPolicy
from flowpolicy.tracking import CompositeTracker
from flowpolicy.trainers.checkpoints import Checkpoints
from flowpolicy.trainers.fitting import fit_normalizers
from flowpolicy.trainers.imitation import ImitationTrainer, TrainerSettings
from flowpolicy.types import Batch, LossOutput

DEFAULTS = {"experiment": "mp1_metaworld_small", "batch": "128", "threads": "2", "repeats": "30"}
CLOUD = CloudSpec(crop_low=(-0.5, 0.3, 0.002), crop_high=(0.5, 0.95, 0.35))
METAWORLD = Embodiment(
    "sawyer",
    {"agent_pos": KeySpec((4,), "m, gripper 0..1", "world"), "point_cloud": KeySpec(CLOUD.shape, "m", cloud=CLOUD)},
    KeySpec((4,)),
    "eef_delta",
    80.0,
    (-1.0,) * 4,
    (1.0,) * 4,
)
STEPS = 1000  # of made-up demonstrations, as many as ten of Meta-World's


def trainer(facts: dict[str, Any], *, precision: str) -> ImitationTrainer:
    """The preset's trainer on random clouds of Meta-World's shapes, with the same weights every time."""
    rng = np.random.default_rng(0)
    clouds = rng.uniform(CLOUD.crop_low, CLOUD.crop_high, (STEPS, *CLOUD.shape))
    states, actions = rng.normal(size=(STEPS, 4)), rng.uniform(-1, 1, (STEPS, 4))
    obs = {"agent_pos": torch.from_numpy(states).float(), "point_cloud": torch.from_numpy(clouds).float()}
    torch.manual_seed(0)
    policy = create_policy(facts["policy"], METAWORLD)
    ends = range(STEPS // 10, STEPS + 1, STEPS // 10)
    dataset = SequenceDataset(
        obs, torch.from_numpy(actions).float(), ends, horizon=policy.horizon, obs_horizon=policy.obs_horizon
    )
    fit_normalizers(policy, dataset)
    settings = TrainerSettings.from_dict({**facts["trainer"], "precision": precision})
    checkpoints = Checkpoints(Path("never-written"), facts={})
    return ImitationTrainer(
        policy,
        dataset,
        settings=settings,
        checkpoints=checkpoints,
        tracker=CompositeTracker([]),
        seed=0,
        progress=False,
    )


def plain(one: ImitationTrainer, jvp: Callable[..., Any], *, encoder_inside: bool) -> ImitationTrainer:
    """The trainer with the plain loss in place of the policy's own."""
    for part in one.policy.encoder.modules():
        if isinstance(part, PointNet):
            part._maxima_of_few = partial(every_point, part)
    one.policy.loss = partial(plain_loss, one.policy, jvp=jvp, encoder_inside=encoder_inside)
    return one


def every_point(part: PointNet, points: Tensor) -> Tensor:
    """PointNet as it is usually written: all points through all layers, then the maximum."""
    clouds, count, columns = points.shape
    return part._each(points.reshape(-1, columns)).view(clouds, count, -1).amax(dim=1)


def plain_loss(
    policy: FlowPolicy, batch: Batch, generator: torch.Generator, *, jvp: Callable[..., Any], encoder_inside: bool
) -> LossOutput:
    """`FlowPolicy.loss` in place of the head's."""
    head = policy.head
    assert isinstance(head, MeanFlowHead)
    action = policy.action_normalizer(policy.representation.encode(batch.action, batch.obs))
    again = partial(policy.encode, batch.obs)
    cond = again()
    loss = head_loss(head, action, cond, batch.mask, generator, jvp=jvp, encode=again if encoder_inside else None)
    return LossOutput(loss, {})


def loss_of(one: ImitationTrainer, index: Tensor) -> float:
    """On one fixed batch, in float32."""
    return float(one.policy.loss(one.dataset.batch(index), torch.Generator().manual_seed(0)).loss.detach())


def measure(methods: dict[str, ImitationTrainer], *, repeats: int) -> np.ndarray:
    """Seconds of processor and of wall time per step, (repeats, methods, 2)."""
    times = np.empty((3 + repeats, len(methods), 2))
    for turn in times:
        for column, one in enumerate(methods.values()):
            processor, wall = time.process_time(), time.perf_counter()
            one._update(one.dataset.batch(one._indices(one.step)))
            one.step += 1
            turn[column] = time.process_time() - processor, time.perf_counter() - wall
    return times[3:]


def main(argv: list[str]) -> int:
    """Compare losses, measure, print."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or set(given) - set(DEFAULTS):
        print(__doc__, file=sys.stderr)
        return 2
    options = DEFAULTS | given
    torch.set_num_threads(int(options["threads"]))
    words = [f"experiment={options['experiment']}", f"trainer.batch_size={options['batch']}", "dataset.path=none"]
    facts = config.plain(config.load("train", words))
    new = partial(trainer, facts, precision="fp32")
    methods = {
        "flowpolicy": trainer(facts, precision="auto"),
        "func.jvp": plain(new(), forward_mode, encoder_inside=False),
        "func.jvp, encoder in": plain(new(), forward_mode, encoder_inside=True),
        "double backward": plain(new(), double_backward, encoder_inside=False),
    }
    index = torch.arange(int(options["batch"]))
    losses = {name: loss_of(one, index) for name, one in methods.items()}
    for name, loss in losses.items():
        assert abs(loss / losses["flowpolicy"] - 1) < 1e-4, (name, losses)
    times = 1e3 * measure(methods, repeats=int(options["repeats"]))
    kind = "bfloat16" if methods["flowpolicy"].half_precision else "float32"
    print(
        f"{options['experiment']}, batch {options['batch']}, {options['threads']} thread(s), ours in {kind}, "
        f"{options['repeats']} steps each; losses agree to 1e-4"
    )
    print(f"{'':22}{'processor ms (quartiles)':>30}{'wall ms':>10}{'samples/s':>11}{'slower than ours':>18}")
    for column, name in enumerate(methods):
        low, median, high = np.percentile(times[:, column, 0], [25, 50, 75])
        wall = float(np.median(times[:, column, 1]))
        ratio = float(np.median(times[:, column, 0] / times[:, 0, 0]))
        print(
            f"{name:22}{f'{median:.1f} ({low:.1f} to {high:.1f})':>30}{wall:10.1f}"
            f"{1e3 * int(options['batch']) / wall:11.0f}{ratio:17.2f}x"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
