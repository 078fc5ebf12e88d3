"""Two policies on the same seeds: success with intervals, where they differ, and the exact test of that."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowpolicy.evaluation.statistics import mcnemar_exact, wilson_interval


def success_rate(flags: Sequence[bool]) -> dict[str, float]:
    """success_once, ci_low, ci_high (Wilson, 95 %), for a JSON file.   flags: success of each episode."""
    low, high = wilson_interval(sum(flags), len(flags))
    return {"success_once": sum(flags) / len(flags), "ci_low": low, "ci_high": high}


def paired_outcomes(arms: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Facts for a JSON file.   arms: two names -> success on each seed, in the same order.

    Returns name -> see `success_rate`; only_<name>: seeds on which the other one failed; mcnemar_p.
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
