"""The bet on discordant seeds: a fair game, and a p-value that only ever falls."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from flowpolicy.statistics.sequential import PRIOR, anytime_p, log_stake, stakes

OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_game_is_fair(only_a, only_b):
    """The mean of the two next stakes is the stake: nothing is won or lost on average by a fair coin."""
    after = [float(log_stake(np.array(only_a + 1), np.array(only_b))), float(log_stake(np.array(only_a), only_b + 1))]
    now = float(log_stake(np.array(only_a), np.array(only_b)))
    assert math.exp(after[0] - now) + math.exp(after[1] - now) == pytest.approx(2.0, rel=1e-9)


def test_the_first_stakes_by_hand():
    """Beta(2, 2) bets 1:1, then 3/5 on the winner: stakes 1, then 2 x 3/5 or 2 x 2/5."""
    assert PRIOR == 2.0
    assert np.exp(log_stake(np.array([0, 1, 2, 1]), np.array([0, 0, 0, 1]))) == pytest.approx([1.0, 1.0, 1.2, 0.8])
    assert np.exp(stakes([True, True, False], [False, False, True])) == pytest.approx([1.0, 1.2, 1.2 * 2 * 2 / 6])


@given(OUTCOMES)
def test_it_treats_both_arms_alike(outcomes):
    a, b = [x for x, _ in outcomes], [y for _, y in outcomes]
    assert stakes(a, b) == pytest.approx(stakes(b, a))


@given(OUTCOMES)
def test_the_last_p_value_is_the_smallest_of_all_looks(outcomes):
    """So one call after the last episode answers for a look after every one."""
    a, b = [x for x, _ in outcomes], [y for _, y in outcomes]
    looks = [anytime_p(a[:n], b[:n]) for n in range(len(outcomes) + 1)]
    assert looks[0] == 1.0 and min(looks) == looks[-1]
    assert all(later <= earlier for earlier, later in zip(looks, looks[1:], strict=False))


def test_seeds_on_which_both_agree_change_nothing():
    assert anytime_p([True, False] * 500, [True, False] * 500) == 1.0


def test_lists_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        stakes([True], [True, False])
