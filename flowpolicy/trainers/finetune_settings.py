"""All numbers of a fine-tuning run."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, final

from flowpolicy.checks import require_number
from flowpolicy.rl.actor_critic import Reduction, Rows
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.rollout.chunk_env import Reward
from flowpolicy.trainers.ppo import LoopSettings


@final
@dataclass(frozen=True)
class ActorSettings:
    """See `ActorCritic`.

    Args:
        critic_width: Of the critic's hidden layers.
        critic_depth: Hidden layers of the critic.
        rows: Which steps of a chunk are scored, see `ActorCritic`.
        log_prob_reduction: "sum" or "mean" over the entries of a decision.
        freeze_encoder: Train the head alone.
    """

    critic_width: int = 256
    critic_depth: int = 3
    rows: Rows = "auto"
    log_prob_reduction: Reduction = "sum"
    freeze_encoder: bool = False


@final
@dataclass(frozen=True)
class FinetuneSettings:
    """All numbers of a run.

    Args:
        envs: Simulators, in `workers` processes (1: this one).
        workers: Processes for the simulators.
        reward: Which reward counts, see `Reward`.
        actor: See `ActorCritic`.
        ppo: Of the update.
        loop: How long and how often.
        total_steps: Control steps that take the place of `loop.iterations`, see `iterations`; None leaves it.
        eval_episodes: Of the noise-free evaluations.
        eval_seed: As `eval_episodes`.
        preflight_episodes: See `run_preflight`; 0 episodes skips it.
        min_success: As `preflight_episodes`.
        receipt_episodes: See `write_receipt`; 0 episodes skips it.
        receipt_seed: As `receipt_episodes`.
    """

    envs: int = 32
    workers: int = 2
    reward: Reward = field(default_factory=Reward)
    actor: ActorSettings = field(default_factory=ActorSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    total_steps: int | None = None
    eval_episodes: int = 50
    eval_seed: int = 50_000
    preflight_episodes: int = 50
    min_success: float = 0.03
    receipt_episodes: int = 100
    receipt_seed: int = 100_000

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range, or seeds that would choose the checkpoint and be reported."""
        for name, value, least in (
            ("`envs`", self.envs, 1),
            ("`workers`", self.workers, 1),
            ("`eval_episodes`", self.eval_episodes, 1 if self.loop.eval_every else 0),
            ("`eval_seed`", self.eval_seed, 0),
            ("`preflight_episodes`", self.preflight_episodes, 0),
            ("`receipt_episodes`", self.receipt_episodes, 0),
            ("`receipt_seed`", self.receipt_seed, 0),
        ):
            require_number(name, value, least=least, whole=True)
        distance = self.receipt_seed - self.eval_seed
        both = self.receipt_episodes and self.loop.eval_every
        if both and -self.receipt_episodes < distance < self.eval_episodes:
            raise ValueError(
                f"eval and receipt share seeds: {self.eval_episodes} from {self.eval_seed} and "
                f"{self.receipt_episodes} from {self.receipt_seed}; move `receipt_seed`"
            )
        require_number("`min_success`", self.min_success, least=0, most=1)
        if self.total_steps is not None:
            require_number("`total_steps`", self.total_steps, least=1, whole=True)

    def iterations(self, action_horizon: int) -> int:
        """Of the loop: the fewest whose chunks, were all of them run to their end, have `total_steps` control steps.

        Args:
            action_horizon: Ta, steps of a chunk that are executed.
        """
        if self.total_steps is None:
            return self.loop.iterations
        return math.ceil(self.total_steps / (self.envs * self.loop.decisions * action_horizon))

    @staticmethod
    def from_dict(facts: dict[str, Any]) -> "FinetuneSettings":
        """From the resolved config of `flowpolicy finetune`.

        Args:
            facts: The resolved config.
        """
        evaluation, preflight, receipt = facts["eval"], facts["preflight"], facts["receipt"]
        return FinetuneSettings(
            envs=facts["envs"],
            workers=facts["workers"],
            reward=Reward(**facts["reward"]),
            actor=ActorSettings(**facts["actor"]),
            ppo=PPOSettings(**facts["ppo"]),
            loop=LoopSettings(**facts["loop"]),
            total_steps=facts["rl"]["total_steps"],
            eval_episodes=evaluation["episodes"],
            eval_seed=evaluation["start_seed"],
            preflight_episodes=preflight["episodes"],
            min_success=preflight["min_success"],
            receipt_episodes=receipt["episodes"],
            receipt_seed=receipt["start_seed"],
        )


def shortened(settings: FinetuneSettings) -> FinetuneSettings:
    """For debug=true: every stage in seconds; but groups are compared over whole episodes.

    Args:
        settings: All numbers.
    """
    decisions = settings.loop.decisions if settings.ppo.advantage == "group" else 4
    return replace(
        settings,
        envs=4,
        workers=1,
        total_steps=None,
        eval_episodes=2,
        preflight_episodes=4,
        min_success=0.0,
        receipt_episodes=4,
        loop=replace(settings.loop, iterations=4, decisions=decisions, eval_every=2, checkpoint_every=2),
        ppo=replace(settings.ppo, warmup=1, minibatches=2, epochs=2, group_size=2),
    )
