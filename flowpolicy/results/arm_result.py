"""What an arm of a comparison has shown: its episodes, and what is known about its speed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from flowpolicy.results.episodes import left_to_solve
from flowpolicy.results.seen_seeds import remarks
from flowpolicy.statistics.tests import wilson_interval


@final
@dataclass(frozen=True)
class ArmResult:
    """The episodes of an arm that count, in seed order, and what is known about its speed.

    Args:
        name: Of the arm.
        rows: All; `n`, `successes` and `outcomes` are of those that were not solved at reset.
        summary: As in summary.json; {} where there is none.
    """

    name: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def counted(self) -> list[Mapping[str, Any]]:
        """The rows that say something about the policy."""
        return left_to_solve(self.rows)

    @property
    def remarks(self) -> list[str]:
        """What must be said beside its numbers."""
        solved = {"solved_at_reset": len(self.rows) - self.n, "num_steps": self.num_steps}
        return remarks(solved | {"seen_seeds": self.summary.get("seen_seeds")}, self.name)

    @property
    def num_steps(self) -> int:
        """Of its sampler; jumps are as many network evaluations."""
        return self.rows[0]["num_steps"]

    @property
    def sampler(self) -> str:
        """Label of its sampler; older lines are of jumps and do not say so."""
        return self.rows[0].get("sampler", "jump")

    @property
    def evaluations(self) -> int:
        """Network evaluations per chunk."""
        return self.rows[0].get("evaluations", self.num_steps)

    @property
    def n(self) -> int:
        """Episodes."""
        return len(self.counted)

    @property
    def successes(self) -> int:
        """Episodes with success at any time."""
        return sum(row["success_once"] for row in self.counted)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson_interval(self.successes, self.n)

    @property
    def latency_ms(self) -> dict[str, float] | None:
        """p50, p95, p99 of one prediction, where it was measured."""
        return self.summary.get("latency_ms")

    @property
    def failures(self) -> str:
        """ "3 timeout, 1 collision"."""
        reasons = Counter(row["failure"] for row in self.counted if row["failure"])
        return ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "–"

    def outcomes(self) -> dict[int, bool]:
        """Seed -> success."""
        return {row["seed"]: bool(row["success_once"]) for row in self.counted}
