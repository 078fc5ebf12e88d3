"""A point mass with a round obstacle between start and goal: two equally good ways, and the mean of them collides."""

from typing import Any, final

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from flowpolicy.embodiment import Embodiment, KeySpec

OBSTACLE = np.zeros(2)
OBSTACLE_RADIUS = 0.15  # m
START, GOAL = np.array([-0.6, 0.0]), np.array([0.9, 0.0])  # m; each varies by up to SPREAD in x and y
SPREAD = 0.03
GOAL_RADIUS = 0.15  # m; closer is success
MAX_SPEED = 1.6  # m/s per axis
CONTROL_HZ = 10.0
# An episode is 12 to 15 steps and the obstacle 4 steps away, so the first executed chunk decides: a policy that takes
# the average of the ways has hit the obstacle before it looks again.
_ARENA = 1.2  # m; positions are clipped to [-_ARENA, _ARENA]

EMBODIMENT = Embodiment(
    robot="point mass",
    obs={
        "agent_pos": KeySpec((2,), "m", "world", ("x", "y")),
        "env_state": KeySpec((2,), "m", "world", ("goal.x", "goal.y")),
    },
    action=KeySpec((2,), "m/s", "world", ("vx", "vy")),
    action_kind="velocity",
    control_hz=CONTROL_HZ,
    action_low=(-MAX_SPEED, -MAX_SPEED),
    action_high=(MAX_SPEED, MAX_SPEED),
)


def make_env(
    id: str = "two-ways", *, obs: str = "state", max_episode_steps: int = 100, render: bool = False
) -> gymnasium.Env:
    """The only task is "two-ways", its only observation "state"; it can always be rendered.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render` will be asked for frames.

    Raises:
        ValueError: For another id or obs.
    """
    if id != "two-ways" or obs != "state":
        raise ValueError(f"task: toy has id=two-ways with obs=state, got id={id} with obs={obs}")
    return TwoWaysEnv(max_episode_steps=max_episode_steps, render=render)


def way_of(positions: NDArray[np.floating]) -> str:
    """Which way a path (T, 2) took round the obstacle, seen in its direction: "left", "right", or "" before passing.

    Args:
        positions: (T, 2), m.
    """
    passed = np.flatnonzero(positions[:, 0] > OBSTACLE[0])
    if not len(passed):
        return ""
    return "left" if positions[passed[0], 1] > OBSTACLE[1] else "right"


def move(position: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """One control step of N point masses.

    Args:
        position: (N, 2), m.
        velocity: (N, 2), m/s, clipped to MAX_SPEED per axis.

    Returns:
        The next positions (N, 2) and which masses (N,) hit the obstacle on the way: a step is long enough to cut its
        edge, so the whole segment counts.
    """
    after = (position + velocity.clamp(-MAX_SPEED, MAX_SPEED) / CONTROL_HZ).clamp(-_ARENA, _ARENA)
    segment = after - position
    to_obstacle = torch.from_numpy(OBSTACLE).to(position) - position
    length = segment.square().sum(-1).clamp_min(1e-12)
    share = ((to_obstacle * segment).sum(-1) / length).clamp(0.0, 1.0)  # where on the segment it is closest
    distance = (to_obstacle - share[:, None] * segment).norm(dim=-1)
    return after, distance < OBSTACLE_RADIUS


def at_goal(position: Tensor, goal: Tensor) -> Tensor:
    """(N, 2), (N, 2), m -> (N,) bool.

    Args:
        position: (N, 2), m.
        goal: (N, 2), m.
    """
    return (position - goal).norm(dim=-1) < GOAL_RADIUS


@final
class TwoWaysEnv(gymnasium.Env):
    """Observation: agent_pos (x, y), env_state (goal x, y). Action: velocity (m/s), held for 0.1 s.

    Ends with success at the goal and without it at the obstacle. info["way"] is "left" or "right" once the obstacle is
    passed; info["outcome"] is that, or "collision". Reward is 1 at the goal, else 0.

    Args:
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render` will be asked for frames.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}
    embodiment = EMBODIMENT

    def __init__(self, *, max_episode_steps: int, render: bool) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}")
        self.max_episode_steps = max_episode_steps
        self.render_mode = "rgb_array" if render else None
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-_ARENA, _ARENA, spec.shape, np.float32) for key, spec in EMBODIMENT.obs.items()}
        )
        self.action_space = spaces.Box(-MAX_SPEED, MAX_SPEED, (2,), np.float32)
        self._path: list[NDArray[np.float64]] = []
        self._goal = GOAL

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Start and goal near their means, fixed by the seed.

        Args:
            seed: Of the episode; None goes on with the generator as it is.
            options: Not used; gymnasium's interface has it.
        """
        super().reset(seed=seed)
        self._path = [START + self.np_random.uniform(-SPREAD, SPREAD, 2)]
        self._goal = GOAL + self.np_random.uniform(-SPREAD, SPREAD, 2)
        return self._observe(), {"success": False, "way": "", "outcome": ""}

    def step(
        self, action: NDArray[np.floating]
    ) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """Move for 1 / CONTROL_HZ seconds; the action is clipped to the action space.

        Args:
            action: (2,), m/s.
        """
        velocity = torch.from_numpy(np.asarray(action, np.float64))[None]
        after, hit = move(torch.from_numpy(self._path[-1])[None], velocity)
        self._path.append(after[0].numpy())
        collision, success = bool(hit), bool(at_goal(after, torch.from_numpy(self._goal)[None]))
        way = way_of(np.stack(self._path))
        info = {"success": success, "way": way, "outcome": "collision" if collision else way}
        truncated = len(self._path) > self.max_episode_steps
        return self._observe(), float(success), success or collision, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """(256, 256, 3) picture from above, x to the right: obstacle grey, goal green, path so far blue."""
        axis = np.linspace(-1.1, 1.1, 256)
        pixels = np.stack(np.meshgrid(axis, -axis), axis=-1)  # (256, 256, 2)
        picture = np.full((256, 256, 3), 255, np.uint8)
        discs = [(OBSTACLE, OBSTACLE_RADIUS, (120, 120, 120)), (self._goal, GOAL_RADIUS, (90, 190, 110))]
        discs += [(point, 0.012, (150, 180, 230)) for point in self._path] + [(self._path[-1], 0.035, (40, 90, 200))]
        for centre, radius, colour in discs:
            picture[np.linalg.norm(pixels - centre, axis=-1) < radius] = colour
        return picture

    def _observe(self) -> dict[str, NDArray[np.float32]]:
        return {"agent_pos": self._path[-1].astype(np.float32), "env_state": self._goal.astype(np.float32)}
