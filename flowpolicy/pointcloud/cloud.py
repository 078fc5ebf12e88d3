"""Point clouds from depth images: unproject, crop, thin out, sample; the same for data, simulator, server and robot.

Clouds are (N, 3) float32 metres, or (N, 6) with red, green and blue in 0..1; `CloudSpec` says how one is made.
Neither torch nor numba is loaded before it is used: simulators run in processes that need no torch, robots may have
no numba.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from flowpolicy.embodiment import CloudSpec

if TYPE_CHECKING:
    from torch import Tensor

_MOST_CELLS = 2**62  # of a voxel grid: what its int64 cell numbers can hold
_P = ParamSpec("_P")
_R = TypeVar("_R")
_spent_ms: dict[str, float] | None = None  # where `stage_times` wants to know


class EmptyCropError(ValueError):
    """Nothing that the cameras see lies in a cloud's crop."""


@contextmanager
def stage_times() -> Iterator[dict[str, float]]:
    """Milliseconds that this process spends in each stage inside the block: unproject, crop, thin, sample."""
    global _spent_ms
    before, _spent_ms = _spent_ms, {}
    try:
        yield _spent_ms
    finally:
        _spent_ms = before


def _stage(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A function whose time `stage_times` adds up under `name`."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if _spent_ms is None:
                return function(*args, **kwargs)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            _spent_ms[name] = _spent_ms.get(name, 0.0) + 1e3 * (time.perf_counter() - start)
            return result

        return timed

    return decorate


@_stage("unproject")
def unproject(depth_m: np.ndarray, intrinsics: np.ndarray, camera_to_world: np.ndarray) -> np.ndarray:
    """The points that a pinhole camera sees: (H*W, 3) float32 metres in the world, row by row of the image.

    Where the depth is not positive and finite (0 is a sensor's "no reading") the point is NaN; `crop` drops it.

    Args:
        depth_m: (H, W) metres along the optical axis.
        intrinsics: (3, 3) pixels, no skew; pixel (0, 0) is the centre of the upper left one.
        camera_to_world: (4, 4), OpenCV axes (x right, y down, z forward).

    Raises:
        ValueError: For wrong shapes.
    """
    depth = np.asarray(depth_m, dtype=np.float32)
    matrix, pose = np.asarray(intrinsics, dtype=np.float32), np.asarray(camera_to_world, dtype=np.float32)
    if depth.ndim != 2 or matrix.shape != (3, 3) or pose.shape != (4, 4):
        raise ValueError(
            f"unproject: wanted depth (H, W), intrinsics (3, 3) and camera_to_world (4, 4), got {depth.shape}, "
            f"{matrix.shape} and {pose.shape}"
        )
    height, width = depth.shape
    right = (np.arange(width, dtype=np.float32) - matrix[0, 2]) / matrix[0, 0]
    down = (np.arange(height, dtype=np.float32) - matrix[1, 2]) / matrix[1, 1]
    seen = np.isfinite(depth) & (depth > 0)
    z = np.where(seen, depth, np.float32(1.0))
    camera = np.stack([right * z, down[:, None] * z, z], axis=-1).reshape(-1, 3)
    world = camera @ pose[:3, :3].T + pose[:3, 3]
    world[~seen.reshape(-1)] = np.nan
    return world


@_stage("crop")
def crop(points: np.ndarray, low: tuple[float, ...], high: tuple[float, ...]) -> np.ndarray:
    """The rows of points (N, 3 or more) whose coordinates lie in [low, high]; NaN lies nowhere.

    Args:
        points: (N, 3) or more columns, metres.
        low: (3,), metres.
        high: (3,), metres.
    """
    xyz = points[:, :3]
    inside = (xyz >= np.asarray(low, dtype=xyz.dtype)) & (xyz <= np.asarray(high, dtype=xyz.dtype))
    return points[inside.all(axis=1)]


@_stage("thin")
def voxel_downsample(points: np.ndarray, voxel_m: float) -> np.ndarray:
    """One row per occupied cell of a grid of edge `voxel_m` through the origin: the mean of its points (N, 3 or more).

    Args:
        points: (N, 3) or more columns, metres.
        voxel_m: Edge of a cell, metres.

    Returns:
        (M, same columns) float32, ordered by cell.

    Raises:
        ValueError: For an edge that is not positive, or so small that the cells cannot be numbered.
    """
    if not voxel_m > 0:
        raise ValueError(f"voxel_downsample: wanted an edge above 0 m, got {voxel_m}")
    if len(points) == 0:
        return points.astype(np.float32)
    cells = np.floor(points[:, :3].astype(np.float64) / voxel_m)
    cells -= cells.min(axis=0)
    size = cells.max(axis=0) + 1
    if not size.prod() < _MOST_CELLS:
        raise ValueError(f"voxel_downsample: {voxel_m} m is too fine for points so far apart; crop them first")
    x, y, z = cells.astype(np.int64).T
    number = (x * int(size[1]) + y) * int(size[2]) + z
    _, cell, count = np.unique(number, return_inverse=True, return_counts=True)
    means = [np.bincount(cell, weights=column) / count for column in points.T]
    return np.stack(means, axis=1).astype(np.float32)


@_stage("sample")
def farthest_point_indices(points: np.ndarray, count: int, *, start: int = 0) -> np.ndarray:
    """Indices (count,) int64 of points (N, 3): `start`, then always the point farthest from all chosen ones.

    Exact, in float32; ties go to the lowest index. start 0 is PyTorch3D's choice, and so DP3's and MP1's.

    Args:
        points: (N, 3) or more columns, metres.
        count: How many points to keep.
        start: Index of the first one.

    Raises:
        ValueError: When count is not in 1..N, start not in 0..N-1, or a coordinate is NaN or infinite.
    """
    rows = np.ascontiguousarray(points, dtype=np.float32)
    _check(rows.shape, count, start, dims=2)
    if not np.isfinite(rows).all():
        raise ValueError("farthest_point_indices: NaN or infinity among the points; crop them first")
    return _kernel().sample(rows, count, start)


def farthest_point_indices_batch(points: "Tensor", count: int, *, start: int = 0) -> "Tensor":
    """`farthest_point_indices` for every cloud of points (B, N, 3): (B, count) int64 on their device, same indices.

    On the CPU the compiled kernel runs over the clouds; elsewhere all clouds advance together, point by point.

    Args:
        points: (N, 3) or more columns, metres.
        count: How many points to keep.
        start: Index of the first one.
    """
    import torch

    rows = points.detach().to(torch.float32)
    _check(tuple(rows.shape), count, start, dims=3)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("farthest_point_indices_batch: NaN or infinity among the points; crop them first")
    if rows.device.type == "cpu":
        sample = _kernel().sample
        return torch.from_numpy(np.stack([sample(cloud, count, start) for cloud in rows.contiguous().numpy()]))
    return _advance_together(rows, count, start)


def make_cloud(points: np.ndarray, spec: CloudSpec) -> np.ndarray:
    """The cloud that `spec` describes, of all points (N, 3) or (N, 6) that the cameras see: spec.shape, float32.

    Crop, grid, farthest-point sampling. Fewer points than spec.points are repeated in turn: an encoder that takes the
    maximum does not notice, where zeros (DP3's padding) would be a point of their own at the origin.

    Args:
        points: (N, 3) or more columns, metres.
        spec: Crop, grid and number of points.

    Raises:
        ValueError: When colour is wanted and not there.
        EmptyCropError: When nothing lies in the crop.
    """
    columns = spec.shape[1]
    if points.ndim != 2 or points.shape[1] not in (3, 6) or points.shape[1] < columns:
        raise ValueError(
            f"make_cloud: wanted points (N, {columns}{' or 6' * (columns == 3)}), got {points.shape}; "
            "colours are columns 3 to 5, in 0..1"
        )
    inside = crop(points[:, :columns].astype(np.float32), spec.crop_low, spec.crop_high)
    if len(inside) == 0:
        raise EmptyCropError(
            f"make_cloud: none of {len(points)} points lies between {spec.crop_low} and {spec.crop_high} m in frame "
            f"{spec.frame}; their coordinates span {_span(points)}. Is the camera's pose in that frame?"
        )
    if spec.voxel_m > 0:
        inside = voxel_downsample(inside, spec.voxel_m)
    if len(inside) <= spec.points:
        return inside[np.arange(spec.points) % len(inside)]
    return inside[farthest_point_indices(inside[:, :3], spec.points)]


def _advance_together(points: "Tensor", count: int, start: int) -> "Tensor":
    """Farthest-point sampling of finite points (B, N, 3) with tensor operations, one chosen point per cloud and turn.

    Each operation rounds on its own and in the kernel's order: a fused or reordered sum would break ties elsewhere.
    """
    import torch

    axes = points.permute(2, 0, 1).contiguous()  # (3, B, N)
    distance = torch.full_like(axes[0], torch.inf)
    chosen = torch.empty(len(points), count, dtype=torch.int64, device=points.device)
    latest = torch.full((len(points), 1), start, dtype=torch.int64, device=points.device)
    for k in range(count):
        chosen[:, k : k + 1] = latest
        offset = axes - axes.gather(2, latest.expand(3, -1, -1))
        x, y, z = offset * offset
        distance = torch.minimum(distance, (x + y) + z)
        latest = distance.argmax(dim=1, keepdim=True)  # the first of equals
    return chosen


def _check(shape: tuple[int, ...], count: int, start: int, *, dims: int) -> None:
    if len(shape) != dims or shape[-1] != 3:
        raise ValueError(f"farthest-point sampling: wanted points ({'B, ' * (dims - 2)}N, 3), got {shape}")
    total = shape[-2]
    if not 1 <= count <= total:
        raise ValueError(f"farthest-point sampling: wanted 1 to {total} of {total} points, got {count=}")
    if not 0 <= start < total:
        raise ValueError(f"farthest-point sampling: wanted start in 0..{total - 1}, got {start}")


def _span(points: np.ndarray) -> str:
    """Lowest to highest coordinate per axis, for messages."""
    seen = points[np.isfinite(points[:, :3]).all(axis=1), :3]
    if len(seen) == 0:
        return "nothing: no finite point"
    return ", ".join(f"{low:.2f}..{high:.2f}" for low, high in zip(seen.min(axis=0), seen.max(axis=0), strict=True))


def _kernel() -> ModuleType:
    """The compiled kernel, loaded at first use: importing this module must not need numba."""
    try:
        from flowpolicy.pointcloud import farthest_point
    except ImportError as error:
        raise ImportError("farthest-point sampling on the CPU needs numba: pip install numba") from error
    return farthest_point
