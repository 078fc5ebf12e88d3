"""Farthest-point sampling: ours against fpsample's exact version, and a batch against a loop in plain torch.

  python scripts/bench_pointcloud.py [--repeats 15]

The two of each pair take turns on one thread; times are the processor's, which other programs disturb least. fpsample
is optional (pip install fpsample). The indices of each pair are compared before anything is timed.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flowpolicy.pointcloud.cloud import farthest_point_indices, farthest_point_indices_batch


def main() -> None:
    """Print milliseconds and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    for name, cloud in {"cube": rng.random((8192, 3)), "table top": table_top(rng, 8192)}.items():
        points = cloud.astype(np.float32)
        print(f"one cloud, 8192 -> 1024, {name}")
        exact = fpsample_vanilla(points, 1024)
        if exact is None:
            print("  fpsample is not installed: no comparison (pip install fpsample)")
            report([("flowpolicy", lambda points=points: farthest_point_indices(points, 1024))], repeats)
        else:
            ours = ("flowpolicy", lambda points=points: farthest_point_indices(points, 1024))
            report([ours, ("fpsample, exact", exact)], repeats)

    clouds = torch.from_numpy(np.stack([table_top(rng, 4096) for _ in range(64)]).astype(np.float32))
    print("64 clouds in one call, 4096 -> 512, table top, CPU")
    batch = ("flowpolicy", lambda: farthest_point_indices_batch(clouds, 512).numpy())
    loop = ("plain torch loop", lambda: torch.stack([torch_loop(cloud, 512) for cloud in clouds]).numpy())
    report([batch, loop], min(repeats, 5))


def table_top(rng: np.random.Generator, total: int) -> np.ndarray:
    """(total, 3) points: a plane with noise and a block on it, as a cropped depth image has."""
    plane = np.column_stack([rng.random((total, 2)), 0.002 * rng.normal(size=total)])
    block = total // 4
    plane[:block] = [0.4, 0.4, 0.0] + rng.random((block, 3)) * [0.1, 0.1, 0.15]
    return rng.permutation(plane)


def fpsample_vanilla(points: np.ndarray, count: int) -> Callable[[], np.ndarray] | None:
    """fpsample's version without approximation, or None where it is not installed."""
    try:
        import fpsample  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return lambda: fpsample.fps_sampling(points, count, start_idx=0)


def torch_loop(points: Tensor, count: int) -> Tensor:
    """Farthest-point sampling of points (N, 3) as it is usually written."""
    chosen = torch.zeros(count, dtype=torch.int64)
    distance = torch.full((len(points),), torch.inf)
    for k in range(1, count):
        distance = torch.minimum(distance, (points - points[chosen[k - 1]]).square().sum(dim=1))
        chosen[k] = distance.argmax()
    return chosen


def report(methods: list[tuple[str, Callable[[], np.ndarray]]], repeats: int) -> None:
    """Time the methods in turn; the first is compared with the last."""
    results = [method() for _, method in methods]
    same = np.mean(results[0] == results[-1])
    times = np.empty((repeats, len(methods)))
    for row in times:
        for column, (_, method) in enumerate(methods):
            began = time.process_time()
            method()
            row[column] = 1e3 * (time.process_time() - began)
    for (name, _), column in zip(methods, times.T, strict=True):
        low, median, high = np.percentile(column, [25, 50, 75])
        print(f"  {name:18s} {median:8.2f} ms (quartiles {low:.2f} to {high:.2f}, {repeats} repeats)")
    if len(methods) > 1:
        ratios = times[:, -1] / times[:, 0]
        low, median, high = np.percentile(ratios, [25, 50, 75])
        print(f"  ratio {median:.1f} (quartiles {low:.1f} to {high:.1f}); {same:.1%} of the indices are the same")


if __name__ == "__main__":
    main()
