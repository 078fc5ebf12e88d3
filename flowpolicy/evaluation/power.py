"""How many episodes a comparison needs: the chance that its own test finds a difference of a given size."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from flowpolicy.evaluation.sequential import log_stake

POWER = 0.8  # the usual promise: a difference of that size is found in four of five comparisons
MOST = 20_000  # episodes per arm; what needs more is not found by rolling out


def episodes_unpaired(rate_a: float, rate_b: float, *, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Episodes per arm, on seeds of their own, to tell success probabilities apart by a two-sided test.

    None above MOST. Normal approximation with the pooled variance, rounded up; for 0.8 against 0.9: 199.
    Raises ValueError when the rates are equal or not in [0, 1].
    """
    _check(rate_a, rate_b, alpha=alpha, power=power)
    mean, gap = (rate_a + rate_b) / 2, abs(rate_a - rate_b)
    apart = rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
    need = norm.isf(alpha / 2) * math.sqrt(2 * mean * (1 - mean)) + norm.ppf(power) * math.sqrt(apart)
    n = math.ceil(max(1.0, (need / gap) ** 2))
    return n if n <= MOST else None


def episodes_paired(only_a: float, only_b: float, *, alpha: float = 0.05, power: float = POWER,
                    sequential: bool = False) -> int | None:  # fmt: skip
    """Episodes per arm on common seeds for the exact McNemar test, or for the sequential one by that many episodes.

    only_a, only_b: probability that A alone or B alone solves a seed; the gap between the arms is their difference.
    None above MOST. The chance is exact, not an approximation.
    Raises ValueError when there is no gap or they are no probabilities of exclusive events.
    """
    _check(only_a, only_b, alpha=alpha, power=power)
    either = only_a + only_b
    if either > 1.0 + 1e-9:
        raise ValueError(f"only_a and only_b exclude each other, got {only_a} + {only_b} > 1")
    theta, either = max(only_a, only_b) / either, min(either, 1.0)
    found: Callable[..., NDArray[np.float64]] = _found_by_stake if sequential else _found_by_mcnemar

    def chance(n: int) -> float:
        d = np.arange(min(n + 1, len(shares)))
        return float(binom.pmf(d, n, either) @ shares[: len(d)])

    high = 8
    while True:  # twice as many until it is enough
        shares = found(theta, int(binom.isf(1e-6, high, either)), alpha)  # more discordant seeds than that: never
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


def _check(first: float, second: float, *, alpha: float, power: float) -> None:
    if not (0.0 <= first <= 1.0 and 0.0 <= second <= 1.0) or first == second:
        raise ValueError(f"wanted two different probabilities, got {first} and {second}")
    if not (0.0 < alpha < 1.0 and 0.0 < power < 1.0):
        raise ValueError(f"alpha and power must lie in (0, 1), got {alpha} and {power}")


def _found_by_mcnemar(theta: float, most: int, alpha: float) -> NDArray[np.float64]:
    """Chance that d discordant seeds reject, (most + 1,) for d = 0 ... most; each favours the better arm by theta."""
    d = np.arange(most + 1)
    limit = binom.ppf(alpha / 2, d, 0.5)  # the smaller count must not be above this
    limit = np.where(binom.cdf(limit, d, 0.5) <= alpha / 2, limit, limit - 1)
    return np.where(limit < 0, 0.0, binom.cdf(limit, d, theta) + binom.sf(d - limit - 1, d, theta))


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
