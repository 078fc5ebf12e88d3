"""Expert of the two-ways task: round the obstacle on the side that the seed picks, keeping a clearance."""

from typing import final

import numpy as np
from numpy.typing import NDArray

from flowpolicy.data.store import Episode
from flowpolicy_envs.toy import CONTROL_HZ, EMBODIMENT, MAX_SPEED, OBSTACLE, OBSTACLE_RADIUS, make_env

_CLEARANCE = 0.2  # m kept from the obstacle: a policy that is half a clearance off still gets past
_SPEED = 0.75  # m/s, leaves room in the action bounds
_NOISE = 0.03  # m/s, so that the demonstrations cover a tube and not a line


def make_expert(id: str = "two-ways", *, obs: str = "state", max_episode_steps: int = 100) -> "TwoWaysExpert":
    """Raises ValueError for an unknown id or obs."""
    return TwoWaysExpert(id, obs=obs, max_episode_steps=max_episode_steps)


@final
class TwoWaysExpert:
    """Even seeds go left, odd seeds right: equally often, and independent of start and goal."""

    embodiment = EMBODIMENT

    def __init__(self, id: str, *, obs: str, max_episode_steps: int) -> None:
        self._env = make_env(id, obs=obs, max_episode_steps=max_episode_steps)

    def episode(self, seed: int) -> Episode:
        """One attempt, until the goal."""
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
    """Straight to the goal where that is free, else along the tangent to the circle at the clearance, on `side`."""
    to_goal = (goal - position).astype(np.float64)
    to_centre = OBSTACLE - position
    radius, distance = OBSTACLE_RADIUS + _CLEARANCE, float(np.linalg.norm(to_centre))
    along = float(to_centre @ to_goal) / float(np.linalg.norm(to_goal))
    if along <= 0.0 or distance**2 - along**2 >= radius**2:
        speed = min(_SPEED, CONTROL_HZ * float(np.linalg.norm(to_goal)))
        return speed * to_goal / float(np.linalg.norm(to_goal))
    angle = side * np.arcsin(min(1.0, radius / distance))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return _SPEED * turn @ (to_centre / distance)
