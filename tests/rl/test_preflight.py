"""Preflight: what would make fine-tuning fail is refused by name; its success rate has no bias to short episodes."""

from contextlib import closing
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor, nn

from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.ppo import PPOSettings
from flowpolicy.samplers.flow_noise import FlowNoise
from flowpolicy.trainers.ppo import LoopSettings
from flowpolicy.trainers.preflight import Preflight, run_preflight
from flowpolicy_envs.reach import ReachEnv
from tests.rl.toy import imitated, reach_env


class Wrapped(nn.Module):
    """A net whose output something happens to."""

    def __init__(self, net: nn.Module, change: Any) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, *inputs: Any) -> Tensor:
        return self.change(self.net(*inputs))


def flown(model: ActorCritic, *, envs: int = 8, episodes: int = 8, **words: Any) -> Preflight:
    with closing(reach_env(envs, **words)) as env:
        return run_preflight(
            model, env, ppo=PPOSettings(), loop=LoopSettings(), sparse=True, seed=0, episodes=episodes, min_success=0.0
        )


def test_a_net_that_draws_random_numbers_is_refused():
    model = ActorCritic(imitated(steps=5), FlowNoise)
    model.policy.head.net = Wrapped(model.policy.head.net, lambda x: x + torch.randn_like(x))
    with pytest.raises(ValueError, match="first ratio differs from 1"):
        flown(model)


def test_a_part_that_no_gradient_reaches_is_named():
    model = ActorCritic(imitated(steps=5), FlowNoise)
    model.policy.head.net = Wrapped(model.policy.head.net, torch.Tensor.detach)
    with pytest.raises(ValueError, match="no gradient reaches the policy's head"):
        flown(model)


class Fast(gymnasium.Env):
    """Half of the seeds succeed after one chunk, the others never: their episodes are ten times as long."""

    def __init__(self) -> None:
        self.env = ReachEnv(max_episode_steps=40, render=False)
        self.embodiment, self.observation_space = self.env.embodiment, self.env.observation_space
        self.action_space, self.lucky = self.env.action_space, False

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.lucky = seed % 2 == 0
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = self.env.step(action)
        return obs, reward, self.lucky, truncated, info | {"success": self.lucky}


def test_short_successes_do_not_crowd_out_long_failures():
    """All of the first 64 episodes to end are the short ones, which 37 environments begin with."""
    found = flown(ActorCritic(imitated(steps=5), FlowNoise), envs=64, episodes=64, make=Fast)
    assert found.episodes == 64 and found.noisy_success == 37 / 64
