"""Heads: what is the velocity, what is the loss. A new method is one file here and one yaml."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.heads.alpha_flow import AlphaFlowHead as AlphaFlowHead
    from flowpolicy.heads.base import Head as Head
    from flowpolicy.heads.consistency import ConsistencyHead as ConsistencyHead
    from flowpolicy.heads.diffusion import DiffusionHead as DiffusionHead
    from flowpolicy.heads.drift import DriftHead as DriftHead
    from flowpolicy.heads.flow_matching import FlowMatchingHead as FlowMatchingHead
    from flowpolicy.heads.imf_dual import DualMeanFlowHead as DualMeanFlowHead
    from flowpolicy.heads.iterative_regression import IterativeRegressionHead as IterativeRegressionHead
    from flowpolicy.heads.meanflow import MeanFlowHead as MeanFlowHead
    from flowpolicy.heads.regression import RegressionHead as RegressionHead
    from flowpolicy.heads.shortcut import ShortcutHead as ShortcutHead

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "alpha_flow": ["AlphaFlowHead"],
        "base": ["Head"],
        "consistency": ["ConsistencyHead"],
        "diffusion": ["DiffusionHead"],
        "drift": ["DriftHead"],
        "flow_matching": ["FlowMatchingHead"],
        "imf_dual": ["DualMeanFlowHead"],
        "iterative_regression": ["IterativeRegressionHead"],
        "meanflow": ["MeanFlowHead"],
        "regression": ["RegressionHead"],
        "shortcut": ["ShortcutHead"],
    },
)
