"""Expert of the two-ways task: round the obstacle on the side that the seed picks, keeping a clearance."""

from typing import final

import numpy as np
from numpy.typing import NDArray

from flowpolicy.data.store import Episode
from flowpolicy_envs.toy import EMBODIMENT, MAX_SPEED, OBSTACLE, make_env

_ASIDE = 0.5  # m
_SPEED = 1.4  # m/s, leaves room in the action bounds
_NOISE = 0.05  # m/s, so that the demonstrations cover a tube and not a line


def make_expert(id: str = "two-ways", *, obs: str = "state", max_episode_steps: int = 100) -> "TwoWaysExpert":
    """
    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.

    Raises:
        ValueError: For an unknown id or obs.
    """
    return TwoWaysExpert(id, obs=obs, max_episode_steps=max_episode_steps)


@final
class TwoWaysExpert:
    """Even seeds go left, odd seeds right: equally often, and independent of start and goal.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed.
        max_episode_steps: Control steps after which an episode is cut off.
    """

    embodiment = EMBODIMENT

    def __init__(self, id: str, *, obs: str, max_episode_steps: int) -> None:
        self._env = make_env(id, obs=obs, max_episode_steps=max_episode_steps)

    def episode(self, seed: int) -> Episode:
        """One attempt, until the goal.

        Args:
            seed: Of the episode.
        """
        rng = np.random.default_rng([seed, 1])  # a stream of its own: the environment's is default_rng(seed)
        side = 1.0 if seed % 2 == 0 else -1.0
        seen, action, reward, done, success = [], [], [], False, False
        obs, _ = self._env.reset(seed=seed)
        while not done:
            velocity = _velocity(obs["agent_pos"], obs["env_state"], side) + rng.normal(0.0, _NOISE, 2)
            seen.append(obs)
            action.append(np.clip(velocity, -MAX_SPEED, MAX_SPEED).astype(np.float32))
            obs, step_reward, terminated, truncated, info = self._env.step(action[-1])
            reward.append(step_reward)
            done, success = terminated or truncated, info["success"]
        stacked = {key: np.stack([o[key] for o in seen]) for key in seen[0]}
        return Episode(stacked, np.stack(action), np.asarray(reward, np.float32), success, seed)

    def close(self) -> None:
        """Nothing to free."""
        self._env.close()


def _velocity(position: NDArray[np.float32], goal: NDArray[np.float32], side: float) -> NDArray[np.float64]:
    """Aside at first, then straight to the goal."""
    if side * position[1] < _ASIDE - 0.1 and position[0] < OBSTACLE[0]:
        return np.array([0.7, side * 1.4])
    to_goal = goal - position
    return _SPEED * to_goal / np.linalg.norm(to_goal)
