"""The reach task for learning tests: half-good policies, and a loop of collect and update without a trainer."""

import copy
from contextlib import closing
from functools import cache, partial

import numpy as np
import torch

from flowpolicy.encoders.state import StateEncoder
from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.heads.flow_matching import FlowMatchingHead
from flowpolicy.heads.meanflow import MeanFlowHead
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.normalizer import LinearNormalizer
from flowpolicy.policy import FlowPolicy, build_policy
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.collect import collect
from flowpolicy.rl.ppo import PPO, has_signal
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.rollout.chunk_env import ChunkEnv, Reward, make_chunk_env
from flowpolicy.seeding import derive
from flowpolicy.trainers.ppo import LoopSettings, PPOTrainer
from flowpolicy.types import Batch
from flowpolicy_envs.reach import EMBODIMENT, STEP, make_env

HORIZON = 4
WIDE = partial(FlowNoise, std_min=0.3, std_max=0.3)
NUMBERS = {"actor_lr": 1e-4, "critic_lr": 1e-3, "minibatches": 4, "value_clip": 0.0, "target_kl": 0.0}
MULTI_STEP = {
    "p_start": 0.0,
    "time_mean": -0.4,
    "time_std": 1.0,
    "loss_power": 0.0,
}  # times=logit_normal, squared error
HEADS = {
    "meanflow": MeanFlowHead,
    "meanflow_u": partial(MeanFlowHead, parameterization="u"),
    "flow_matching": partial(FlowMatchingHead, parameterization="u", **MULTI_STEP),
    "flow_matching_x": partial(FlowMatchingHead, **MULTI_STEP),
}


def demonstrations(count: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Chunks of an expert with noise 0.5: positions, goals (B, 1, 2), actions (B, 4, 2); 10 decisions per episode."""
    rng = np.random.default_rng(seed)
    position, goal = rng.uniform(-1, 1, (2, count // 10, 2))
    seen, wanted, chunks = [], [], []
    for _ in range(10):
        seen.append(position.copy())
        wanted.append(goal)
        chunk = []
        for _ in range(HORIZON):
            best = np.clip((goal - position) / STEP, -1, 1)
            chunk.append(np.clip(best + rng.normal(0, 0.5, best.shape), -1, 1))
            position = position + STEP * chunk[-1]
        chunks.append(np.stack(chunk, 1))
    made = [torch.tensor(np.concatenate(part), dtype=torch.float32) for part in (seen, wanted, chunks)]
    return made[0][:, None], made[1][:, None], made[2]


@cache
def _imitated(head: str, steps: int, seed: int) -> FlowPolicy:
    torch.manual_seed(seed)
    policy = build_policy(
        embodiment=EMBODIMENT,
        encoder=StateEncoder,
        net=partial(ResidualMLP, width=128, depth=3),
        head=HEADS[head],
        horizon=HORIZON,
        action_horizon=HORIZON,
    )
    position, goal, action = demonstrations(seed=seed)
    for key, value in (("agent_pos", position), ("env_state", goal)):
        policy.obs_normalizer[key] = LinearNormalizer.fit(value.flatten(0, 1), "minmax", key=key)
    batch = Batch({"agent_pos": position, "env_state": goal}, action, torch.ones(len(action), HORIZON))
    optimizer, generator = torch.optim.Adam(policy.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        loss = policy.loss(batch, generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval().requires_grad_(False)


def imitated(head: str = "meanflow", *, steps: int = 600, seed: int = 0) -> FlowPolicy:
    """A policy from 200 noisy chunks; the same for the same arguments, and a copy each time."""
    return copy.deepcopy(_imitated(head, steps, seed))


def reach_env(num_envs: int = 128, *, reward: Reward | None = None, make=make_env) -> ChunkEnv:
    return make_chunk_env(make, num_envs, action_horizon=HORIZON, reward=reward)


@torch.no_grad()
def success(policy: FlowPolicy, *, num_steps: int = 1, episodes: int = 1000, first_seed: int = 50_000) -> float:
    """Share of seeded episodes that a policy without exploration noise succeeds in, all in one batch."""
    rng = [np.random.default_rng(first_seed + i).uniform(-1, 1, 4) for i in range(episodes)]
    state = torch.tensor(np.stack(rng), dtype=torch.float32)
    position, goal = state[:, :2], state[:, 2:]
    generator, reached = torch.Generator().manual_seed(1), torch.zeros(episodes, dtype=torch.bool)
    for _ in range(10):
        obs = {"agent_pos": position[:, None], "env_state": goal[:, None]}
        chunk = policy.predict(obs, num_steps=num_steps, generator=generator)
        for h in range(HORIZON):
            position = position + STEP * chunk[:, h]
            reached |= (position - goal).norm(dim=-1) < 0.05
    return float(reached.float().mean())


def fine_tune(model: ActorCritic, env: ChunkEnv, settings: PPOSettings, *, iterations: int, seed=0, see=None) -> None:
    """The loop of the trainer and nothing else: fresh episodes, 10 decisions, one update; `see(iteration, metrics)`."""
    ppo, noise, order = PPO(model, settings), torch.Generator(), torch.Generator()
    for iteration in range(iterations):
        progress = iteration / iterations
        model.exploration.set_progress(progress)
        bc_weight = ppo.set_progress(progress)
        noise.manual_seed(derive(seed, f"noise/{iteration}"))
        order.manual_seed(derive(seed, f"order/{iteration}"))
        obs = env.reset([derive(seed, f"env/{iteration}/{i}") for i in range(env.num_envs)])
        rollout = collect(model, env, obs, decisions=10, generator=noise).rollout
        successes = int((rollout.success & rollout.done).sum())
        actor = "train" if iteration >= settings.warmup else "hold"
        if settings.guard and not has_signal(rollout, settings, sparse=True, successes=successes):
            actor = "hold" if bc_weight == 0 else "anchor"
        reward = ppo.chunk_rewards(rollout)
        found = ppo.update(rollout, reward, actor=actor, bc_weight=bc_weight, order=order, noise=noise)
        if see is not None:
            see(iteration, found | {"success": successes / max(int(rollout.done.sum()), 1)})


def train(exploration, *, head="meanflow", bc_steps=300, iterations=60, seed=0, env=None, **changes):
    """(success before, after), without noise at the deployed number of steps; the model; what each iteration found."""
    policy = imitated(head, steps=bc_steps)
    torch.manual_seed(seed)
    model = ActorCritic(policy, exploration)
    steps = model.exploration.deploy_steps
    before = success(policy, num_steps=steps)
    seen = []
    with closing(env or reach_env()) as envs:
        settings = PPOSettings(**{**NUMBERS, **changes})
        fine_tune(model, envs, settings, iterations=iterations, seed=seed, see=lambda i, found: seen.append(found))
    return before, success(policy, num_steps=steps), model, seen


def train_in_groups(env, *, iterations: int, **changes) -> tuple[ActorCritic, PPOTrainer]:
    """Group advantages on the trainer's own loop, from the policy that `train` begins with."""
    policy = imitated("meanflow", steps=300)
    torch.manual_seed(0)
    model = ActorCritic(policy, WIDE)
    settings = PPOSettings(advantage="group", actor_lr=1e-4, minibatches=4, target_kl=0.0, **changes)
    loop = LoopSettings(iterations=iterations, decisions=10, eval_every=0, checkpoint_every=iterations)
    trainer = PPOTrainer(model, env, ppo=settings, loop=loop, sparse=True, seed=0, progress=False)
    trainer.run()
    return model, trainer
