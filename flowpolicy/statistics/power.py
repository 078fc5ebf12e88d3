"""How many episodes a comparison needs: the chance that its own test finds a difference of a given size."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, gammaln, ndtri, xlog1py, xlogy

from flowpolicy.statistics.sequential import log_stake

POWER = 0.8  # the usual promise: a difference of that size is found in four of five comparisons
MOST = 20_000  # episodes per arm; what needs more is not found by rolling out
_REMEMBERED = 65_536  # a table of arms asks the same few hundred questions again and again


def episodes_unpaired(rate_a: float, rate_b: float, *, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Episodes per arm, on seeds of their own, to tell success probabilities apart by a two-sided test.

    None above MOST. Normal approximation with the pooled variance, rounded up; for 0.8 against 0.9: 199.

    Args:
        rate_a: True success probability of A.
        rate_b: True success probability of B.
        alpha: Chance of calling equal arms different, over all pairs.
        power: Chance of finding the difference.

    Raises:
        ValueError: When the rates are equal or not in [0, 1].
    """
    _check(rate_a, rate_b, alpha=alpha, power=power)
    mean, gap = (rate_a + rate_b) / 2, abs(rate_a - rate_b)
    apart = rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
    need = -float(ndtri(alpha / 2)) * math.sqrt(2 * mean * (1 - mean)) + float(ndtri(power)) * math.sqrt(apart)
    n = math.ceil(max(1.0, (need / gap) ** 2))
    return n if n <= MOST else None


def episodes_paired(
    only_a: float, only_b: float, *, alpha: float = 0.05, power: float = POWER, sequential: bool = False
) -> int | None:
    """Episodes per arm on common seeds for the exact McNemar test, or for the sequential one by that many episodes.

    None above MOST. The chance is exact, not an approximation.

    Args:
        only_a: Probability that A alone or B alone solves a seed; the gap between the arms is their difference.
        only_b: As `only_a`.
        alpha: Chance of calling equal arms different, over all pairs.
        power: Chance of finding the difference.
        sequential: Whether looks at the results were many, see `anytime_p`.

    Raises:
        ValueError: When there is no gap or they are no probabilities of exclusive events.
    """
    _check(only_a, only_b, alpha=alpha, power=power)
    either = only_a + only_b
    if either > 1.0 + 1e-9:
        raise ValueError(f"only_a and only_b exclude each other, got {only_a} + {only_b} > 1")
    return _episodes(max(only_a, only_b) / either, min(either, 1.0), alpha, power, sequential)


@lru_cache(_REMEMBERED)
def _episodes(theta: float, either: float, alpha: float, power: float, sequential: bool) -> int | None:
    """theta: chance that a discordant seed favours the better arm.   either: chance that a seed is discordant."""
    found: Callable[..., NDArray[np.float64]] = _found_by_stake if sequential else _found_by_mcnemar

    def chance(n: int) -> float:
        d = np.arange(min(n + 1, len(shares)))
        return float(_binomial(d, n, either) @ shares[: len(d)])

    high = 8
    while True:  # twice as many until it is enough
        shares = found(theta, _most(high, either), alpha)
        if chance(high) >= power:
            break
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= power else (middle, high)
    return high


def _most(n: int, either: float) -> int:
    """More discordant seeds of n than that: practically never (seven standard deviations)."""
    return min(n, math.ceil(n * either + 7.0 * math.sqrt(n * either * (1.0 - either)) + 7.0))


def _binomial(d: NDArray[np.integer], n: int, p: float) -> NDArray[np.float64]:
    """Probability of d successes of n, each with probability p."""
    ways = gammaln(n + 1.0) - gammaln(d + 1.0) - gammaln(n - d + 1.0)
    return np.exp(ways + xlogy(d, p) + xlog1py(n - d, -p))


def _check(first: float, second: float, *, alpha: float, power: float) -> None:
    if not (0.0 <= first <= 1.0 and 0.0 <= second <= 1.0) or first == second:
        raise ValueError(f"wanted two different probabilities, got {first} and {second}")
    if not (0.0 < alpha < 1.0 and 0.0 < power < 1.0):
        raise ValueError(f"alpha and power must lie in (0, 1), got {alpha} and {power}")


def _found_by_mcnemar(theta: float, most: int, alpha: float) -> NDArray[np.float64]:
    """Chance that d discordant seeds reject, (most + 1,) for d = 0 ... most; each favours the better arm by theta."""
    d = np.arange(most + 1)
    limit = _limits(1 << most.bit_length(), alpha)[: most + 1]
    some = np.maximum(limit, 0)
    return np.where(limit < 0, 0.0, bdtr(some, d, theta) + bdtrc(d - some - 1, d, theta))


@lru_cache(64)
def _limits(most: int, alpha: float) -> NDArray[np.int64]:
    """The smaller count of d discordant seeds must not be above this to reject, (most + 1,); -1: nothing rejects."""
    d = np.arange(most + 1)
    limit = np.maximum(np.floor(d / 2 + float(ndtri(alpha / 2)) * np.sqrt(d) / 2), -1.0)  # near it
    while (more := (limit < d) & (bdtr(np.minimum(limit + 1, d), d, 0.5) <= alpha / 2)).any():
        limit += more
    while (less := (limit >= 0) & (bdtr(np.maximum(limit, 0), d, 0.5) > alpha / 2)).any():
        limit -= less
    return limit.astype(np.int64)


def _found_by_stake(theta: float, most: int, alpha: float) -> NDArray[np.float64]:
    """Chance that the stake has reached 1/alpha by d discordant seeds, (most + 1,): what is left walks on."""
    found = np.zeros(most + 1)
    left, low = np.ones(1), 0  # chance of `low + i` seeds for the better arm without having got there
    for d in range(1, most + 1):
        step = np.zeros(len(left) + 1)
        step[:-1] = left * (1.0 - theta)
        step[1:] += left * theta
        wins = low + np.arange(len(step))
        over = log_stake(wins, d - wins) >= -math.log(alpha)
        found[d] = found[d - 1] + step[over].sum()
        inside = np.flatnonzero(~over)  # one stretch around d / 2
        left, low = step[inside[0] : inside[-1] + 1], low + int(inside[0])
    return found
