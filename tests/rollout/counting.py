"""An environment whose every number is known in advance, and policies for it."""

import os

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from flowpolicy.embodiment import Embodiment, KeySpec

EMBODIMENT = Embodiment(
    robot="counter",
    obs={"agent_pos": KeySpec((3,), names=("step", "seed", "last_action"))},
    action=KeySpec((1,)),
    action_kind="number",
    control_hz=10.0,
    action_low=(-100.0,),
    action_high=(100.0,),
)


def length(seed: int) -> int:
    """Steps until the episode of `seed` ends: 2 to 5."""
    return 2 + seed % 4


class CountingEnv(gymnasium.Env):
    """Reward of step k is k. The episode ends after `length(seed)` steps: with success for an even seed, by truncation
    for an odd one."""

    metadata = {}
    embodiment = EMBODIMENT
    observation_space = spaces.Dict({"agent_pos": spaces.Box(-1e9, 1e9, (3,), np.float32)})
    action_space = spaces.Box(-100.0, 100.0, (1,), np.float32)

    def __init__(self, *, crash_at: int = -1, random_reward: bool = False):
        self.crash_at, self.random_reward = crash_at, random_reward
        self.count = self.episode_seed = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.episode_seed, self.options = 0, seed, options
        return self.observe(0.0), {}

    def step(self, action):
        self.count += 1
        if self.count == self.crash_at:
            os._exit(3)
        ended, success = self.count >= length(self.episode_seed), self.episode_seed % 2 == 0
        reward = float(self.count)
        if self.random_reward:
            reward += float(self.np_random.random()) + float(action[0])
        info = {"success": ended and success, "outcome": f"at {self.count}"}
        return self.observe(float(action[0])), reward, ended and success, ended and not success, info

    def observe(self, last_action):
        return {"agent_pos": np.array([self.count, self.episode_seed, last_action], np.float32)}

    def render(self):
        return np.full((33, 20, 3), self.count * 10, np.uint8)


class CountingPolicy:
    """Action i of a chunk made at step s is 10 s + i, plus noise when asked for; remembers what it saw."""

    def __init__(self, *, obs_horizon=1, action_horizon=2, noise=0.0, embodiment=EMBODIMENT):
        self.device = torch.device("cpu")
        self.embodiment, self.obs_keys, self.obs_horizon = embodiment, ("agent_pos",), obs_horizon
        self.action_horizon, self.noise, self.seen = action_horizon, noise, []

    def predict(self, obs, *, sampler, generator):
        self.seen.append(obs["agent_pos"][0].clone())
        step = obs["agent_pos"][:, -1, :1, None]
        chunk = 10 * step + torch.arange(self.action_horizon, dtype=torch.float32)[None, :, None]
        return chunk + self.noise * torch.randn(chunk.shape, generator=generator)
