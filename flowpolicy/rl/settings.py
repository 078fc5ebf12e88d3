"""Settings of PPO, with the defaults that the measurements chose."""

import warnings
from dataclasses import dataclass
from typing import Literal, final

from flowpolicy.checks import require_number
from flowpolicy.exploration.base import require_choice
from flowpolicy.rl.bc import Kind
from flowpolicy.rl.gae import Discount

Advantage = Literal["gae", "group"]


@final
@dataclass(frozen=True)
class PPOSettings:
    """Numbers of the update.

    Args:
        advantage: "gae", with a critic; or "group", see `group_advantage`: without one, `group_size` environments from
            the same start. Every iteration then begins new episodes and learns from the first of each environment, so
            the decisions of a rollout must span one.
        group_size: Environments with the same start, for advantage="group".
        gamma: See `gae`.
        lam: As `gamma`.
        discount: As `gamma`.
        epochs: Passes over a rollout and parts of each.
        minibatches: As `epochs`.
        clip_low: Bounds of the ratio, 1 - clip_low to 1 + clip_high, on the summed log-density; the 0.01 of DPPO,
            ReinFlow and DBPO belongs to its mean, and acts like 0.3 to 1.7 here. Log ratios end at -20 and 20.
        clip_high: As `clip_low`.
        allow_large_clip: Let a clip above 0.05 meet log_prob_reduction="mean", which then hardly ever clips.
        value_clip: How far a value may move per update, in units of the scaled return; 0 is anywhere. See
            `warn_of_value_clip`.
        huber: Where the value loss turns linear; 0 is squared error (half of it).
        actor_lr: Of two AdamW without weight decay.
        critic_lr: As `actor_lr`.
        final_lr: Share of both that is left at the end (cosine).
        grad_clip: Largest gradient norm, of each.
        target_kl: The actor stops for this iteration when the estimate E[ratio - 1 - log ratio] is larger on the
            minibatch that comes next, or on all decisions after the last step; of the density itself (the sum),
            whatever log_prob_reduction. So much of the step that crossed is taken back that the estimate over all
            decisions is within; not all of it, or a learning rate whose every step crosses would teach nothing: on the
            reach task at 3e-4 success is then 1.00 instead of 0.92 (docs/lab-notes.md). 0 is never.
        entropy_weight: Of the mean entropy of a scored entry; without effect where the noise is fixed.
        bc_weight: See `bc_loss`; linear from one to the other over the iterations.
        bc_final: As `bc_weight`.
        bc_kind: As `bc_weight`.
        warmup: First iterations, in which the critic alone learns.
        guard: Skip the actor where a rollout carries no signal: rewards that are all equal, or (sparse reward) fewer
            than `min_success_episodes` successes. Normalised advantages would be the critic's error at full size,
            which took success on the toy task from 0.58 to between 0.29 and 0.71 (docs/lab-notes.md).
        min_success_episodes: See `guard`.
        scale_rewards: Divide by the running spread of the return; for dense rewards.
    """

    advantage: Advantage = "gae"
    group_size: int = 8
    gamma: float = 0.99
    lam: float = 0.95
    discount: Discount = "per_chunk"
    epochs: int = 5
    minibatches: int = 8
    clip_low: float = 0.2
    clip_high: float = 0.2
    allow_large_clip: bool = False
    value_clip: float = 0.2
    huber: float = 10.0
    actor_lr: float = 3e-5
    critic_lr: float = 5e-4
    final_lr: float = 1.0
    grad_clip: float = 1.0
    target_kl: float = 0.1
    entropy_weight: float = 0.0
    bc_weight: float = 0.0
    bc_final: float = 0.0
    bc_kind: Kind = "paired"
    warmup: int = 3
    guard: bool = True
    min_success_episodes: int = 4
    scale_rewards: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range, before anything is written."""
        require_choice("`advantage`", self.advantage, Advantage)
        require_choice("`discount`", self.discount, Discount)
        require_choice("`bc_kind`", self.bc_kind, Kind)
        least = {"epochs": 1, "minibatches": 1, "group_size": 2, "warmup": 0, "min_success_episodes": 0}
        for name, bound in least.items():
            require_number(f"`{name}`", getattr(self, name), least=bound, whole=True)
        for name in ("gamma", "lam"):
            require_number(f"`{name}`", getattr(self, name), least=0, most=1)
        rates = ("actor_lr", "critic_lr", "final_lr")
        for name in ("clip_low", "clip_high", "value_clip", "huber", *rates, "target_kl", "bc_weight", "bc_final"):
            require_number(f"`{name}`", getattr(self, name), least=0)
        require_number("`entropy_weight`", self.entropy_weight)
        require_number("`grad_clip`", self.grad_clip, above=0)


def warn_of_value_clip(settings: PPOSettings, *, sparse: bool) -> None:
    """Warn where a clip in units of a scaled return meets dense rewards that nobody scales.

    Args:
        settings: Of the update.
        sparse: Whether the reward is success alone.
    """
    if settings.value_clip and settings.advantage == "gae" and not sparse and not settings.scale_rewards:
        warnings.warn(
            f"`value_clip={settings.value_clip:g}` bounds how far a value moves per update, and dense rewards that "
            "are not scaled have returns of any size: the critic can learn several times more slowly. Set "
            "`scale_rewards=True`, or `value_clip=0`",
            stacklevel=3,
        )
