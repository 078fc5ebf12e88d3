"""MeanFlow training step of a net against the same step written plainly, in one run.

  python scripts/bench_training_step.py [--net unet1d] [--batch 128] [--threads 1] [--repeats 30] [--p-equal 0.75]
                                        [--compile]

  flowpolicy        as trainer.precision=auto trains: forward-mode Jacobian product of the rows with r != t, without a
                    graph, in float32; one forward and backward pass, in bfloat16 where the processor multiplies in it
  float32           the same, all in float32
  whole batch       that, but the Jacobian product of all rows
  compiled          with --compile: as trainer.compile=true has it, in the first row's precision
  double backward   torch.autograd.functional.jvp of the whole batch with a graph, float32, as MP1's released code
Forward, backward, clipping and AdamW. Before anything is timed the losses are compared on one batch (the correction
vanishes where r = t). They take turns, so that all see the same machine.
"""

import argparse
import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from plain_meanflow import double_backward, plain_loss
from torch import Tensor

from flowpolicy.cli import config
from flowpolicy.flow.meanflow import meanflow_correction
from flowpolicy.heads import meanflow as head_module
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.trainers.imitation import uses_bfloat16
from flowpolicy.types import LossOutput

BFLOAT16 = uses_bfloat16("auto", torch.device("cpu"))
ACTION_DIM, HORIZON, COND_DIM = 8, 16, 33  # of PickCube-v1's states
Loss = Callable[[MeanFlowHead, Tensor, Tensor, Tensor, torch.Generator], Tensor]


def main() -> None:
    """Print milliseconds per step of each, and how many times slower than ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="unet1d", help="a yaml of configs/policy/net")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--p-equal", type=float, default=0.75, help="share of rows with r = t")
    parser.add_argument("--compile", action="store_true", help="also the compiled step; compiling takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    losses: dict[str, Loss] = {
        "flowpolicy": as_trained,
        "float32": lambda head, *given: head.loss(*given).loss,
        "whole batch": whole_batch,
        "double backward": partial(plain_loss, jvp=double_backward),
    }
    if options.compile:
        losses["compiled"] = compiled
    times = 1e3 * measure(
        losses, net=options.net, batch=options.batch, repeats=options.repeats, p_equal=options.p_equal
    )
    print(
        f"{options.net}, batch {options.batch}, p_equal {options.p_equal}, {options.threads} thread(s), bfloat16: "
        f"{BFLOAT16}, {options.repeats} steps each; losses agree to 1e-4, in bfloat16 to 1e-2"
    )
    for column, name in enumerate(losses):
        low, median, high = np.percentile(times[:, column], [25, 50, 75])
        ratio = np.median(times[:, column] / times[:, 0])
        print(f"{name:18}{median:9.1f} ms per step (quartiles {low:.1f} to {high:.1f}){ratio:8.2f}x")


def as_trained(head: MeanFlowHead, *given: Tensor | torch.Generator) -> Tensor:
    """Our loss in the precision that the trainer chooses."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=BFLOAT16):
        return head.loss(*given).loss  # pyright: ignore[reportArgumentType]


def compiled(head: MeanFlowHead, *given: Tensor | torch.Generator) -> Tensor:
    """The same through torch.compile; one head per process."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=BFLOAT16):
        return _traced(head)(*given).loss


@cache
def _traced(head: MeanFlowHead) -> Callable[..., LossOutput]:
    return torch.compile(head.loss, dynamic=False)


def whole_batch(head: MeanFlowHead, *given: Tensor | torch.Generator) -> Tensor:
    """Our loss with the Jacobian product of all rows."""
    head_module.meanflow_correction = lambda *args, num_equal, **words: meanflow_correction(*args, num_equal=0, **words)
    try:
        return head.loss(*given).loss  # pyright: ignore[reportArgumentType]
    finally:
        head_module.meanflow_correction = meanflow_correction


def measure(losses: dict[str, Loss], *, net: str, batch: int, repeats: int, p_equal: float) -> np.ndarray:
    """Seconds per optimiser step, (repeats, losses)."""
    words = ["dataset.path=none", f"policy/net={net}", "policy/head=meanflow", f"policy.head.p_equal={p_equal}"]
    make = config.load("train", words).policy
    torch.manual_seed(0)
    body = config.instantiate(make.net)(action_dim=ACTION_DIM, horizon=HORIZON, cond_dim=COND_DIM)
    head = config.instantiate(make.head)(body)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    action = torch.randn(batch, HORIZON, ACTION_DIM, generator=generator)
    cond, mask = torch.randn(batch, COND_DIM, generator=generator), torch.ones(batch, HORIZON)
    given = (head, action, cond, mask)
    first = [loss(*given, torch.Generator().manual_seed(1)).item() for loss in losses.values()]
    found = dict(zip(losses, first, strict=True))
    assert np.allclose(first[1:4], first[1], rtol=1e-4), found
    assert np.allclose(first, first[1], rtol=1e-2), found

    def step(loss: Loss) -> float:
        began = time.perf_counter()
        loss(*given, generator).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    return np.array([[step(loss) for loss in losses.values()] for _ in range(3 + repeats)])[3:]


if __name__ == "__main__":
    main()
