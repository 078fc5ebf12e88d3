"""Every pair of arms tested, corrected for their number, with the verdict in plain words and as a gate."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from flowpolicy.statistics.power import MOST, episodes_paired, episodes_unpaired
from flowpolicy.statistics.sequential import anytime_p
from flowpolicy.statistics.tests import (
    PairedCounts,
    barnard,
    difference_interval,
    holm,
    mcnemar_exact,
    phi,
    wilson_interval,
)

Outcomes = Mapping[int, bool]
"""Seed -> success, in the order in which the episodes were run."""

Requirement = Literal["better", "no_worse", "not_beaten"]
SEEN_GAP = 0.05  # the gap to plan for where two arms succeeded equally often
MCNEMAR, BARNARD, SEQUENTIAL = "exact McNemar", "Barnard", "sequential bet"


@final
@dataclass(frozen=True)
class Pair:
    """Two arms held against each other.

    Args:
        name_a: Of arm A.
        name_b: Of arm B.
        a: (successes, n); with `counts` on their common seeds only.
        b: As `a`.
        counts: None where they ran seeds of their own.
        low: 95 % interval of success of A minus success of B, for a number of episodes fixed in advance.
        high: As `low`.
        test: "exact McNemar", "Barnard" or "sequential bet".
        p: Of equal success.
        p_holm: The same, corrected for all pairs tested together, `family` of them.
        family: How many pairs were tested together.
        winner: The better arm's name where p_holm <= alpha, else "".
        further: Episodes of each arm still needed to find a gap like this one, or SEEN_GAP where there is none; None
            with a winner, and where it would take more than MOST.
        sentence: The verdict in words.
    """

    name_a: str
    name_b: str
    a: tuple[int, int]
    b: tuple[int, int]
    counts: PairedCounts | None
    low: float
    high: float
    test: str
    p: float
    p_holm: float = 1.0
    family: int = 1
    winner: str = ""
    further: int | None = None
    sentence: str = ""

    @property
    def difference(self) -> float:
        """Success rate of A minus that of B."""
        return self.a[0] / self.a[1] - self.b[0] / self.b[1]


class Gate(NamedTuple):
    """Whether the first arm met the requirement, and what decided it.

    Args:
        passed: Whether it met the requirement.
        reason: The pair that decided, in words.
    """

    passed: bool
    reason: str


def compare_pairs(
    outcomes: Mapping[str, Outcomes],
    *,
    alpha: float = 0.05,
    sequential: bool = False,
    of: Collection[str] | None = None,
) -> list[Pair]:
    """All pairs of the arms in `outcomes` (by name), tested; without the words, which `explain` adds.

    Pairs that share at least half of the smaller arm's seeds are held against each other on those (exact McNemar),
    others as independent samples (Barnard). sequential: the test that may be looked at after every episode instead.

    Args:
        outcomes: Name of the arm -> seed -> success.
        alpha: Chance of calling equal arms different, over all pairs.
        sequential: Whether looks at the results were many, see `anytime_p`.
        of: Return only the pairs with one of these arms; all are tested and corrected for all the same.

    Raises:
        ValueError: For fewer than two arms, an arm without episodes, or sequential arms without common seeds.
    """
    if len(outcomes) < 2 or not all(outcomes.values()):
        raise ValueError(f"wanted at least two arms with episodes, got { {n: len(o) for n, o in outcomes.items()} }")
    names = [pair for pair in combinations(outcomes, 2)]
    shown = [i for i, (a, b) in enumerate(names) if of is None or a in of or b in of]
    chosen, seeds = set(shown), {tuple(one) for one in outcomes.values()}
    known = _mcnemar_of_all(list(outcomes.values())) if len(seeds) == 1 and not sequential else None
    tested = {
        i: _test(a, b, outcomes[a], outcomes[b], sequential=sequential)
        for i, (a, b) in enumerate(names)
        if known is None or i in chosen
    }
    corrected = holm(known.tolist() if known is not None else [pair.p for pair in tested.values()])
    return [
        replace(
            tested[i],
            p_holm=corrected[i],
            family=len(names),
            winner=_better(tested[i]) if corrected[i] <= alpha else "",
        )
        for i in shown
    ]


def _mcnemar_of_all(outcomes: Sequence[Outcomes]) -> NDArray[np.float64]:
    """p of every pair, in the order of `combinations`, of arms that ran the same seeds in the same order."""
    won = np.array([list(one.values()) for one in outcomes], np.float64)  # (arms, seeds)
    both, alone = won @ won.T, won.sum(axis=1)
    i, j = np.triu_indices(len(won), k=1)
    only_a, only_b = alone[i] - both[i, j], alone[j] - both[i, j]
    return np.minimum(1.0, 2.0 * bdtr(np.minimum(only_a, only_b), only_a + only_b, 0.5))


def explain(pairs: Sequence[Pair], *, alpha: float = 0.05) -> list[Pair]:
    """The same pairs with `further` and `sentence`: who won, or how many episodes more it would take to know.

    Args:
        pairs: As `compare_pairs` returns them.
        alpha: Chance of calling equal arms different, over all pairs.
    """
    explained = []
    for pair in pairs:
        total = None if pair.winner else _episodes_needed(pair, alpha / pair.family)
        further = None if total is None else max(1, total - min(pair.a[1], pair.b[1]))
        whole = replace(pair, further=further)
        explained.append(replace(whole, sentence=_sentence(whole, pair.family)))
    return explained


def judge(pairs: Sequence[Pair], first: str, requirement: Requirement, *, margin: float = 0.05) -> Gate:
    """Hold the arm `first` against all others.

    better: it beats every one. not_beaten: none beats it, which little data cannot show otherwise. no_worse: the
    intervals of the difference all end above -margin, so that it may be trusted to be no worse by that.

    Args:
        pairs: As `compare_pairs` returns them.
        first: Name of the arm that is judged.
        requirement: "better", "no_worse" or "not_beaten".
        margin: By how much an arm may be worse and still count as no worse.

    Raises:
        ValueError: As `check_requirement` does.
    """
    check_requirement(requirement, margin=margin)
    own = [pair for pair in pairs if pair.name_a == first]  # the first of all arms, so never the second of a pair
    if requirement == "better":
        bad = [pair.name_b for pair in own if pair.winner != first]
        said = "beats every other arm" if not bad else f"does not beat {', '.join(bad)}"
    elif requirement == "not_beaten":
        bad = [pair.name_b for pair in own if pair.winner == pair.name_b]
        said = "is beaten by no arm" if not bad else f"is beaten by {', '.join(bad)}"
    else:
        bad = [pair.name_b for pair in own if pair.low <= -margin]
        lowest = min(own, key=lambda pair: pair.low)
        said = f"may be worse than {', '.join(bad)} by more than" if bad else "is not worse than any by more than"
        said += f" {margin:g} (lowest end of an interval: {lowest.low:+.3f}, against {lowest.name_b})"
    return Gate(not bad, f"require={requirement}: {'passed' if not bad else 'failed'}, {first} {said}")


def check_requirement(requirement: str, *, margin: float) -> None:
    """Raise ValueError for another requirement than `judge` knows, or a margin outside [0, 1).

    Args:
        requirement: See `judge`.
        margin: See `judge`.
    """
    if requirement not in get_args(Requirement):
        raise ValueError(f"require must be one of {', '.join(get_args(Requirement))}, got {requirement!r}")
    if not 0.0 <= margin < 1.0:
        raise ValueError(f"margin must be in [0, 1), a difference of success rates, got {margin}")


def p_text(p: float) -> str:
    """ "p = 0.031", with as many digits as say something.

    Args:
        p: 0 to 1.
    """
    digits = 4 if p < 0.01 else 3 if p < 0.1995 else 2
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.{digits}f}"


def _better(pair: Pair) -> str:
    return pair.name_a if pair.difference > 0 else pair.name_b if pair.difference < 0 else ""


def _test(name_a: str, name_b: str, a: Outcomes, b: Outcomes, *, sequential: bool) -> Pair:
    common = [seed for seed in a if seed in b]
    paired = bool(common) and 2 * len(common) >= min(len(a), len(b))
    if not paired:
        if sequential:
            raise ValueError(f"{name_a} and {name_b} have run too few common seeds for a sequential test")
        of_a, of_b = (sum(a.values()), len(a)), (sum(b.values()), len(b))
        low, high = difference_interval(of_a, of_b)
        return Pair(name_a, name_b, of_a, of_b, None, low, high, BARNARD, barnard(of_a, of_b))
    both = sum(a[seed] and b[seed] for seed in common)
    only_a = sum(a[seed] and not b[seed] for seed in common)
    only_b = sum(b[seed] and not a[seed] for seed in common)
    counts = PairedCounts(both, only_a, only_b, len(common) - both - only_a - only_b)
    of_a, of_b = (both + only_a, len(common)), (both + only_b, len(common))
    low, high = difference_interval(of_a, of_b, correlation=phi(counts))
    if sequential:
        p, test = anytime_p([a[seed] for seed in common], [b[seed] for seed in common]), SEQUENTIAL
    else:
        p, test = mcnemar_exact(only_a, only_b), MCNEMAR
    return Pair(name_a, name_b, of_a, of_b, counts, low, high, test, p)


def _episodes_needed(pair: Pair, alpha: float) -> int | None:
    """Episodes of each arm in all, to find the gap that was seen with the test that was used; None above MOST."""
    if pair.counts is None:
        rate_a, rate_b = (successes / n for successes, n in (pair.a, pair.b))
        if rate_a == rate_b:
            rate_b = rate_a - SEEN_GAP if rate_a >= SEEN_GAP else rate_a + SEEN_GAP
        return episodes_unpaired(rate_a, rate_b, alpha=alpha)
    only_a, only_b = (count / sum(pair.counts) for count in (pair.counts.only_a, pair.counts.only_b))
    if only_a == only_b:  # as many discordant seeds as there were, shifted towards one arm
        only_a, only_b = max(only_a, SEEN_GAP / 2) + SEEN_GAP / 2, max(only_b, SEEN_GAP / 2) - SEEN_GAP / 2
        only_a = min(only_a, 1.0 - only_b)
    return episodes_paired(only_a, only_b, alpha=alpha, sequential=pair.test == SEQUENTIAL)


def _sentence(pair: Pair, pairs: int) -> str:
    rate_a, rate_b = (f"{successes / n:.3f}" for successes, n in (pair.a, pair.b))
    n = pair.a[1]
    seeds = f"{n} common seeds" if pair.counts else f"{n} and {pair.b[1]} seeds of their own"
    p = p_text(pair.p_holm) + (f", corrected for {pairs} pairs" if pairs > 1 else "")
    if pair.winner == pair.name_a:
        return f"{pair.name_a} beats {pair.name_b}: {rate_a} against {rate_b} on {seeds} ({p})."
    if pair.winner:
        return f"{pair.name_b} beats {pair.name_a}: {rate_b} against {rate_a} on {seeds} ({p})."
    gap = "a gap of this size" if pair.difference else f"a gap of {SEEN_GAP:g}"
    more = f"About {pair.further:,} further" if pair.further else f"More than {MOST:,}"
    return (
        f"No difference found between {pair.name_a} and {pair.name_b}: {rate_a} against {rate_b} on {seeds} ({p}). "
        f"{more} episodes of each would be needed to separate {gap}."
    )


def success_rate(flags: Sequence[bool]) -> dict[str, float]:
    """success_once, ci_low, ci_high (Wilson, 95 %), for a JSON file.

    Args:
        flags: Success of each episode.
    """
    low, high = wilson_interval(sum(flags), len(flags))
    return {"success_once": sum(flags) / len(flags), "ci_low": low, "ci_high": high}


def paired_outcomes(arms: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Facts for a JSON file.

    Args:
        arms: Two names -> success on each seed, in the same order.

    Returns:
        name -> see `success_rate`; only_<name>: seeds on which the other one failed; mcnemar_p.

    Source: McNemar 1947, in its exact two-sided form.
    """
    (name_a, a), (name_b, b) = arms.items()
    pairs = list(zip(a, b, strict=True))
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    return {name: success_rate(flags) for name, flags in arms.items()} | {
        f"only_{name_a}": only_a,
        f"only_{name_b}": only_b,
        "mcnemar_p": mcnemar_exact(only_a, only_b),
    }
