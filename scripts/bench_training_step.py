"""MeanFlow training step: Jacobian product on the rows with r != t only, against the whole batch, in one run.

  python scripts/bench_training_step.py [--batch 128] [--repeats 200]

Both steps compute the same loss (the correction vanishes where r = t); they take turns, so both see the same machine.
"""

import argparse
import time

import numpy as np
import torch

from flowpolicy.flow.meanflow import meanflow_correction
from flowpolicy.heads import meanflow as head_module
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP


def main() -> None:
    """Print milliseconds per step for both and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    sliced, whole = measure(batch=options.batch, repeats=options.repeats)
    print(f"batch {options.batch}, p_equal 0.5, float32, {torch.get_num_threads()} thread(s), {options.repeats} steps")
    for name, times in (("rows with r != t", sliced), ("whole batch", whole)):
        low, median, high = np.percentile(times, [25, 50, 75])
        print(f"{name:18s} {1e3 * median:7.2f} ms per step (quartiles {1e3 * low:.2f} to {1e3 * high:.2f})")
    print(f"throughput ratio   {np.median(whole) / np.median(sliced):7.2f}")


def measure(*, batch: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds per optimiser step, (repeats,) each: sliced Jacobian product, whole-batch Jacobian product."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    head = MeanFlowHead(ResidualMLP(action_dim=8, horizon=16, cond_dim=33))
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    action = torch.randn(batch, 16, 8, generator=generator)
    cond, mask = torch.randn(batch, 33, generator=generator), torch.ones(batch, 16)

    def whole_batch(*args, num_equal: int, **kwargs):  # noqa: ANN002, ANN003, ANN202
        del num_equal
        return meanflow_correction(*args, num_equal=0, **kwargs)

    def step(correction) -> float:  # noqa: ANN001
        head_module.meanflow_correction = correction
        began = time.perf_counter()
        head.loss(action, cond, mask, generator).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    for correction in (meanflow_correction, whole_batch) * 5:
        step(correction)
    times = np.array([[step(meanflow_correction), step(whole_batch)] for _ in range(repeats)])
    head_module.meanflow_correction = meanflow_correction
    return times[:, 0], times[:, 1]


if __name__ == "__main__":
    main()
