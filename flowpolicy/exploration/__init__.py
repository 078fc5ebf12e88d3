"""Exploration: stochastic ways to walk from noise to an action chunk, with exact densities."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.exploration.base import (
        Chain as Chain,
        ChainScore as ChainScore,
        Exploration as Exploration,
        chain_log_prob as chain_log_prob,
        sample_chain as sample_chain,
    )
    from flowpolicy.exploration.flow_noise import FlowNoise as FlowNoise
    from flowpolicy.exploration.flow_sde import FlowSDE as FlowSDE
    from flowpolicy.exploration.langevin import Langevin as Langevin
    from flowpolicy.exploration.renoise import Renoise as Renoise

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "base": ["Chain", "ChainScore", "Exploration", "chain_log_prob", "sample_chain"],
        "flow_noise": ["FlowNoise"],
        "flow_sde": ["FlowSDE"],
        "langevin": ["Langevin"],
        "renoise": ["Renoise"],
    },
)
