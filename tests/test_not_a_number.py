"""NaN passes every `x < bound`, and max(error, nan) drops it: a setting that is no number is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest

from flowpolicy.heads.alpha_flow import AlphaFlowHead
from flowpolicy.heads.drift import DriftHead
from flowpolicy.heads.terms.direction import DirectionAlignment
from flowpolicy.heads.terms.guidance import Guidance
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.rollout.chunk_env import Reward
from flowpolicy.trainers.finetune_settings import FinetuneSettings
from flowpolicy.trainers.ppo import LoopSettings

NAN, INF = float("nan"), float("inf")


def net() -> ResidualMLP:
    return ResidualMLP(action_dim=2, horizon=4, cond_dim=3, width=8, depth=1)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (Guidance, {"cond_dim": 3, "omega": NAN}, "omega"),
        (Guidance, {"cond_dim": 3, "omega": INF}, "omega"),
        (Guidance, {"cond_dim": 3, "kappa": NAN}, "kappa"),
        (Guidance, {"cond_dim": 3, "kappa": -INF}, "kappa"),
        (DirectionAlignment, {"weight": NAN}, "weight"),
        (DirectionAlignment, {"weight": INF}, "weight"),
        (lambda **words: AlphaFlowHead(net(), **words), {"guidance_weight": NAN}, "guidance_weight"),
        (lambda **words: DriftHead(net(), **words), {"temperatures": (0.02, NAN)}, "temperatures"),
        (Reward, {"env": NAN}, "`env` of the reward"),
        (Reward, {"success": INF}, "`success` of the reward"),
        (LoopSettings, {"iterations": NAN}, "`iterations`"),
        (LoopSettings, {"eval_every": INF}, "`eval_every`"),
        (FinetuneSettings, {"min_success": NAN}, "`min_success`"),
        (FinetuneSettings, {"min_success": 3}, "`min_success`"),
    ],
)
def test_a_setting_that_is_no_number_is_refused(make: Callable[..., Any], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**settings)
