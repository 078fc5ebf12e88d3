"""Before fine-tuning: what would make it fail is found in seconds, and said with what to do."""

import math
import time
from typing import NamedTuple, final

import torch
from torch import nn

from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.collect import MAX_EPISODE, collect
from flowpolicy.rl.rollout_buffer import Rollout, minibatches
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.rollout.chunk_env import ChunkEnv
from flowpolicy.seeding import derive, normal, stream
from flowpolicy.statistics.tests import wilson_interval
from flowpolicy.trainers.ppo import LoopSettings

MAX_RATIO_ERROR = 1e-3  # float32 rounding stays below 1e-4; a wrong time grid or dropout is above 0.1
_DECISIONS = 16  # per environment and collection


class Preflight(NamedTuple):
    """What was found.

    Args:
        ratio_error: Largest |ratio - 1| before any update. noisy_success with interval: of `episodes` episodes with
            exploration noise, as training begins.
        noisy_success: Share of the episodes with exploration.
        ci_low: Of its Wilson interval.
        ci_high: Of its Wilson interval.
        episodes: How many to run.
        std: Mean noise, normalised units.
        env_fps: Control steps per second, inference included.
        hours: Estimate for the whole run without its evaluations.
    """

    ratio_error: float
    noisy_success: float
    ci_low: float
    ci_high: float
    episodes: int
    std: float
    env_fps: float
    hours: float


def run_preflight(
    actor_critic: ActorCritic,
    env: ChunkEnv,
    *,
    ppo: PPOSettings,
    loop: LoopSettings,
    sparse: bool,
    seed: int,
    episodes: int = 50,
    min_success: float = 0.03,
) -> Preflight:
    """Collect until at least `episodes`, equally many of each environment, have ended, and check what was collected; no
    weight changes.

    Args:
        actor_critic: The policy that explores, and its critic.
        env: Environments that execute chunks.
        ppo: Settings of the update.
        loop: How long and how often.
        sparse: Whether the reward is success alone.
        seed: Of the run.
        episodes: How many to run.
        min_success: Noisy success below which training is refused.

    Raises:
        ValueError: When an episode has no end, the first ratio is not 1, a part gets no gradient or one that is not
            finite, or (sparse reward) fewer than the share `min_success` of the episodes succeed: there would be
            nothing to learn from (ReinFlow's Square from 3 % fails, from 10 % it reaches 21 %, from 25 % 61 to 77 %).
    """
    generator = stream(seed, "preflight", actor_critic.policy.device)
    obs = env.reset([derive(seed, f"preflight_env/{i}") for i in range(env.num_envs)])
    first = _FirstEpisodes(env.num_envs, math.ceil(episodes / env.num_envs))
    start, collections, steps = time.perf_counter(), 0, 0
    rollout: Rollout | None = None
    while not first.complete:
        if collections * _DECISIONS >= first.each * MAX_EPISODE:
            raise ValueError(
                f"preflight: {first.each} episodes of each simulator did not end within {MAX_EPISODE} decisions each; "
                "give the task a max_episode_steps, or set `preflight_episodes=0`"
            )
        collected = collect(actor_critic, env, obs, decisions=_DECISIONS, generator=generator)
        rollout, obs, collections = rollout or collected.rollout, collected.obs, collections + 1
        first.count(collected.rollout)
        steps += int(collected.rollout.steps.sum())
    finished, succeeded = int(first.finished.sum()), int(first.succeeded.sum())
    collect_s = (time.perf_counter() - start) / (collections * _DECISIONS)
    assert rollout is not None
    ratio_error, std, gradient_s = _check_gradients(actor_critic, rollout, generator)
    success = succeeded / finished
    low, high = wilson_interval(succeeded, finished)
    if sparse and success < min_success:
        raise ValueError(
            f"preflight: {succeeded} of {finished} episodes succeed with exploration noise (std {std:.3f}), wanted "
            f"{min_success:.0%}: a sparse reward gives nothing to learn from. Train the policy on more demonstrations, "
            "lower the noise (`std_min`, `std_max`), or set `min_success=0` to try all "
            "the same"
        )
    passes = ppo.epochs * loop.decisions / _DECISIONS
    hours = loop.iterations * (loop.decisions * collect_s + passes * gradient_s) / 3600.0
    fps = steps / (collect_s * collections * _DECISIONS)
    return Preflight(ratio_error, success, low, high, finished, std, fps, hours)


@final
class _FirstEpisodes:
    """The first `each` episodes of every environment: those that end first are mostly successes, which are short."""

    def __init__(self, num_envs: int, each: int) -> None:
        self.each = each
        self.finished = torch.zeros(num_envs, dtype=torch.int64, device="cpu")
        self.succeeded = self.finished.clone()
        self._success = torch.zeros(num_envs, dtype=torch.bool, device="cpu")

    @property
    def complete(self) -> bool:
        return bool((self.finished >= self.each).all())

    def count(self, rollout: Rollout) -> None:
        """Go through the decisions in order."""
        for done, success in zip(rollout.done.cpu(), rollout.success.cpu(), strict=True):
            self._success |= success
            counted = done & (self.finished < self.each)
            self.finished += counted
            self.succeeded += counted & self._success
            self._success &= ~done


def _check_gradients(
    actor_critic: ActorCritic, rollout: Rollout, generator: torch.Generator
) -> tuple[float, float, float]:
    """Largest |ratio - 1|, mean std and seconds for one pass over the rollout with gradients, which reach all parts."""
    start = time.perf_counter()
    shuffle = torch.Generator(device="cpu").manual_seed(0)
    error, std = 0.0, 0.0
    for batch in minibatches(rollout, rollout.value, rollout.value, count=2, generator=shuffle):
        cond = actor_critic.features(batch.obs)
        score = actor_critic.score(cond, batch.chain)
        ratio = ((score.log_prob - batch.log_prob) * score.entries).exp()  # of the density, not of its mean
        if not_finite := int((~torch.isfinite(ratio)).sum()):  # max(error, nan) is error
            raise ValueError(
                f"preflight: {not_finite} of {len(ratio)} first ratios are not finite; is the exploration's noise "
                "positive in every step, and are the policy's weights and observations finite?"
            )
        error, std = max(error, float((ratio.detach() - 1.0).abs().max())), float(score.std)
        random = normal(ratio.shape, generator)
        ((ratio * random).mean() + actor_critic.critic(cond.detach()).square().mean()).backward()
    seconds = time.perf_counter() - start
    if error > MAX_RATIO_ERROR:
        raise ValueError(
            f"preflight: the first ratio differs from 1 by {error:.2g}, so rollout and update disagree on the "
            "density; does the encoder or net draw random numbers, or keep batch statistics?"
        )
    parts: dict[str, nn.Module] = {
        "the policy's head": actor_critic.policy.head,
        "the critic": actor_critic.critic,
        "the exploration": actor_critic.exploration,
    }
    if not actor_critic.frozen:
        parts["the encoder"] = actor_critic.policy.encoder
    for name, module in parts.items():
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise ValueError(f"preflight: the gradient of {name} is not finite; every step of it would be skipped")
        if parameters and not any(bool(gradient.any()) for gradient in gradients):
            raise ValueError(f"preflight: no gradient reaches {name}; it would never learn")
    actor_critic.zero_grad(set_to_none=True)
    return error, std, seconds
