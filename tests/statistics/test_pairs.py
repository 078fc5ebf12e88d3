"""What `compare` says: how often it is wrong, how often it finds what is there, and its words."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import binom

from flowpolicy.statistics.pairs import Pair, compare_pairs, explain, judge
from flowpolicy.statistics.power import episodes_paired, episodes_unpaired
from flowpolicy.statistics.tests import PairedCounts, mcnemar_exact

RUNS = 2000
MOST_WRONG = int(binom.ppf(0.999, RUNS, 0.05))  # 5 %, and what 2,000 draws may add to it once in a thousand times
LEAST_FOUND = int(binom.ppf(0.001, RUNS, 0.80))


def draw(rng: np.random.Generator, rates: list[float], n: int, *, shared: float = 0.0) -> dict[str, dict[int, bool]]:
    """Outcomes of one comparison. shared: share of the seeds whose difficulty decides for all arms together."""
    luck = rng.random((len(rates), n))
    luck = np.where(rng.random(n) < shared, luck[0], luck)
    return {f"arm {i}": {100_000 + s: bool(luck[i, s] < rate) for s in range(n)} for i, rate in enumerate(rates)}


def arms(counts: PairedCounts) -> dict[str, dict[int, bool]]:
    """Outcomes of A and B with these counts."""
    cells = [(True, True), (True, False), (False, True), (False, False)]
    seeds = [cell for cell, n in zip(cells, counts, strict=True) for _ in range(n)]
    return {"A": {i: a for i, (a, _) in enumerate(seeds)}, "B": {i: b for i, (_, b) in enumerate(seeds)}}


def said_different(outcomes: Mapping[str, Mapping[int, bool]], *, sequential: bool) -> bool:
    return any(pair.winner for pair in compare_pairs(outcomes, sequential=sequential))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("rates", "n", "shared"), [([0.5] * 2, 200, 0.0), ([0.9] * 2, 100, 0.5), ([0.8] * 4, 60, 0.0)])
def test_equal_arms_are_called_different_in_at_most_5_percent(rates, n, shared, sequential):
    """Sequentially that is with a look after every episode: the p-value is the smallest of all looks."""
    rng = np.random.default_rng(n)
    wrong = sum(said_different(draw(rng, rates, n, shared=shared), sequential=sequential) for _ in range(RUNS))
    assert wrong <= MOST_WRONG, wrong / RUNS


def test_looking_again_and_again_with_the_fixed_test_is_wrong_far_more_often():
    """What the sequential test is for; here only every tenth episode is looked after."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(RUNS):
        a, b = rng.random((2, 200)) < 0.5
        ahead, behind = np.cumsum(a & ~b)[9::10], np.cumsum(~a & b)[9::10]
        wrong += any(mcnemar_exact(int(x), int(y)) <= 0.05 for x, y in zip(ahead, behind, strict=True))
    assert wrong > 2 * MOST_WRONG


@pytest.mark.parametrize(("sequential", "asked"), [(False, 71), (True, 102)])
def test_90_against_70_percent_is_found_with_the_episodes_that_are_asked_for(sequential, asked):
    n = episodes_paired(0.9 * 0.3, 0.1 * 0.7, sequential=sequential)
    assert n == asked
    rng = np.random.default_rng(2)
    found = sum(
        any(pair.winner == "arm 0" for pair in compare_pairs(draw(rng, [0.9, 0.7], n), sequential=sequential))
        for _ in range(RUNS)
    )
    assert found >= LEAST_FOUND, found / RUNS


def test_the_episodes_that_an_undecided_comparison_asks_for_decide_it():
    """13 and 10 of 15 solved, as 0.87 and 0.67: what it asks for finds such arms in 80 %."""
    (pair,) = explain(compare_pairs(arms(PairedCounts(9, 4, 1, 1))))
    assert not pair.winner and pair.further is not None
    total = 15 + pair.further
    assert f"About {pair.further} further episodes of each would be needed" in pair.sentence
    rng, found = np.random.default_rng(3), 0
    for _ in range(RUNS):
        counts = rng.multinomial(total, [9 / 15, 4 / 15, 1 / 15, 1 / 15])
        found += mcnemar_exact(int(counts[1]), int(counts[2])) <= 0.05
    assert found >= LEAST_FOUND, found / RUNS


# ---- words


def one(counts: PairedCounts, *, sequential: bool = False) -> Pair:
    (pair,) = explain(compare_pairs(arms(counts), sequential=sequential))
    return pair


def test_a_winner_is_named_whichever_arm_it_is():
    counts = PairedCounts(60, 30, 5, 5)
    assert one(counts).sentence == "A beats B: 0.900 against 0.650 on 100 common seeds (p < 0.0001)."
    turned = one(PairedCounts(60, 5, 30, 5))
    assert turned.sentence == "B beats A: 0.900 against 0.650 on 100 common seeds (p < 0.0001)."
    assert turned.winner == "B" and turned.further is None and turned.difference == pytest.approx(-0.25)
    assert one(counts).p == mcnemar_exact(30, 5)


def test_an_undecided_pair_says_how_many_episodes_would_decide_it():
    pair = one(PairedCounts(40, 8, 4, 8))
    total = episodes_paired(8 / 60, 4 / 60)
    assert total is not None and pair.further == total - 60
    assert pair.sentence == (
        f"No difference found between A and B: 0.800 against 0.733 on 60 common seeds (p = 0.39). About {total - 60} "
        "further episodes of each would be needed to separate a gap of this size."
    )


@pytest.mark.parametrize("counts", [PairedCounts(50, 0, 0, 0), PairedCounts(30, 10, 10, 0), PairedCounts(0, 25, 25, 0)])
def test_arms_that_succeed_equally_often_are_told_about_a_gap_of_5_percent(counts):
    assert "p = 1.00" in one(counts).sentence and "needed to separate a gap of 0.05." in one(counts).sentence


def test_a_gap_that_no_rollouts_separate_is_called_that():
    assert "More than 20,000 episodes of each" in one(PairedCounts(300, 101, 100, 0)).sentence


def test_arms_with_seeds_of_their_own_are_compared_by_barnard():
    a = {seed: seed < 45 for seed in range(50)}
    b = {1000 + seed: seed < 38 for seed in range(50)}
    (pair,) = explain(compare_pairs({"A": a, "B": b}))
    assert pair.test == "Barnard" and pair.p == pytest.approx(0.068, abs=5e-4) and pair.counts is None
    assert "0.900 against 0.760 on 50 and 50 seeds of their own (p = 0.068)" in pair.sentence
    assert pair.further == (episodes_unpaired(0.9, 0.76) or 0) - 50 == 62


def test_where_half_of_the_seeds_are_common_only_they_count():
    a = {seed: True for seed in range(100)}
    b = {seed: False for seed in range(50, 150)}
    (pair,) = compare_pairs({"A": a, "B": b})
    assert pair.a == (50, 50) and pair.b == (0, 50) and pair.counts == PairedCounts(0, 50, 0, 0)


def test_several_pairs_are_corrected_and_say_so():
    rng = np.random.default_rng(5)
    pairs = explain(compare_pairs(draw(rng, [0.9, 0.7, 0.8], 80)))
    assert [(pair.name_a, pair.name_b) for pair in pairs] == [
        ("arm 0", "arm 1"),
        ("arm 0", "arm 2"),
        ("arm 1", "arm 2"),
    ]
    assert all(pair.p <= pair.p_holm <= 3 * pair.p for pair in pairs)
    assert all("corrected for 3 pairs" in pair.sentence for pair in pairs)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="at least two arms"):
        compare_pairs({"A": {1: True}})
    with pytest.raises(ValueError, match="at least two arms with episodes"):
        compare_pairs({"A": {1: True}, "B": {}})
    with pytest.raises(ValueError, match="too few common seeds"):
        compare_pairs({"A": {1: True}, "B": {2: True}}, sequential=True)


# ---- as a gate


@pytest.mark.parametrize(
    ("counts", "better", "not_beaten", "no_worse"),
    [
        (PairedCounts(60, 30, 5, 5), True, True, True),
        (PairedCounts(60, 5, 30, 5), False, False, False),
        (PairedCounts(18, 1, 1, 0), False, True, False),  # 20 episodes show neither a difference nor that there is none
        (PairedCounts(380, 4, 4, 12), False, True, True),  # 400 alike do
    ],
)
def test_the_gate_holds_the_first_arm_against_the_others(counts, better, not_beaten, no_worse):
    pairs = compare_pairs(arms(counts))
    found = {name: judge(pairs, "A", name) for name in ("better", "not_beaten", "no_worse")}
    assert {name: gate.passed for name, gate in found.items()} == {
        "better": better,
        "not_beaten": not_beaten,
        "no_worse": no_worse,
    }
    for name, gate in found.items():
        assert gate.reason.startswith(f"require={name}: {'passed' if gate.passed else 'failed'}, A ")


def test_the_margin_of_the_gate_counts():
    pairs = compare_pairs(arms(PairedCounts(80, 5, 5, 10)))
    assert judge(pairs, "A", "no_worse", margin=0.1).passed and not judge(pairs, "A", "no_worse", margin=0.02).passed
    with pytest.raises(ValueError, match="margin must be"):
        judge(pairs, "A", "no_worse", margin=5)
    with pytest.raises(ValueError, match="require must be one of better, no_worse, not_beaten, got 'worse'"):
        judge(pairs, "A", "worse")  # type: ignore[arg-type]
