"""Intervals and exact tests for success counts; every number a comparison states comes from here."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, ndtri
from scipy.stats import barnard_exact


class PairedCounts(NamedTuple):
    """Seeds that both arms ran: both succeeded, only one of them did, neither did.

    Args:
        both: Seeds on which both succeeded.
        only_a: Seeds on which only A did.
        only_b: Seeds on which only B did.
        neither: Seeds on which neither did.
    """

    both: int
    only_a: int
    only_b: int
    neither: int


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of the success probability behind `successes` out of `n` episodes.

    Unlike the normal approximation it never leaves [0, 1] and does not collapse at 0 or n successes.

    Args:
        successes: 0 to n.
        n: Episodes, at least 1.
        confidence: Between 0 and 1.

    Raises:
        ValueError: When n < 1, successes is not in [0, n] or confidence not in (0, 1).

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson_interval: wanted 0 <= successes <= n and n >= 1, got successes={successes}, n={n}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"wilson_interval: confidence must lie in (0, 1), got {confidence}; 0.95 is 95 %")
    z2 = float(ndtri((1.0 + confidence) / 2)) ** 2
    rate, scale = successes / n, 1.0 / (1.0 + z2 / n)
    centre = (rate + z2 / (2 * n)) * scale
    half = math.sqrt(z2 * (rate * (1.0 - rate) / n + z2 / (4 * n**2))) * scale
    # at 0 and n successes the ends are 0 and 1, which rounding may miss by a hair
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def difference_interval(
    a: tuple[int, int], b: tuple[int, int], *, confidence: float = 0.95, correlation: float = 0.0
) -> tuple[float, float]:
    """Interval (low, high) of success probability of A minus that of B, from the Wilson interval of each.

    Args:
        a: (successes, n).
        b: As `a`.
        confidence: Between 0 and 1.
        correlation: Of the outcomes on the same seed (`phi`); 0 for episodes of their own.

    Raises:
        ValueError: As `wilson_interval` does.

    Source: Newcombe 1998, Statistics in Medicine 17: method 10 on page 873 (two samples) and on page 2635 (pairs).
    """
    (rate_a, low_a, high_a), (rate_b, low_b, high_b) = (
        (successes / n, *wilson_interval(successes, n, confidence)) for successes, n in (a, b)
    )

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2.0 * correlation * one * other + other**2))

    difference = rate_a - rate_b
    return difference - reach(rate_a - low_a, high_b - rate_b), difference + reach(high_a - rate_a, rate_b - low_b)


def phi(counts: PairedCounts) -> float:
    """Correlation of paired outcomes for `difference_interval`: phi, a positive one corrected for continuity.

    0 where one arm always or never succeeds.

    Args:
        counts: Of the common seeds.
    """
    both, only_a, only_b, neither = counts
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if not margins:
        return 0.0
    cross = both * neither - only_a * only_b
    return (max(cross - sum(counts) / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value of equal success on common seeds: each seed that one arm alone solved is a fair coin.

    Args:
        only_a: Seeds that A alone or B alone solved; the others say nothing about the difference. 1 without any.
        only_b: As `only_a`.

    Source: McNemar 1947, Psychometrika 12; exact binomial form.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"mcnemar_exact: wanted counts of at least 0, got {only_a} and {only_b}")
    return min(1.0, 2.0 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def barnard(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Two-sided p-value of equal success when the arms ran seeds of their own.

    Args:
        a: (successes, n). Exact, and more powerful than Fisher's, which pretends that the total was fixed.
        b: As `a`.

    Source: Barnard 1945, Nature 156; scipy.stats.barnard_exact, pooled statistic.
    """
    if any(not 0 <= successes <= n or n < 1 for successes, n in (a, b)):
        raise ValueError(f"barnard: wanted 0 <= successes <= n and n >= 1, got {a} and {b}")
    table = [[a[0], b[0]], [a[1] - a[0], b[1] - b[0]]]
    if not all(map(sum, table)):
        return 1.0  # all or none succeeded: nothing to tell apart, and scipy answers nan
    return _barnard_exact(*table[0], *table[1])


@lru_cache(65_536)
def _barnard_exact(a: int, b: int, not_a: int, not_b: int) -> float:
    """A table of arms has few different counts, and scipy takes 10 ms for each."""
    return float(barnard_exact([[a, b], [not_a, not_b]]).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for testing all of them: each may be held against the same level, in the order given.

    The chance that any true hypothesis is rejected stays below that level, however the tests depend on each other.

    Args:
        p_values: One per hypothesis.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(p), 0, -1) * p[order]))
    return corrected.tolist()
