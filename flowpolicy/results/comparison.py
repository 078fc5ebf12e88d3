"""What a comparison found: the arms, every pair's verdict, the gate; as data and as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from flowpolicy.provenance import versions
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.statistics.pairs import Gate, Pair, Requirement, compare_pairs, explain, judge

MANY = 4  # network evaluations from which an arm counts as a multi-step one
ALL_PAIRS = 100  # arms; of more, `conclude` shows some pairs only: 1,000 arms have 499,500


class Failure(NamedTuple):
    """An arm that could not be run to its end. error: one line.

    Args:
        name: Of the arm.
        task_id: The task's name in its family.
        error: One line.
    """

    name: str
    task_id: str
    error: str


@final
@dataclass(frozen=True)
class Comparison:
    """What was found, as in compare.json.

    Args:
        task: Family of the task.
        task_id: The task's name in its family.
        arms: What was compared.
        pairs: All of them, or of more than ALL_PAIRS arms those with the first one, with the one that succeeded most
            often, or with the multi-step one that did; `tested` pairs are corrected for.
        alpha: Chance of calling equal arms different, over all pairs.
        sequential: Whether looks at the results were many, see `anytime_p`.
        looks: Numbers of episodes at which a test for one look was made in this folder; empty when sequential.
        gate: Whether the first arm met what was required; None where nothing was.
    """

    task: str
    task_id: str
    arms: list[ArmResult]
    pairs: list[Pair]
    alpha: float
    sequential: bool
    looks: list[int]
    gate: Gate | None = None

    @property
    def tested(self) -> int:
        """Number of pairs that were tested together."""
        return len(self.arms) * (len(self.arms) - 1) // 2

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready containers."""
        arms = []
        for arm in self.arms:
            low, high = arm.interval
            arms.append(
                {
                    "name": arm.name,
                    "checkpoint": arm.rows[0]["checkpoint"],
                    "num_steps": arm.num_steps,
                    "sampler": arm.sampler,
                    "evaluations": arm.evaluations,
                    "n": arm.n,
                    "success_once": arm.successes / arm.n,
                    "ci_low": low,
                    "ci_high": high,
                    "latency_ms": arm.latency_ms,
                    "policy_params": arm.summary.get("policy_params"),
                    "solved_at_reset": len(arm.rows) - arm.n,
                    "seen_seeds": arm.summary.get("seen_seeds") or {},
                }
            )
        pairs = [
            {
                "a": pair.name_a,
                "b": pair.name_b,
                "successes": [pair.a[0], pair.b[0]],
                "n": [pair.a[1], pair.b[1]],
                "counts": pair.counts and pair.counts._asdict(),
                "difference": pair.difference,
                "ci_low": pair.low,
                "ci_high": pair.high,
                "test": pair.test,
                "p": pair.p,
                "p_holm": pair.p_holm,
                "winner": pair.winner or None,
                "further_episodes": pair.further,
                "sentence": pair.sentence,
            }
            for pair in self.pairs
        ]
        facts = {"task": self.task, "task_id": self.task_id, "alpha": self.alpha, "sequential": self.sequential}
        return facts | {
            "looks": self.looks,
            "arms": arms,
            "pairs": pairs,
            "pairs_tested": self.tested,
            "gate": self.gate and self.gate._asdict(),
            "versions": versions(),
        }


def conclude(
    results: Sequence[ArmResult],
    *,
    alpha: float = 0.05,
    sequential: bool = False,
    require: Requirement | None = None,
    margin: float = 0.05,
    looks: Sequence[int] = (),
) -> Comparison:
    """Test the pairs of the episodes there are, and hold the first arm to `require`.

    Args:
        results: The arms' episodes.
        alpha: Chance of calling equal arms different, over all pairs.
        sequential: Whether looks at the results were many, see `anytime_p`.
        require: What the first arm must be, see `judge`; None is nothing.
        margin: See `judge`.
        looks: Numbers of episodes tested so far in this folder, these included.
    """
    outcomes = {result.name: result.outcomes() for result in results}
    tested = compare_pairs(outcomes, alpha=alpha, sequential=sequential, of=_shown(results)) if len(results) > 1 else []
    pairs = explain(tested, alpha=alpha)
    gate = judge(pairs, results[0].name, require, margin=margin) if require else None
    first = results[0].rows[0]
    return Comparison(first["task"], first["task_id"], list(results), pairs, alpha, sequential, list(looks), gate)


def most_successful(arms: Sequence[ArmResult], *, least_steps: int = 1) -> ArmResult | None:
    """Of those with `least_steps` or more the one that succeeded most often, of equal ones the one with the fewest.

    Args:
        arms: To choose from.
        least_steps: Fewest network evaluations that count.
    """
    some = [arm for arm in arms if arm.evaluations >= least_steps]
    return max(some, key=lambda arm: (arm.successes / arm.n, -arm.evaluations), default=None)


def _shown(arms: Sequence[ArmResult]) -> set[str] | None:
    """Names of the arms whose pairs are shown; None: all."""
    if len(arms) <= ALL_PAIRS:
        return None
    chosen = [arms[0], most_successful(arms), most_successful(arms, least_steps=MANY)]
    return {arm.name for arm in chosen if arm is not None}


def omitted(comparison: Comparison) -> str:
    """What is not shown, where there are too many pairs; else empty.

    Args:
        comparison: Arms on one task, with their tests.
    """
    if len(comparison.pairs) == comparison.tested:
        return ""
    return (
        f"All {comparison.tested:,} pairs were tested, and every p is corrected for all of them; shown are those "
        "with the first arm, the most successful one, and the most successful multi-step one."
    )


def peeking(comparison: Comparison) -> str:
    """A warning where a test for one look was made several times; else empty.

    Args:
        comparison: Arms on one task, with their tests.
    """
    if len(comparison.looks) < 2:
        return ""
    numbers = ", ".join(map(str, comparison.looks[:-1]))
    return (
        f"This folder was tested before, at {numbers} episodes, by a test for one look: differences are called "
        f"in more than {comparison.alpha:.0%} of equal pairs. `sequential=True` may look at any time."
    )


def format_comparison(comparison: Comparison) -> str:
    """Arms with intervals and latency, a sentence per pair, the gate; for a terminal.

    Args:
        comparison: Arms on one task, with their tests.
    """
    width = max([3, *(len(arm.name) for arm in comparison.arms)])
    lines = [f"{'arm':<{width}}  steps     n  success  95 % interval   p50 ms"]
    for arm in comparison.arms:
        (low, high), latency = arm.interval, arm.latency_ms
        p50 = f"{latency['p50']:.3f}" if latency else "–"
        lines.append(
            f"{arm.name:<{width}}{arm.num_steps:7d}{arm.n:6d}{arm.successes / arm.n:9.3f}  "
            f"{low:.3f} - {high:.3f}{p50:>9}"
        )
    lines += [remark for arm in comparison.arms for remark in arm.remarks]
    lines += [pair.sentence for pair in comparison.pairs]
    lines += [said] if (said := omitted(comparison)) else []
    lines += [warning] if (warning := peeking(comparison)) else []
    return "\n".join([*lines, *([comparison.gate.reason] if comparison.gate else [])])
