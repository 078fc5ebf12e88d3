"""Reaching in the plane: any start, any goal, success within 5 cm; what fine-tuning is tested on in seconds."""

from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowpolicy.embodiment import Embodiment, KeySpec

STEP = 0.1  # m that an action of 1 moves
GOAL_RADIUS = 0.05  # m; closer is success
EMBODIMENT = Embodiment(
    robot="reaching point",
    obs={
        "agent_pos": KeySpec((2,), "m", "world", ("x", "y")),
        "env_state": KeySpec((2,), "m", "world", ("goal.x", "goal.y")),
    },
    action=KeySpec((2,), "0.1 m per step", "world", ("dx", "dy")),
    action_kind="displacement",
    control_hz=10.0,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
)
Observation = dict[str, NDArray[np.float32]]


def make_env(id: str = "reach", *, obs: str = "state", max_episode_steps: int = 40, render: bool = False) -> "ReachEnv":
    """The only task is "reach", its only observation "state". Raises ValueError for another.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render` will be asked for frames.
    """
    if id != "reach" or obs != "state":
        raise ValueError(f"task: reach has id=reach with obs=state, got id={id} with obs={obs}")
    return ReachEnv(max_episode_steps=max_episode_steps, render=render)


@final
class ReachEnv(gymnasium.Env):
    """Observation: agent_pos and env_state (the goal), both from U[-1, 1]^2. Action: displacement in tenths of a metre.

    Success within GOAL_RADIUS ends the episode. Reward is 1 there, else 0.

    Args:
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render` will be asked for frames.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    embodiment = EMBODIMENT

    def __init__(self, *, max_episode_steps: int, render: bool) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}")
        self.max_episode_steps = max_episode_steps
        self.render_mode = "rgb_array" if render else None
        self.observation_space = spaces.Dict({key: spaces.Box(-9.0, 9.0, (2,), np.float32) for key in EMBODIMENT.obs})
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._steps, self._x, self._y = 0, 0.0, 0.0
        self._goal = (0.0, 0.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start and goal, fixed by the seed.

        Args:
            seed: Of the episode; None goes on with the generator as it is.
            options: Not used; gymnasium's interface has it.
        """
        super().reset(seed=seed)
        self._x, self._y, *goal = self.np_random.uniform(-1.0, 1.0, 4).tolist()
        self._goal, self._steps = (goal[0], goal[1]), 0
        return self._observe(), {"success": self._at_goal()}

    def step(self, action: NDArray[np.floating]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The action is clipped to [-1, 1].

        Args:
            action: (2,), -1 to 1.
        """
        dx, dy = (min(1.0, max(-1.0, float(value))) for value in action)  # plain numbers: an array costs more than this
        self._x, self._y, self._steps = self._x + STEP * dx, self._y + STEP * dy, self._steps + 1
        success = self._at_goal()
        return self._observe(), float(success), success, self._steps >= self.max_episode_steps, {"success": success}

    def render(self) -> NDArray[np.uint8]:
        """(256, 256, 3) picture from above, x to the right: goal green, point blue."""
        axis = np.linspace(-1.5, 1.5, 256)
        pixels = np.stack(np.meshgrid(axis, -axis), axis=-1)  # (256, 256, 2)
        picture = np.full((256, 256, 3), 255, np.uint8)
        discs = ((self._goal, GOAL_RADIUS, (90, 190, 110)), ((self._x, self._y), 0.03, (40, 90, 200)))
        for centre, radius, colour in discs:
            picture[np.linalg.norm(pixels - centre, axis=-1) < radius] = colour
        return picture

    def _at_goal(self) -> bool:
        return ((self._x - self._goal[0]) ** 2 + (self._y - self._goal[1]) ** 2) ** 0.5 < GOAL_RADIUS

    def _observe(self) -> Observation:
        return {"agent_pos": np.array((self._x, self._y), np.float32), "env_state": np.array(self._goal, np.float32)}
