"""Numbers of episodes: published ones, the exact chance counted another way, and what does not fit."""

import numpy as np
import pytest
from scipy.stats import binom

from flowpolicy.statistics.power import MOST, episodes_paired, episodes_unpaired
from flowpolicy.statistics.sequential import stakes
from flowpolicy.statistics.tests import mcnemar_exact


@pytest.mark.parametrize(("a", "b", "n"), [(0.5, 0.6, 388), (0.8, 0.85, 906), (0.8, 0.9, 199), (0.9, 0.95, 435)])
def test_unpaired_numbers_are_the_textbooks_rounded_up(a, b, n):
    assert episodes_unpaired(a, b) == episodes_unpaired(b, a) == n


def chance(n: int, only_a: float, only_b: float) -> float:
    """Power of the exact McNemar test over n seeds, summed over every table."""
    either = only_a + only_b
    total = 0.0
    for d in range(n + 1):
        k = np.arange(d + 1)
        rejects = np.array([mcnemar_exact(int(i), d - int(i)) <= 0.05 for i in k])
        total += binom.pmf(d, n, either) * binom.pmf(k, d, only_a / either)[rejects].sum()
    return total


@pytest.mark.parametrize(("only_a", "only_b"), [(0.27, 0.07), (0.4, 0.1), (0.2, 0.0)])
def test_the_paired_number_is_the_first_with_a_chance_of_80_percent(only_a, only_b):
    n = episodes_paired(only_a, only_b)
    assert n is not None and n == episodes_paired(only_b, only_a)
    assert chance(n, only_a, only_b) >= 0.8 > chance(n - 1, only_a, only_b)


def test_the_sequential_number_agrees_with_simulated_bets():
    n = episodes_paired(0.27, 0.07, sequential=True)
    assert n is not None
    draws = np.random.default_rng(0).random((4000, n))
    found = [stakes(row < 0.27, row >= 0.93).max() >= np.log(20) for row in draws]
    assert binom.ppf(0.001, 4000, 0.8) <= sum(found) <= binom.ppf(0.999, 4000, 0.82)


def test_common_seeds_pay_where_outcomes_correlate():
    """0.9 against 0.8: independent outcomes need as many as without pairing, those that fail together far fewer."""
    independent, together = episodes_paired(0.9 * 0.2, 0.1 * 0.8), episodes_paired(0.11, 0.01)
    unpaired = episodes_unpaired(0.9, 0.8)
    assert independent is not None and together is not None and unpaired is not None
    assert together < unpaired / 2 and independent < 1.1 * unpaired


def test_more_certainty_costs_episodes_and_a_tiny_gap_too_many():
    usual, strict, sure = (episodes_paired(0.2, 0.1, **changes) for changes in ({}, {"alpha": 0.01}, {"power": 0.95}))
    assert usual and strict and sure and usual < strict and usual < sure
    assert episodes_paired(0.101, 0.1) is None and episodes_unpaired(0.5, 0.5001) is None
    assert (episodes_paired(0.06, 0.05) or 0) < MOST


@pytest.mark.parametrize(
    "call",
    [
        lambda: episodes_unpaired(0.5, 0.5),
        lambda: episodes_paired(0.2, 0.2),
        lambda: episodes_paired(1.2, 0.1),
        lambda: episodes_unpaired(0.5, 0.6, alpha=0.0),
        lambda: episodes_paired(0.8, 0.7),
    ],
)
def test_impossible_rates_are_refused(call):
    with pytest.raises(ValueError, match="wanted|must lie|exclude"):
        call()
