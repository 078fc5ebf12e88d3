"""Expert of the reach task: straight to the goal with noise on every step, so that imitating it is not enough."""

from typing import final

import numpy as np

from flowpolicy.data.store import Episode
from flowpolicy_envs.reach import EMBODIMENT, STEP, make_env


def make_expert(
    id: str = "reach", *, obs: str = "state", max_episode_steps: int = 40, noise: float = 0.5
) -> "ReachExpert":
    """noise: standard deviation of what is added to each action, whose bounds are -1 and 1.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.
        noise: Standard deviation of what is added to each action.
    """
    return ReachExpert(id, obs=obs, max_episode_steps=max_episode_steps, noise=noise)


@final
class ReachExpert:
    """Takes the largest step that does not pass the goal, plus noise.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed.
        max_episode_steps: Control steps after which an episode is cut off.
        noise: Standard deviation of what is added to each action.
    """

    embodiment = EMBODIMENT

    def __init__(self, id: str, *, obs: str, max_episode_steps: int, noise: float) -> None:
        self._env, self._noise = make_env(id, obs=obs, max_episode_steps=max_episode_steps), noise

    def episode(self, seed: int) -> Episode:
        """One attempt, until success or the limit.

        Args:
            seed: Of the episode.
        """
        rng = np.random.default_rng([seed, 1])  # a stream of its own: the environment's is default_rng(seed)
        seen, action, reward, done, success = [], [], [], False, False
        obs, _ = self._env.reset(seed=seed)
        while not done:
            wanted = np.clip((obs["env_state"] - obs["agent_pos"]) / STEP, -1.0, 1.0)
            seen.append(obs)
            action.append(np.clip(wanted + rng.normal(0.0, self._noise, 2), -1.0, 1.0).astype(np.float32))
            obs, step_reward, terminated, truncated, info = self._env.step(action[-1])
            reward.append(step_reward)
            done, success = terminated or truncated, info["success"]
        stacked = {key: np.stack([o[key] for o in seen]) for key in seen[0]}
        return Episode(stacked, np.stack(action), np.asarray(reward, np.float32), success, seed)

    def close(self) -> None:
        """Nothing to free."""
        self._env.close()
