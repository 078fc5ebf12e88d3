"""A thousand arms in one table: every pair is tested, the work and the page stay those of a table."""

import json

import numpy as np
import pytest

from flowpolicy.report.sweep_page import format_sweep, sweep_page
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import ALL_PAIRS, conclude, format_comparison
from flowpolicy.statistics import power
from flowpolicy.statistics.pairs import compare_pairs
from tests.cli.test_report import tags


def arms(count: int, *, seeds: int = 20) -> list[ArmResult]:
    """Success rates from 0.3 to 0.9; every fourth arm is a multi-step one."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        facts = {"task": "toy", "task_id": "two-ways", "checkpoint": f"c{i}", "num_steps": (1, 1, 2, 8)[i % 4]}
        won = rng.random(seeds) < 0.3 + 0.6 * i / count
        rows = [
            facts | {"seed": seed, "success_once": bool(one), "failure": "", "episode_len": 5}
            for seed, one in enumerate(won)
        ]
        found.append(ArmResult(f"arm {i}", rows, {"latency_ms": {"p50": 1.0 + i % 7, "p95": 9.0, "p99": 9.0}}))
    return found


def test_a_thousand_arms_ask_few_questions_and_fill_a_page_of_a_table(monkeypatch: pytest.MonkeyPatch):
    asked = []
    real = power._found_by_mcnemar
    monkeypatch.setattr(power, "_found_by_mcnemar", lambda *a: asked.append(a) or real(*a))
    found = conclude(arms(1000))
    assert found.tested == 499_500 and len(found.pairs) <= 3 * 999
    assert len({(a[:1] + a[2:]) for a in asked}) <= 21 * 22  # distinct counts of 20 seeds; never one per pair
    assert "All 499,500 pairs were tested" in format_comparison(found)
    html = sweep_page([found])
    tags(html)
    assert len(html) < 8_000_000 and len(json.dumps(found.to_dict())) < 4_000_000
    assert "All 499,500 pairs were tested, and every p is corrected for all of them" in html
    assert len(format_sweep([found]).splitlines()) == 1 + 1000 + 1 + 500  # the one-step arms against the best of many


def test_what_is_shown_of_many_arms_is_what_a_table_of_all_pairs_says():
    found = arms(ALL_PAIRS + 14)
    outcomes = {arm.name: arm.outcomes() for arm in found}
    every = {(pair.name_a, pair.name_b): pair for pair in compare_pairs(outcomes)}
    shown = conclude(found).pairs
    assert len(every) == 114 * 113 // 2 > len(shown) > 113
    best = max(found, key=lambda arm: (arm.successes, -arm.num_steps)).name
    for pair in shown:
        same = every[pair.name_a, pair.name_b]
        assert (pair.p, pair.p_holm, pair.winner, pair.counts) == (same.p, same.p_holm, same.winner, same.counts)
    names = {frozenset((pair.name_a, pair.name_b)) for pair in shown}
    for arm in found:
        assert arm.name == best or frozenset((arm.name, best)) in names
        assert arm.name == "arm 0" or frozenset((arm.name, "arm 0")) in names


def test_arms_with_seeds_of_their_own_are_tested_one_by_one_with_the_same_result():
    """The short cut for common seeds and the general way agree."""
    outcomes = {arm.name: arm.outcomes() for arm in arms(6, seeds=30)}
    fast = compare_pairs(outcomes)
    late = dict(outcomes) | {"late": {seed + 1000: True for seed in range(30)}}
    slow = [pair for pair in compare_pairs(late) if "late" not in (pair.name_a, pair.name_b)]
    assert [pair.p for pair in fast] == [pair.p for pair in slow]
    assert [pair.counts for pair in fast] == [pair.counts for pair in slow]
