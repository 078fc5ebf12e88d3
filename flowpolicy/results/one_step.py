"""One network evaluation against many: is any one-step arm no worse than the best multi-step one, on every task?"""

from collections.abc import Sequence
from typing import NamedTuple

from flowpolicy.results.comparison import MANY, Comparison, most_successful
from flowpolicy.statistics.pairs import p_text


class OneStep(NamedTuple):
    """A one-step arm that has run every task, held on each against the multi-step arm with the most successes there.

    Args:
        name: Of the one-step arm.
        difference: Success minus the multi-step arm's, mean over tasks.
        beaten: "push-v3 (0.60 against 0.82, p = 0.003)", per task on which it is worse at p < alpha. p is that of the
            pair's own test times the number of multi-step arms on the task (Bonferroni): the best of many equal ones,
            picked on the same seeds, is better than it is. It is not corrected for the number of one-step arms: not to
            be beaten is harder so.
        nearest: Where it comes nearest to that: "b (0.70 against 0.80, p = 0.062 before correction)", "" where it is
            behind on no task. What the test does not rule out is a difference all the same.
        evaluations: The least ratio over the tasks of network evaluations, and of the medians of one prediction (None
            where a latency is missing).
        speed: As `evaluations`.
    """

    name: str
    difference: float
    beaten: list[str]
    nearest: str
    evaluations: float
    speed: float | None


def one_against_many(comparisons: Sequence[Comparison]) -> list[OneStep]:
    """Least often beaten first; empty unless every task has an arm with one step and one with MANY or more.

    Args:
        comparisons: One per task.
    """
    best = [most_successful(one.arms, least_steps=MANY) for one in comparisons]
    names = [{arm.name for arm in one.arms if arm.evaluations == 1} for one in comparisons]
    arms = [{arm.name: arm for arm in one.arms} for one in comparisons]
    pairs = [{frozenset((pair.name_a, pair.name_b)): pair for pair in one.pairs} for one in comparisons]
    multi = [sum(arm.evaluations >= MANY for arm in one.arms) for one in comparisons]
    found = []
    for name in sorted(set.intersection(*names)) if names and all(best) else ():
        differences, beaten, evaluations, speeds = [], [], [], []
        behind: dict[str, float] = {}  # what to say -> p
        for i, (one, many) in enumerate(zip(comparisons, best, strict=True)):
            assert many is not None
            arm, pair = arms[i][name], pairs[i][frozenset((name, many.name))]
            rate, other = arm.successes / arm.n, many.successes / many.n
            differences.append(rate - other)
            p = min(1.0, pair.p * multi[i])
            rates = f"{one.task_id} ({rate:.2f} against {other:.2f}"
            if rate < other and p < one.alpha:
                beaten.append(f"{rates}, {p_text(p)})")
            elif rate < other:
                behind[f"{rates}, {p_text(pair.p)} before correction)"] = pair.p
            evaluations.append(many.evaluations)
            speeds.append(
                many.latency_ms["p50"] / arm.latency_ms["p50"] if many.latency_ms and arm.latency_ms else None
            )
        known = [speed for speed in speeds if speed is not None]
        found.append(
            OneStep(
                name,
                sum(differences) / len(differences),
                beaten,
                min(behind, key=behind.__getitem__, default=""),
                min(evaluations),
                min(known) if len(known) == len(speeds) else None,
            )
        )
    return sorted(found, key=lambda one: (len(one.beaten), -one.difference))


def format_one_step(found: Sequence[OneStep]) -> str:
    """A line per one-step arm.

    Args:
        found: As `one_against_many` returns it.
    """
    lines = ["one step against the multi-step arm with the most successes on each task (p corrected for that choice):"]
    for one in found:
        said = f"beaten on {', '.join(one.beaten)}" if one.beaten else "not beaten on any task"
        said += f", nearest to it on {one.nearest}" if one.nearest and not one.beaten else ""
        speed = f", {one.speed:.1f} times as fast" if one.speed else ""
        lines.append(
            f"  {one.name}: {said}; mean difference {one.difference:+.3f}, "
            f"{one.evaluations:g} times fewer evaluations{speed}"
        )
    return "\n".join(lines)
