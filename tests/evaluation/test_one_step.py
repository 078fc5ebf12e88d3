"""One step against many: which arm it is held against, what counts as beaten, ratios."""

import pytest

from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import Comparison, conclude
from flowpolicy.results.one_step import format_one_step, one_against_many


def arm(name: str, num_steps: int, successes: int, p50: float | None, *, task: str = "a", n: int = 50) -> ArmResult:
    """The first `successes` of n seeds succeed."""
    rows = [
        {
            "task": "t",
            "task_id": task,
            "checkpoint": name,
            "num_steps": num_steps,
            "seed": seed,
            "failure": "",
            "success_once": seed < successes,
        }
        for seed in range(n)
    ]
    return ArmResult(name, rows, {"latency_ms": {"p50": p50, "p95": p50, "p99": p50}} if p50 else {})


def contest(task: str, strong: int, weak: int, *, p50: float | None = 1.0) -> Comparison:
    """Two one-step arms against flow matching at 16 and diffusion at 8 steps; one with 2 steps, which is neither."""
    return conclude(
        [
            arm("strong", 1, strong, p50, task=task),
            arm("weak", 1, weak, 2.0, task=task),
            arm("two", 2, 50, 1.5, task=task),
            arm("flow", 16, 40, 12.0, task=task),
            arm("ddim", 8, 40, 9.0, task=task),
        ]
    )


def test_each_one_step_arm_is_held_against_the_best_multi_step_arm_of_a_task() -> None:
    strong, weak = one_against_many([contest("a", 42, 20), contest("b", 39, 35)])
    assert strong.name == "strong" and strong.beaten == [] and strong.difference == pytest.approx(0.01)
    assert strong.evaluations == 8 and strong.speed == pytest.approx(9.0)  # ddim: as good as flow, with fewer steps
    assert weak.name == "weak" and weak.speed == pytest.approx(4.5) and weak.difference == pytest.approx(-0.25)
    assert weak.beaten == ["a (0.40 against 0.80, p < 0.0001)"]  # on b five seeds of fifty say too little (p = 0.0625)
    assert strong.nearest == "b (0.78 against 0.80, p = 1.00 before correction)"
    assert weak.nearest == "b (0.70 against 0.80, p = 0.062 before correction)"
    text = format_one_step([strong, weak])
    assert (
        "strong: not beaten on any task, nearest to it on b (0.78 against 0.80, p = 1.00 before correction); mean "
        "difference +0.010, 8 times fewer evaluations, 9.0 times as fast" in text
    )
    assert "weak: beaten on a (0.40 against 0.80, p < 0.0001); mean difference -0.250" in text


def test_having_picked_the_best_of_two_doubles_p() -> None:
    strong = {n: next(one for one in one_against_many([contest("a", n, 9)]) if one.name == "strong") for n in (34, 33)}
    assert strong[34].beaten == []  # six seeds lost and none won: p = 0.03125, twice that
    assert strong[33].beaten == ["a (0.66 against 0.80, p = 0.031)"]


def test_without_both_kinds_there_is_nothing_to_say() -> None:
    assert one_against_many([]) == []
    assert one_against_many([conclude([arm("x", 1, 3, 1.0), arm("y", 2, 3, 1.0)])]) == []
    assert one_against_many([conclude([arm("x", 4, 3, 1.0), arm("y", 2, 3, 1.0)])]) == []
    whole = contest("a", 41, 20)
    assert [
        one.name for one in one_against_many([whole, conclude([arm("weak", 1, 9, 1.0), arm("flow", 16, 9, 2.0)])])
    ] == ["weak"]  # the other has not run the second task


def test_a_missing_latency_leaves_the_speed_open() -> None:
    strong = one_against_many([contest("a", 41, 20), contest("b", 41, 20, p50=None)])[0]
    assert strong.speed is None and "fast" not in format_one_step([strong])
