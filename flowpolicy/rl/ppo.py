"""PPO on chunk decisions: clipped ratios of exact densities, a critic of its own, and the guards around them."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, final

import torch
from torch import Tensor, nn

from flowpolicy.rl.actor_critic import ActorCritic, Score
from flowpolicy.rl.bc import bc_loss
from flowpolicy.rl.gae import chunk_reward, discounts, gae
from flowpolicy.rl.group import group_advantage
from flowpolicy.rl.last_step import LastStep
from flowpolicy.rl.losses import PolicyLoss, policy_loss, value_loss
from flowpolicy.rl.rollout_buffer import Minibatch, Rollout, minibatches
from flowpolicy.rl.rounding import differ, spreads
from flowpolicy.rl.settings import PPOSettings

Actor = Literal["train", "anchor", "hold"]
"""What an update does to the actor: the whole objective, the pull towards the reference alone, nothing."""
_KEPT = "; the last good checkpoint is kept. Lower `actor_lr` and `critic_lr`, or scale the rewards"
_MAX_MEAN_CLIP = 0.05
_TRIES = 20  # to shorten a step that crossed target_kl


def normalized(advantage: Tensor, valid: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the valid entries, (T, N) both; 0 elsewhere, and where all are equal up to
    rounding.

    Args:
        advantage: (T, N) or (B,), of each decision.
        valid: (T, N) bool.
    """
    chosen = advantage[valid]
    relative = (advantage - chosen.mean()) / (chosen.std(unbiased=False) + 1e-5)
    return torch.where(valid & differ(chosen, chosen.abs()), relative, 0.0)


def explained_variance(rollout: Rollout, returns: Tensor) -> float:
    """Share of the returns' variance that the critic foresaw.

    Args:
        rollout: Decisions of a collection, see `Rollout`.
        returns: (T, N).
    """
    residual, chosen = (returns - rollout.value)[rollout.valid], returns[rollout.valid]
    variance = float(chosen.var())
    return 1.0 - float(residual.var()) / variance if spreads(variance, float(chosen.mean())) else 0.0


def has_signal(rollout: Rollout, settings: PPOSettings, *, sparse: bool, successes: int) -> bool:
    """Whether the rewards say anything about actions: they differ by more than rounding.

    Args:
        rollout: Decisions of a collection, see `Rollout`.
        settings: Of the update.
        sparse: Whether the reward is success alone.
        successes: Episodes that ended well in this rollout.
    """
    rewards = rollout.reward[rollout.valid]
    if not bool(differ(rewards.sum(-1), rewards.abs().sum(-1))):
        return False
    return not sparse or successes >= settings.min_success_episodes


def _skipped(name: str, found: defaultdict[str, list[float]]) -> int:
    """How many steps of an optimiser were dropped; they leave `found`. Raises ValueError when all of them were."""
    skipped = len(found.pop(f"skipped_{name}", []))
    if skipped and f"grad_norm_{name}" not in found:
        raise ValueError(f"no gradient of the {name} was finite in {skipped} steps{_KEPT}")
    return skipped


@final
class PPO:
    """The update, with its two optimisers. All randomness comes in through generators.

    Args:
        actor_critic: The policy that explores, and its critic.
        settings: Of the update.
    """

    def __init__(self, actor_critic: ActorCritic, settings: PPOSettings) -> None:
        largest = max(settings.clip_low, settings.clip_high)
        averaged = actor_critic.log_prob_reduction == "mean"
        if averaged and largest > _MAX_MEAN_CLIP and not settings.allow_large_clip:
            raise ValueError(
                f"clipping at {largest} a mean log-density of N entries acts like {largest} N on the ratio and hardly "
                f"ever clips; use at most {_MAX_MEAN_CLIP}, `log_prob_reduction='sum'`, or `allow_large_clip=True`"
            )
        self.actor_critic, self.settings = actor_critic, settings
        self._actor, self._critic = list(actor_critic.actor_parameters()), list(actor_critic.critic.parameters())
        self.actor_optimizer = torch.optim.AdamW(self._actor, lr=settings.actor_lr, weight_decay=0.0)
        self.critic_optimizer = torch.optim.AdamW(self._critic, lr=settings.critic_lr, weight_decay=0.0)
        self._last_step, self._warned = LastStep(self._actor), False

    def set_progress(self, progress: float) -> float:
        """Learning rates for the iteration at this share of the run; returns the weight of the reference's pull.

        Args:
            progress: Share of the run that is done, 0 to 1.
        """
        settings = self.settings
        share = settings.final_lr + (1.0 - settings.final_lr) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        rates = ((self.actor_optimizer, settings.actor_lr), (self.critic_optimizer, settings.critic_lr))
        for optimizer, lr in rates:
            for group in optimizer.param_groups:
                group["lr"] = lr * share
        return settings.bc_weight + progress * (settings.bc_final - settings.bc_weight)

    def chunk_rewards(self, rollout: Rollout) -> Tensor:
        """(T, N), unscaled.

        Args:
            rollout: Decisions of a collection, see `Rollout`.
        """
        return chunk_reward(rollout.reward, gamma=self.settings.gamma, kind=self.settings.discount)

    def update(
        self,
        rollout: Rollout,
        reward: Tensor,
        *,
        actor: Actor,
        bc_weight: float,
        order: torch.Generator,
        noise: torch.Generator,
    ) -> dict[str, float]:
        """Go through a rollout `epochs` times; returns means of what was measured.

        Args:
            rollout: Decisions of a collection, see `Rollout`.
            reward: (T, N), scaled or not.
            actor: What happens to it; the critic always learns.
            bc_weight: Of the pull towards the reference, now.
            order: Shuffles, on the CPU.
            noise: Of the reference's pull, on the policy's device. rl/approx_kl and rl/clip_fraction are of the actor
                as it leaves, over all decisions. Where target_kl stopped it (rl/kl_stop), rl/kl_at_stop is the estimate
                that did, and rl/step_kept the share that is left of the last step.

        Raises:
            ValueError: When a density is no number, or no gradient of the actor or the critic is.
        """
        # 1. What each decision was worth, against its group or against the critic.
        settings = self.settings
        discount = discounts(rollout.steps, gamma=settings.gamma, kind=settings.discount)
        found: defaultdict[str, list[float]] = defaultdict(list)
        self._last_step.forget()
        stopped, grouped = 0, settings.advantage == "group"
        if grouped:
            relative = group_advantage(reward, rollout.valid, discount=discount, group_size=settings.group_size)
            found["groups_used"].append(relative.used)
            advantage, returns = relative.advantage, rollout.value  # nobody learns the returns
            if actor == "train":
                rollout = rollout._replace(valid=relative.valid)
            if actor == "hold" or int(rollout.valid.sum()) < settings.minibatches:  # hardly any outcomes that differ
                return {"rl/groups_used": relative.used}
        else:
            advantage, returns = gae(
                reward,
                rollout.value,
                rollout.next_value,
                rollout.terminated,
                rollout.done,
                discount=discount,
                lam=settings.lam,
            )
            advantage = normalized(advantage, rollout.valid)
        # 2. Steps of critic and actor, until the actor has moved too far.
        for batch in self._batches(rollout, advantage, returns, order):
            cond = self.actor_critic.features(batch.obs)
            if not grouped:
                self._critic_step(cond.detach(), batch, found)
            if actor != "hold" and not stopped:
                stopped = self._actor_step(cond, batch, found, actor=actor, bc_weight=bc_weight, noise=noise)
                if stopped:  # at once: an encoder that was thrown far is not for the critic to learn from
                    self._shorten(rollout, found)
        # 3. How far it is in the end, and the log.
        if actor != "hold":
            stopped = self._conclude(rollout, found, unseen=actor == "train" and not stopped) or stopped
        skipped = sum(_skipped(name, found) for name in ("actor", "critic"))
        means = {f"rl/{name}": sum(values) / len(values) for name, values in found.items()}
        means |= {"rl/kl_stop": float(stopped), "rl/skipped_steps": skipped}
        return means if grouped else means | {"rl/explained_variance": explained_variance(rollout, returns)}

    def _batches(
        self, rollout: Rollout, advantage: Tensor, returns: Tensor, order: torch.Generator
    ) -> Iterator[Minibatch]:
        for _ in range(self.settings.epochs):
            yield from minibatches(rollout, advantage, returns, count=self.settings.minibatches, generator=order)

    def _critic_step(self, cond: Tensor, batch: Minibatch, found: defaultdict[str, list[float]]) -> None:
        value = self.actor_critic.critic(cond)
        clip, huber = self.settings.value_clip, self.settings.huber
        loss = value_loss(value, batch.value, batch.returns, clip=clip, huber=huber)
        found["value_loss"].append(float(loss.detach()))
        self._step(self.critic_optimizer, self._critic, loss, "critic", found)

    def _actor_step(
        self,
        cond: Tensor,
        batch: Minibatch,
        found: defaultdict[str, list[float]],
        *,
        actor: Actor,
        bc_weight: float,
        noise: torch.Generator,
    ) -> bool:
        """One step of the actor's optimiser; whether the divergence ended its part of this iteration instead."""
        settings, model = self.settings, self.actor_critic
        loss = cond.new_zeros(())
        if actor == "train":
            score: Score = model.score(cond, batch.chain)
            result = self._policy_loss(score, batch)
            if self._crosses(kl := float(result.kl)):
                found["kl_at_stop"].append(kl)
                return True
            measured = {"policy_loss": result.loss, "entropy": score.entropy, "std": score.std}
            for name, value in measured.items():
                found[name].append(float(value.detach()))
            loss = result.loss - settings.entropy_weight * score.entropy
        if bc_weight > 0.0:
            pull = bc_loss(
                model.policy,
                model.reference,
                cond,
                model.reference_features(batch.obs),
                kind=settings.bc_kind,
                num_steps=model.exploration.deploy_steps,
                generator=noise,
            )
            found["bc_loss"].append(float(pull.detach()))
            loss = loss + bc_weight * pull
        if loss.requires_grad:
            self._step(self.actor_optimizer, self._actor, loss, "actor", found)
        return False

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        loss: Tensor,
        name: str,
        found: defaultdict[str, list[float]],
    ) -> None:
        """Backward, clip, step; a gradient that is not finite is dropped and counted."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip))
        if not math.isfinite(norm):
            found[f"skipped_{name}"].append(1.0)
            return
        found[f"grad_norm_{name}"].append(norm)
        if optimizer is self.actor_optimizer and self.settings.target_kl:
            self._last_step.remember()
        optimizer.step()

    def _conclude(self, rollout: Rollout, found: defaultdict[str, list[float]], *, unseen: bool) -> bool:
        """Measure the actor over all decisions; whether it has crossed target_kl.

        unseen: whether no minibatch came after the last step that could have noticed.
        """
        kl, clipped = self._divergence(rollout)
        if crossed := unseen and self._crosses(kl):
            found["kl_at_stop"].append(kl)
            self._shorten(rollout, found)
            kl, clipped = self._divergence(rollout)
        found["approx_kl"], found["clip_fraction"] = [kl], [clipped]
        return crossed

    def _policy_loss(self, score: Score, batch: Minibatch) -> PolicyLoss:
        """The clipped objective of a part of the rollout."""
        return policy_loss(
            score.log_prob,
            batch.log_prob,
            batch.advantage,
            clip_low=self.settings.clip_low,
            clip_high=self.settings.clip_high,
            entries=score.entries,
        )

    def _crosses(self, kl: float) -> bool:
        """Whether a divergence ends the actor's part of this iteration. Raises ValueError where it is no number."""
        if math.isnan(kl):  # nan > target_kl is False
            raise ValueError(f"the density of the policy is not finite{_KEPT}")
        return 0.0 < self.settings.target_kl < kl

    def _shorten(self, rollout: Rollout, found: defaultdict[str, list[float]]) -> None:
        """Take back so much of the last step that the divergence over all decisions is within the target, or all of it
        where the steps before, each within on a minibatch, have crossed together."""
        if not self._last_step.taken:
            return
        share, kl, target = 1.0, self._divergence(rollout)[0], self.settings.target_kl
        if len(found["grad_norm_actor"]) == 1 and kl > target and not self._warned:
            self._warned = True
            warnings.warn(
                f"one step of `actor_lr={self.settings.actor_lr:g}` moves the policy by a divergence of {kl:.2g}, "
                f"beyond `target_kl={target:g}`; it is shortened, and the only one of its iteration: lower "
                "`actor_lr`",
                stacklevel=4,
            )
        for _ in range(_TRIES):
            if kl <= target:
                break
            share *= min(0.9, math.sqrt(target / kl))  # the divergence of a small step grows with its square
            self._last_step.keep(share)
            kl = self._divergence(rollout)[0]
        else:
            self._last_step.keep(share := 0.0)
        found["step_kept"].append(share)

    @torch.no_grad()
    def _divergence(self, rollout: Rollout) -> tuple[float, float]:
        """Estimate over all decisions under the present weights, and the share of ratios beyond the clip."""
        zero, settings = torch.zeros_like(rollout.log_prob), self.settings
        kl, clipped, count = 0.0, 0.0, 0
        for batch in minibatches(rollout, zero, zero, count=settings.minibatches, generator=None):
            score = self.actor_critic.score(self.actor_critic.features(batch.obs), batch.chain)
            found = self._policy_loss(score, batch)
            size = len(batch.log_prob)
            kl, clipped = kl + size * float(found.kl), clipped + size * float(found.clipped)
            count += size
        return kl / count, clipped / count
