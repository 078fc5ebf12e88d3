"""The two statistics every result carries: an interval for a success rate and percentiles for a time."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of the success probability behind `successes` out of `n` episodes.

    Unlike the normal approximation it never leaves [0, 1] and does not collapse at 0 or n successes.
    Raises ValueError when n < 1, successes is not in [0, n] or confidence not in (0, 1).
    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson_interval: wanted 0 <= successes <= n and n >= 1, got successes={successes}, n={n}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"wilson_interval: confidence must lie in (0, 1), got {confidence}; 0.95 is 95 %")
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max of `values`, in their own unit. Raises ValueError when there are none."""
    if len(values) == 0:
        raise ValueError("percentiles: wanted at least one value, got none")
    p50, p95, p99 = np.percentile(np.asarray(values, dtype=np.float64), [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(max(values))}
