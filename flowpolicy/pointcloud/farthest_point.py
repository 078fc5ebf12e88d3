"""Farthest-point sampling, exact, compiled: boxes of neighbouring points are skipped where nothing can change."""

import numba
import numpy as np

_BOX_POINTS = 128  # at most, per box; 64 to 256 take the same 3 ms at 8192 -> 1024, 16 twice as long


# No fast-math but these two: finite squares hold no NaN and no -0, which is what lets LLVM vectorise the maximum.
# Contraction into fused multiply-adds stays off, so distances are the ones torch computes, bit for bit.
@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def sample(points: np.ndarray, count: int, start: int) -> np.ndarray:
    """Indices (count,) int64 into finite points (N, 3) float32; ties go to the lowest index.

    Points are sorted into boxes. A new sample cannot lower any distance inside a box that is farther from it than the
    box's largest distance so far; float32 rounding is monotone, so the test holds for the rounded numbers as well.

    Args:
        points: (N, 3) or more columns, metres.
        count: How many points to keep.
        start: Index of the first sample.
    """
    total = len(points)
    levels = 0
    while total > (_BOX_POINTS << levels):
        levels += 1
    boxes = 1 << levels
    order = _order(points, levels)
    x, y, z = np.empty(total, np.float32), np.empty(total, np.float32), np.empty(total, np.float32)
    for i in range(total):
        x[i], y[i], z[i] = points[order[i], 0], points[order[i], 1], points[order[i], 2]
    low, high = _bounds(x, y, z, boxes)
    distance = np.full(total, np.float32(np.inf))
    largest = np.full(boxes, np.float32(np.inf))  # of the distances in each box
    chosen = np.empty(count, np.int64)
    chosen[0] = start
    for k in range(1, count):
        px, py, pz = points[chosen[k - 1], 0], points[chosen[k - 1], 1], points[chosen[k - 1], 2]
        farthest = np.float32(-1.0)
        for box in range(boxes):
            dx = max(low[0, box] - px, px - high[0, box], np.float32(0.0))
            dy = max(low[1, box] - py, py - high[1, box], np.float32(0.0))
            dz = max(low[2, box] - pz, pz - high[2, box], np.float32(0.0))
            if (dx * dx + dy * dy) + dz * dz < largest[box]:
                first, last = (box * total) >> levels, ((box + 1) * total) >> levels
                largest[box] = _lower(x[first:last], y[first:last], z[first:last], distance[first:last], px, py, pz)
            farthest = max(farthest, largest[box])
        chosen[k] = total
        for box in range(boxes):
            if largest[box] == farthest:
                for i in range((box * total) >> levels, ((box + 1) * total) >> levels):
                    if distance[i] == farthest and order[i] < chosen[k]:
                        chosen[k] = order[i]
    return chosen


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _lower(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, distance: np.ndarray, px: np.float32, py: np.float32, pz: np.float32
) -> np.float32:
    """Lower each distance to that from (px, py, pz) where this is smaller; the largest one afterwards."""
    largest = np.float32(0.0)
    for i in range(len(x)):
        dx, dy, dz = x[i] - px, y[i] - py, z[i] - pz
        distance[i] = min(distance[i], (dx * dx + dy * dy) + dz * dz)
        largest = max(largest, distance[i])
    return largest


@numba.njit(cache=True, nogil=True)
def _order(points: np.ndarray, levels: int) -> np.ndarray:
    """Point indices such that 2^levels slices of equal length are boxes: halved again and again on the widest axis."""
    total = len(points)
    order = np.arange(total)
    for level in range(levels):
        for cell in range(1 << level):
            first, last = (cell * total) >> level, ((cell + 1) * total) >> level
            axis, widest = 0, np.float32(-1.0)
            for candidate in range(3):
                least = most = points[order[first], candidate]
                for i in range(first, last):
                    value = points[order[i], candidate]
                    least, most = min(least, value), max(most, value)
                if most - least > widest:
                    axis, widest = candidate, most - least
            _select(points[:, axis], order, first, last - 1, ((2 * cell + 1) * total) >> (level + 1))
    return order


@numba.njit(cache=True, nogil=True)
def _select(values: np.ndarray, order: np.ndarray, left: int, right: int, middle: int) -> None:
    """Rearrange order[left .. right] so that no value before `middle` is above one after it (Hoare's selection)."""
    while left < right:
        pivot = values[order[(left + right) >> 1]]
        i, j = left, right
        while i <= j:
            while values[order[i]] < pivot:
                i += 1
            while pivot < values[order[j]]:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i, j = i + 1, j - 1
        if middle <= j:
            right = j
        elif middle >= i:
            left = i
        else:
            return


@numba.njit(cache=True, nogil=True)
def _bounds(x: np.ndarray, y: np.ndarray, z: np.ndarray, boxes: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of each box, (3, boxes) each."""
    low, high = np.full((3, boxes), np.float32(np.inf)), np.full((3, boxes), np.float32(-np.inf))
    for box in range(boxes):
        for i in range((box * len(x)) // boxes, ((box + 1) * len(x)) // boxes):
            low[0, box], high[0, box] = min(low[0, box], x[i]), max(high[0, box], x[i])
            low[1, box], high[1, box] = min(low[1, box], y[i]), max(high[1, box], y[i])
            low[2, box], high[2, box] = min(low[2, box], z[i]), max(high[2, box], z[i])
    return low, high
