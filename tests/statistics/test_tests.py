"""Intervals and exact tests against published numbers, against hand-counted coins and by simulation."""

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st
from scipy.stats import binom, binomtest, fisher_exact

from flowpolicy.statistics.tests import (
    PairedCounts,
    barnard,
    difference_interval,
    holm,
    mcnemar_exact,
    phi,
    wilson_interval,
)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_stays_inside_0_and_1(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1.0
    assert low < high


@given(st.integers(0, 50))
def test_swapping_success_and_failure_mirrors_the_interval(successes):
    low, high = wilson_interval(successes, 50)
    mirrored = wilson_interval(50 - successes, 50)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(20, 0.699, 0.972), (50, 0.786, 0.957), (100, 0.826, 0.945), (200, 0.851, 0.934), (500, 0.871, 0.923)],
)
def test_the_interval_at_90_percent_success(n, low, high):
    assert wilson_interval(round(0.9 * n), n) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_the_interval_is_the_one_of_scipy(counts, confidence):
    theirs = binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert wilson_interval(*counts, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_more_confidence_is_a_wider_interval():
    narrow, wide = wilson_interval(9, 10, confidence=0.8), wilson_interval(9, 10, confidence=0.99)
    assert wide[0] < narrow[0] and narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_impossible_counts_are_refused(successes, n, confidence):
    with pytest.raises(ValueError, match="wilson_interval"):
        wilson_interval(successes, n, confidence)


# ---- differences


@pytest.mark.parametrize(("a", "b", "low", "high"), [((56, 70), (48, 80), 0.0524, 0.3339)])
def test_the_interval_of_a_difference_of_two_samples_is_newcombes(a, b, low, high):
    assert difference_interval(a, b) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [(PairedCounts(20, 12, 2, 16), 0.0562, 0.3292), (PairedCounts(36, 12, 2, 0), 0.0569, 0.3404)],
)
def test_the_interval_of_a_paired_difference_is_newcombes(counts, low, high):
    a, b = counts.both + counts.only_a, counts.both + counts.only_b
    n = sum(counts)
    assert difference_interval((a, n), (b, n), correlation=phi(counts)) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_the_paired_interval_holds_the_true_difference_in_95_percent_of_comparisons(shared):
    """Rates 0.9 and 0.75, 100 seeds; `shared` of them decided by one common draw."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(2000):
        draws = rng.random((2, 100))
        draws[1] = np.where(rng.random(100) < shared, draws[0], draws[1])
        a, b = draws[0] < 0.9, draws[1] < 0.75
        counts = PairedCounts(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))
        low, high = difference_interval((int(a.sum()), 100), (int(b.sum()), 100), correlation=phi(counts))
        held += low <= 0.15 <= high
    assert binom.ppf(0.001, 2000, 0.95) <= held


def test_outcomes_that_agree_narrow_the_interval_and_outcomes_that_disagree_widen_it():
    def width(counts: PairedCounts) -> float:
        a, b = counts.both + counts.only_a, counts.both + counts.only_b
        low, high = difference_interval((a, sum(counts)), (b, sum(counts)), correlation=phi(counts))
        return high - low

    together, apart, chance = PairedCounts(60, 10, 0, 30), PairedCounts(30, 40, 30, 0), PairedCounts(42, 28, 18, 12)
    assert width(together) < width(chance) < width(apart)
    assert phi(PairedCounts(70, 30, 0, 0)) == 0.0  # B always succeeds: there is no correlation to speak of


# ---- tests


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 2**5),  # all five coins the same way, either way
        (1, 7, 2 * (1 + 8) / 2**8),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar_is_the_fair_coin_counted_by_hand(only_a, only_b, p):
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p, rel=1e-12)
    assert mcnemar_exact(only_b, only_a) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test_of_scipy(only_a, only_b):
    assume(only_a + only_b > 0)
    assert mcnemar_exact(only_a, only_b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)


def test_barnard_on_45_and_38_of_50_where_fisher_says_more():
    assert barnard((45, 50), (38, 50)) == pytest.approx(0.068, abs=5e-4)
    assert fisher_exact([[45, 38], [5, 12]]).pvalue == pytest.approx(0.108, abs=5e-4)
    assert barnard((38, 50), (45, 50)) == pytest.approx(barnard((45, 50), (38, 50)), rel=1e-3)


@pytest.mark.parametrize("both", [0, 20])
def test_barnard_knows_nothing_where_all_or_none_succeeded(both):
    assert barnard((both, 20), (both, 20)) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x, then 1 x but not below 2 x 0.03
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12
    assert [q for _, q in sorted(zip(p_values, corrected, strict=True))] == sorted(corrected)


@pytest.mark.parametrize(
    "call", [lambda: mcnemar_exact(-1, 2), lambda: barnard((1, 0), (1, 2)), lambda: difference_interval((3, 2), (1, 2))]
)
def test_impossible_pairs_are_refused(call):
    with pytest.raises(ValueError, match="wanted"):
        call()
