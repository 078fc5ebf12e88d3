"""Intervals and exact tests of success rates: pure numbers, no files and no policies."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.statistics.pairs import (
        Gate as Gate,
        Pair as Pair,
        compare_pairs as compare_pairs,
        judge as judge,
        paired_outcomes as paired_outcomes,
        success_rate as success_rate,
    )
    from flowpolicy.statistics.power import episodes_paired as episodes_paired, episodes_unpaired as episodes_unpaired
    from flowpolicy.statistics.sequential import anytime_p as anytime_p
    from flowpolicy.statistics.tests import (
        PairedCounts as PairedCounts,
        barnard as barnard,
        difference_interval as difference_interval,
        holm as holm,
        mcnemar_exact as mcnemar_exact,
        phi as phi,
        wilson_interval as wilson_interval,
    )

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "pairs": [
            "Gate",
            "Pair",
            "compare_pairs",
            "judge",
            "paired_outcomes",
            "success_rate",
        ],
        "power": ["episodes_paired", "episodes_unpaired"],
        "sequential": ["anytime_p"],
        "tests": [
            "PairedCounts",
            "barnard",
            "difference_interval",
            "holm",
            "mcnemar_exact",
            "phi",
            "wilson_interval",
        ],
    },
)
