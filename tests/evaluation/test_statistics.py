"""Wilson intervals against published numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowpolicy.evaluation.statistics import wilson_interval


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


def test_more_confidence_is_a_wider_interval():
    narrow, wide = wilson_interval(9, 10, confidence=0.8), wilson_interval(9, 10, confidence=0.99)
    assert wide[0] < narrow[0] and narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_impossible_counts_are_refused(successes, n, confidence):
    with pytest.raises(ValueError, match="wilson_interval"):
        wilson_interval(successes, n, confidence)
