"""A policy made ready for one machine: recorded once, simplified, then replayed without the modules' Python."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.inference.latency import (
        LatencyReport as LatencyReport,
        example_observation as example_observation,
        measure_latency as measure_latency,
    )
    from flowpolicy.inference.prepared import PreparedPolicy as PreparedPolicy, prepare as prepare

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "latency": ["LatencyReport", "example_observation", "measure_latency"],
        "prepared": ["PreparedPolicy", "prepare"],
    },
)
