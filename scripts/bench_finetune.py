"""Where the time of fine-tuning goes: collection against the bare simulators, and the update's share in the network.

  python scripts/bench_finetune.py checkpoint=runs/push [experiment=rl_metaworld] [envs=16] [workers=2] ...

Takes the words of `flowpolicy finetune` (not batched=true). Rounds of one iteration's decisions take turns: the same
simulators in the same processes, driven by random chunks, then by the policy with its critic as in training. After
each, one update of actor and critic on what was collected; "in the network" are forward, backward, clipping and
optimiser. Prints medians over the rounds.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from flowpolicy.cli import config
from flowpolicy.cli.finetune import load
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.collect import collect
from flowpolicy.rl.ppo import PPO
from flowpolicy.rollout.chunk_env import make_chunk_env
from flowpolicy.trainers.finetune_settings import FinetuneSettings

ROUNDS = 5


class Stopwatch:
    """Adds up the time spent inside of what it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **words: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **words)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def main(argv: list[str]) -> int:
    """Measure and print."""
    cfg, checkpoint = load(argv)
    if cfg.batched:
        raise ValueError("batched=true has no worker processes to be held against")
    settings = FinetuneSettings.from_dict(config.plain(cfg))
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(0)
    actor_critic = ActorCritic(checkpoint.policy(), config.instantiate(cfg.exploration))
    policy, ppo = actor_critic.policy, PPO(actor_critic, settings.ppo)
    env = make_chunk_env(
        config.instantiate(cfg.task.env),
        settings.envs,
        action_horizon=policy.action_horizon,
        obs_horizon=policy.obs_horizon,
        workers=settings.workers,
        reward=settings.reward,
    )
    network = Stopwatch()
    timed = [(actor_critic, "score"), (actor_critic, "features"), (actor_critic.critic, "forward"), (ppo, "_step")]
    for owner, name in timed:
        setattr(owner, name, network.wrap(getattr(owner, name)))
    noise, order = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    low, high = (torch.tensor(bound) for bound in (policy.embodiment.action_low, policy.embodiment.action_high))
    shape = (settings.loop.decisions, settings.envs, policy.action_horizon, policy.embodiment.action_dim)
    random_fps, policy_fps, share, update_s = [], [], [], []
    try:
        env.reset(range(settings.envs))
        for _ in range(ROUNDS):
            chunks = low + (high - low) * torch.rand(shape)
            began = time.perf_counter()
            results = [env.step(chunk) for chunk in chunks]
            random_fps.append(sum(int(one.steps.sum()) for one in results) / (time.perf_counter() - began))
            began = time.perf_counter()
            collected = collect(actor_critic, env, results[-1].obs, decisions=shape[0], generator=noise)
            policy_fps.append(int(collected.rollout.steps.sum()) / (time.perf_counter() - began))
            network.seconds, began = 0.0, time.perf_counter()
            ppo.update(
                collected.rollout,
                ppo.chunk_rewards(collected.rollout),
                actor="train",
                bc_weight=settings.ppo.bc_weight,
                order=order,
                noise=noise,
            )
            update_s.append(time.perf_counter() - began)
            share.append(network.seconds / update_s[-1])
    finally:
        env.close()
    ratios = [a / b for a, b in zip(policy_fps, random_fps, strict=True)]
    print(f"{settings.envs} simulators in {settings.workers} process(es), {ROUNDS} rounds of {shape[0]} decisions")
    print(
        f"control steps/s: random chunks {median(random_fps):.0f}, collection {median(policy_fps):.0f}, "
        f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(
        f"update: {median(update_s):.2f} s, {100 * median(share):.0f} % of it in the network "
        f"({100 * min(share):.0f} to {100 * max(share):.0f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
