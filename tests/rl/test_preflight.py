"""Preflight: what would make fine-tuning fail is refused by name; its success rate has no bias to short episodes."""

import warnings
from contextlib import closing
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor, nn

from flowpolicy.exploration.flow_noise import FlowNoise
from flowpolicy.exploration.flow_sde import FlowSDE
from flowpolicy.exploration.langevin import Langevin
from flowpolicy.rl.actor_critic import ActorCritic
from flowpolicy.rl.settings import PPOSettings
from flowpolicy.trainers.ppo import LoopSettings, PPOTrainer
from flowpolicy.trainers.preflight import Preflight, run_preflight
from flowpolicy_envs.reach import ReachEnv
from tests.rl.test_ppo import Scripted, model as ppo_model, rolled_out, run_update
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


def test_a_density_that_is_not_finite_is_refused():
    """Python's max(0.0, nan) is 0.0, and nan > x is False."""
    model = ActorCritic(imitated(steps=5), FlowSDE(num_steps=2))
    model.exploration.noise_level = 0.0  # past the constructor, which refuses it
    with pytest.raises(ValueError, match="first ratios are not finite"):
        flown(model)


def test_a_gradient_that_is_not_finite_is_refused_and_named():
    model = ActorCritic(imitated(steps=5), FlowNoise)
    model.policy.head.net.output.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(ValueError, match="gradient of the policy's head is not finite"):
        flown(model)


@pytest.mark.parametrize("exploration", [FlowSDE, Langevin])
@pytest.mark.parametrize("level", [0.0, -0.5, float("nan"), float("inf")])
def test_an_exploration_without_noise_is_refused(exploration, level):
    with pytest.raises(ValueError, match="noise_level must be positive and finite.*without noise there is no density"):
        exploration(noise_level=level)


@pytest.mark.parametrize("bounds", [(0.1, float("inf")), (float("nan"), 0.2), (0.1, float("nan"))])
def test_a_standard_deviation_that_is_not_finite_is_refused(bounds):
    with pytest.raises(ValueError, match="0 < std_min <= std_max"):
        FlowNoise(action_dim=2, horizon=4, cond_dim=4, std_min=bounds[0], std_max=bounds[1])


def test_the_first_ratio_is_that_of_the_density_whatever_its_reduction():
    """A mean over the entries would hide most of what is wrong."""
    found = []
    for reduction in ("sum", "mean"):
        model = ActorCritic(imitated(steps=5), FlowNoise, log_prob_reduction=reduction)
        model.policy.head.net = Wrapped(
            model.policy.head.net, lambda x: x + 3e-4 * x.requires_grad
        )  # not in collection
        with pytest.raises(ValueError, match="first ratio differs") as caught:
            flown(model)
        found.append(str(caught.value))
    assert found[0] == found[1]


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


def made(*, sparse: bool = False, **settings: Any) -> None:
    with closing(reach_env(8)) as env:
        model = ActorCritic(imitated(steps=5), FlowNoise)
        PPOTrainer(model, env, ppo=PPOSettings(**settings), loop=LoopSettings(), sparse=sparse, seed=0, progress=False)


def test_a_value_clip_on_dense_rewards_that_are_not_scaled_gets_a_warning():
    with pytest.warns(UserWarning, match="`value_clip=0.2` .* `scale_rewards=True`"):
        made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in ({"sparse": True}, {"value_clip": 0.0}, {"scale_rewards": True}, {"advantage": "group"}):
            made(**quiet)


def test_the_value_clip_slows_the_critic_where_rewards_are_not_scaled():
    """Returns are near 20; one update moves the values by 2.8 towards them with the clip, by 7.4 without."""
    found = {}
    for clip in (0.2, 0.0):
        actor_critic = ppo_model()
        rollout = rolled_out(actor_critic, Scripted(reward=1.0))
        before = rollout.value
        run_update(actor_critic, rollout, actor="hold", value_clip=clip, critic_lr=3e-3)
        after = actor_critic.critic(rollout.obs["features"])
        found[clip] = float((after - before).mean())
    assert 0.0 < found[0.2] < 0.5 * found[0.0]
