"""Fine-tuning: collect, update, evaluate without noise, checkpoint; resumed bit for bit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from tqdm import tqdm

from flowpolicy.checkpoint import load_weights, read_tensors
from flowpolicy.checks import require_number
from flowpolicy.json_files import read_object
from flowpolicy.policy import FlowPolicy
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.collect import Collected, EpisodeCounter, Episodes, collect, finish
from flowpolicy.rl.gae import discounts
from flowpolicy.rl.group import first_episodes, require_equal_starts
from flowpolicy.rl.ppo import PPO, Actor, has_signal
from flowpolicy.rl.reward_scaler import RewardScaler
from flowpolicy.rl.rollout_buffer import Rollout
from flowpolicy.rl.settings import PPOSettings, warn_of_value_clip
from flowpolicy.rollout.chunk_env import ChunkEnv
from flowpolicy.seeding import derive
from flowpolicy.stopping import Stop, Terminated
from flowpolicy.tracking import CompositeTracker, Tracker
from flowpolicy.trainers.checkpoints import Checkpoints, newest, optimizer_tensors, restore_optimizer
from flowpolicy.types import Observation

PPO_STATE = (
    "critic",
    "sampler",  # the exploration's; its file is called so since the first runs
    "actor_optimizer",
    "critic_optimizer",
    "scaler",
)
"""What a checkpoint has in state/, beside step.json."""
Evaluate = Callable[[FlowPolicy, int], dict[str, float]]
"""(policy without noise, iteration) -> metrics, "eval/success_once" among them."""


@final
@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the fine-tuning loop.

    Args:
        iterations: Of collection and update.
        decisions: Chunks per environment and iteration.
        eval_every: Iterations between noise-free evaluations, the first before any update; 0 is never.
        checkpoint_every: Iterations between checkpoints; each evaluation is preceded by one too. All episodes begin
            anew after each, which is what makes a resumed run equal to an unbroken one; in between they run on across
            iterations. See `EpisodeCounter` for which of them count in env/success_once, env/return and
            env/episode_len.
        keep_best: Checkpoints that survive besides the last.
        max_hours: Of wall time, after which a checkpoint is written and the command ends; 0 or None is no limit.
    """

    iterations: int = 100
    decisions: int = 64
    eval_every: int = 10
    checkpoint_every: int = 10
    keep_best: int = 2
    max_hours: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of its range."""
        least = {"iterations": 1, "decisions": 1, "eval_every": 0, "checkpoint_every": 1, "keep_best": 0}
        for name, bound in least.items():
            require_number(f"`{name}`", getattr(self, name), least=bound, whole=True)
        require_number("`max_hours`", self.max_hours or 0, least=0)


@final
class PPOTrainer:
    """One loop for every exploration, head and simulator.

    All randomness of iteration n is a function of (seed, n), and checkpoints fall between episodes, so that nothing of
    a generator or a simulator needs to be stored.

    Args:
        actor_critic: The policy that explores, and its critic.
        env: Environments that execute chunks.
        ppo: The update.
        loop: How long and how often.
        sparse: Whether only success is rewarded, for the guard of `PPOSettings`.
        seed: Of the run.
        checkpoints: Where state and numbers go; None is nowhere. Both may be set until `resume` and `run`.
        tracker: As `checkpoints`.
        evaluate: Called with the step, returns metrics; None evaluates never.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        env: ChunkEnv,
        *,
        ppo: PPOSettings,
        loop: LoopSettings,
        sparse: bool,
        seed: int,
        checkpoints: Checkpoints | None = None,
        tracker: Tracker | None = None,
        evaluate: Evaluate | None = None,
        progress: bool = True,
    ) -> None:
        self.actor_critic, self.env, self.loop, self.sparse = actor_critic, env, loop, sparse
        if ppo.advantage == "group" and env.num_envs % ppo.group_size:
            raise ValueError(
                f"`advantage='group'` needs envs that are a multiple of `group_size={ppo.group_size}`, "
                f"got {env.num_envs}"
            )
        warn_of_value_clip(ppo, sparse=sparse)
        self.ppo = PPO(actor_critic, ppo)
        self.checkpoints, self.tracker, self.seed = checkpoints, tracker or CompositeTracker([]), seed
        self.evaluate, self.progress = evaluate, progress
        self.scaler = RewardScaler(env.num_envs)
        self.counter = EpisodeCounter(env.num_envs)
        self.iteration = self.env_steps = self._saved = 0
        self.stop = Stop(loop.max_hours)
        self._noise = torch.Generator(device=actor_critic.policy.device)
        self._order = torch.Generator(device="cpu")
        self._obs: Observation | None = None
        self._success = float("nan")  # of the latest evaluation

    def resume(self) -> int:
        """Go on from the newest checkpoint; returns its iteration, 0 where there is none."""
        if self.checkpoints is None or (last := newest(self.checkpoints.folder, PPO_STATE)) is None:
            return 0
        counters = read_object(last / "state" / "step.json", {"step": int, "env_steps": int})
        if counters["step"] > self.loop.iterations:
            raise ValueError(f"the run is at iteration {counters['step']}, beyond `iterations={self.loop.iterations}`")
        model = self.actor_critic
        load_weights(model.policy, last / "policy" / "model.safetensors")
        for name, module in (("critic", model.critic), ("sampler", model.exploration)):
            load_weights(module, last / "state" / f"{name}.safetensors")
        for name, optimizer in (("actor", self.ppo.actor_optimizer), ("critic", self.ppo.critic_optimizer)):
            restore_optimizer(optimizer, last / "state" / f"{name}_optimizer.safetensors")
        self.scaler.load(read_tensors(last / "state" / "scaler.safetensors")["state"])
        self.iteration, self.env_steps = counters["step"], counters["env_steps"]
        self._saved = self.iteration
        return self.iteration

    def run(self) -> FlowPolicy:
        """Fine-tune to `loop.iterations`, or until `max_hours` are over; returns the policy, without noise and critic.

        SIGTERM (in the main thread) writes a checkpoint and raises Terminated.
        """
        loop, stopping = self.loop, False
        bar = tqdm(total=loop.iterations, initial=self.iteration, desc="finetune", unit="it", disable=not self.progress)
        with self.stop.watched(), bar:
            if self.iteration and self.checkpoints is not None:  # what a kill after the checkpoint left undone
                self.checkpoints.adopt(self.iteration)
            if self.pending:
                self._evaluate()
            while self.iteration < loop.iterations and not stopping:
                try:
                    metrics = self._iterate()
                except Terminated:  # in the collection, which changes no weights
                    self._save()
                    raise
                self.iteration += 1
                self.tracker.log(self.iteration, metrics)
                bar.update()
                bar.set_postfix_str(self._said(metrics))
                stopping = self._save_and_evaluate()
            if stopping and self.stop.terminated:
                raise Terminated(self._stopped)
        return self.actor_critic.policy

    @property
    def pending(self) -> bool:
        """Whether the policy as it is now is still to be evaluated: at the beginning, or after a kill."""
        if not self._evaluates(self.iteration):
            return False
        return not self.iteration or self.checkpoints is None or self.checkpoints.score(self.iteration) is None

    @property
    def _stopped(self) -> str:
        where = f"iteration {self.iteration} of {self.loop.iterations}"
        return f"stopped by SIGTERM at {where}; `resume=True` goes on from there"

    def _save_and_evaluate(self) -> bool:
        """What is due after an iteration, and whether to end here. Saved first: a failed evaluation costs nothing."""
        stopping = self.stop.due
        if stopping or self._saves(self.iteration):
            self._save()
        if self._evaluates(self.iteration):
            self._evaluate()
        return stopping

    def _iterate(self) -> dict[str, float]:
        """One collection and one update."""
        # 1. Schedules, and the random numbers of this iteration.
        settings, progress = self.ppo.settings, self.iteration / self.loop.iterations
        self.actor_critic.exploration.set_progress(progress)
        bc_weight = self.ppo.set_progress(progress)
        self._noise.manual_seed(derive(self.seed, f"rl_noise/{self.iteration}"))
        self._order.manual_seed(derive(self.seed, f"rl_order/{self.iteration}"))
        # 2. Decisions with exploration, from every environment.
        rollout, well, measured = self._collect()
        # 3. What the actor may learn from them: everything, the pull towards its beginning alone, or nothing.
        grouped = settings.advantage == "group"
        actor: Actor = "train" if grouped or self.iteration >= settings.warmup else "hold"
        if settings.guard and not has_signal(rollout, settings, sparse=self.sparse, successes=well):
            actor = "anchor" if actor == "train" and bc_weight > 0.0 else "hold"
        # 4. One reward per decision.
        reward = self.ppo.chunk_rewards(rollout)
        if settings.scale_rewards:
            discount = discounts(rollout.steps, gamma=settings.gamma, kind=settings.discount)
            reward = self.scaler(reward, discount, rollout.done)
        # 5. The update.
        start = time.perf_counter()
        found = self.ppo.update(rollout, reward, actor=actor, bc_weight=bc_weight, order=self._order, noise=self._noise)
        measured["time/update_s"] = time.perf_counter() - start
        return (
            found
            | measured
            | {
                "rl/actor_trained": float("rl/policy_loss" in found),
                "rl/bc_weight": bc_weight,
                "rl/lr": self.ppo.actor_optimizer.param_groups[0]["lr"],
            }
        )

    def _collect(self) -> tuple[Rollout, int, dict[str, float]]:
        """What to learn from, how many episodes ended well in it, and metrics.

        Before all episodes begin anew, those that are to count run on to their end: with noise of their own, after what
        is learned from, and not among env/steps.
        """
        grouped = self.ppo.settings.advantage == "group"
        if self._obs is None or grouped:
            self._obs = self._restart()
        start, iteration = time.perf_counter(), self.iteration
        with self.stop.interruptible(self._stopped):
            collected = collect(
                self.actor_critic, self.env, self._obs, decisions=self.loop.decisions, generator=self._noise
            )
        self._obs, rollout, collect_s = collected.obs, collected.rollout, time.perf_counter() - start
        if grouped:
            if not rollout.done.any(0).all():
                raise ValueError(
                    f"`advantage='group'` compares whole episodes, and some did not end in "
                    f"`decisions={self.loop.decisions}`; raise it, or lower `max_episode_steps`"
                )
            rollout = rollout._replace(valid=first_episodes(rollout.done))
        well, steps = self.counter.count(rollout), int(rollout.steps.sum())
        times = {"time/env_fps": steps / collect_s, "time/collect_s": collect_s}
        if grouped or self._saves(iteration + 1):
            start, noise = time.perf_counter(), torch.Generator(device=self._noise.device)
            with self.stop.interruptible(self._stopped):
                finish(
                    self.actor_critic,
                    self.env,
                    collected.obs,
                    self.counter,
                    generator=noise.manual_seed(derive(self.seed, f"rl_finish/{iteration}")),
                )
            times["time/finish_s"] = time.perf_counter() - start
        self.env_steps += steps
        return rollout, well, _environment(collected, self.counter.report(), self.env_steps) | times

    def _restart(self) -> Observation:
        """New episodes everywhere, fixed by (seed, iteration)."""
        self.scaler.restart()
        self.counter.restart()
        settings = self.ppo.settings
        alike = settings.group_size if settings.advantage == "group" else 1
        obs = self.env.reset(
            [derive(self.seed, f"rl_env/{self.iteration}/{i // alike}") for i in range(self.env.num_envs)]
        )
        require_equal_starts(obs, alike)
        return obs

    def _evaluate(self) -> None:
        """Evaluate the policy, as the checkpoint of this iteration has it, and enter its score there."""
        assert self.evaluate is not None
        with self.stop.interruptible(self._stopped):
            found = self.evaluate(self.actor_critic.policy, self.iteration)
        self.tracker.log(self.iteration, found)
        self._success = found["eval/success_once"]
        if self.checkpoints is not None and self.iteration:
            self.tracker.sync()
            self.checkpoints.set_score(self.iteration, self._success)

    def _save(self) -> None:
        """Write a checkpoint, unless this iteration has one or none is done."""
        self._obs = None  # a resumed run begins new episodes here, so this one does
        if self._saved == self.iteration:
            return
        self._saved = self.iteration
        if self.checkpoints is None:
            return
        model = self.actor_critic
        state = {
            "critic": model.critic.state_dict(),
            "sampler": model.exploration.state_dict(),
            "actor_optimizer": optimizer_tensors(self.ppo.actor_optimizer),
            "critic_optimizer": optimizer_tensors(self.ppo.critic_optimizer),
            "scaler": {"state": self.scaler.state()},
        }
        self.tracker.sync()
        self.checkpoints.write(
            self.iteration,
            policy=model.policy,
            weights="last",
            state=state,
            counters={"env_steps": self.env_steps},
        )

    def _saves(self, iteration: int) -> bool:
        """Whether a checkpoint is due after so many iterations."""
        return self._evaluates(iteration) or self._due(self.loop.checkpoint_every, iteration)

    def _evaluates(self, iteration: int) -> bool:
        return self.evaluate is not None and self._due(self.loop.eval_every, iteration)

    def _due(self, every: int, iteration: int) -> bool:
        return every > 0 and (iteration % every == 0 or iteration == self.loop.iterations)

    def _said(self, metrics: dict[str, float]) -> str:
        """The progress line."""
        names = {
            "success": "env/success_once",
            "return": "env/return",
            "KL": "rl/approx_kl",
            "clipped": "rl/clip_fraction",
            "std": "rl/std",
            "explained": "rl/explained_variance",
        }
        words = [f"{word} {metrics[name]:.3g}" for word, name in names.items() if name in metrics]
        words.append(f"{metrics['time/env_fps']:.0f} steps/s")
        seen = [] if math.isnan(self._success) else [f"eval {self._success:.2f}"]
        return ", ".join([*seen, *words])


def _environment(collected: Collected, episodes: Episodes, env_steps: int) -> dict[str, float]:
    """Metrics of the episodes that count in this iteration, with exploration noise; none where none do."""
    found = {
        "env/steps": float(env_steps),
        "env/episodes": float(episodes.finished),
        "rl/saturated": collected.saturated,
    }
    if episodes.finished:
        found |= {
            "env/success_once": episodes.succeeded / episodes.finished,
            "env/return": episodes.return_mean,
            "env/episode_len": episodes.length_mean,
        }
    return found
