"""Meta-World's scripted policies as experts, with their actions clipped to [-1, 1] before they are executed."""

import warnings
from typing import final

import numpy as np

from flowpolicy.data.store import Episode
from flowpolicy_envs.metaworld import MetaWorldEnv, make_env


def make_expert(id: str, *, obs: str = "state", max_episode_steps: int = 200, hold_steps: int = 8) -> "ScriptedExpert":
    """The scripted policy of one task.

    max_episode_steps: give up after so many steps without success.
    hold_steps: go on for so many steps after success, so that the end of the demonstration teaches to stay there.
    Raises ImportError without Meta-World, ValueError for an unknown task.
    """
    if hold_steps < 0:
        raise ValueError(f"expert.hold_steps: must not be negative, got {hold_steps}")
    return ScriptedExpert(id, obs=obs, max_episode_steps=max_episode_steps, hold_steps=hold_steps)


@final
class ScriptedExpert:
    """Runs the script past success, where the environment itself would end the episode."""

    def __init__(self, id: str, *, obs: str, max_episode_steps: int, hold_steps: int) -> None:
        env = make_env(id, obs=obs, max_episode_steps=max_episode_steps)
        assert isinstance(env, MetaWorldEnv)
        from metaworld.policies import ENV_POLICY_MAP

        self._env = env
        self._policy_class = ENV_POLICY_MAP[id]
        self._hold_steps = hold_steps
        self.embodiment = env.embodiment

    def episode(self, seed: int) -> Episode:
        """One attempt: until `hold_steps` after the first success, or the step limit."""
        policy = self._policy_class()  # new each time: some scripts remember the stage they are in
        seen, action, reward, success_at = [], [], [], None
        obs, _ = self._env.reset(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high", every step: hence the clipping
            while len(action) < (self._env.max_episode_steps if success_at is None else success_at + self._hold_steps):
                clipped = np.clip(policy.get_action(self._env.raw_obs.copy()), -1.0, 1.0).astype(np.float32)
                seen.append(obs)
                action.append(clipped)
                obs, step_reward, success, _, _ = self._env.step(clipped)
                reward.append(step_reward)
                if success and success_at is None:
                    success_at = len(action)
        stacked = {key: np.stack([o[key] for o in seen]) for key in seen[0]}
        return Episode(stacked, np.stack(action), np.asarray(reward, np.float32), success_at is not None, seed)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()
