"""Two policies on the same seeds: success with intervals, where they differ, and the exact test of that."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowpolicy.evaluation.statistics import mcnemar_exact, wilson_interval


def paired_outcomes(arms: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Facts for a JSON file.   arms: two names -> success on each seed, in the same order.

    Returns name -> success_once, ci_low, ci_high (95 %); only_<name>: seeds on which the other one failed; mcnemar_p.
    Source: McNemar 1947, in its exact two-sided form.
    """
    (name_a, a), (name_b, b) = arms.items()
    pairs = list(zip(a, b, strict=True))
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    found: dict[str, Any] = {}
    for name, flags in arms.items():
        low, high = wilson_interval(sum(flags), len(flags))
        found[name] = {"success_once": sum(flags) / len(flags), "ci_low": low, "ci_high": high}
    return found | {
        f"only_{name_a}": only_a, f"only_{name_b}": only_b, "mcnemar_p": mcnemar_exact(only_a, only_b)
    }  # fmt: skip
