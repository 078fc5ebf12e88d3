"""The statistic every success rate carries: an interval."""

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
