"""Meta-World 3 (50 tabletop tasks, MuJoCo) with state observations and a visible goal: `make_env` adapts one task."""

import os
import sys
from collections.abc import Mapping
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowpolicy.embodiment import Embodiment, KeySpec

_INSTALL = 'Meta-World is not installed; pip install "flowpolicy[metaworld]"'
_NO_RENDERER = (
    "Meta-World: {reason}. Pictures need OpenGL: set MUJOCO_GL=egl before Python starts and install a driver "
    "(Debian: apt-get install libegl1 libgl1 libegl-mesa0). State observations need none: render=False"
)
_HAND = 4  # observation entries 0..3: hand x, y, z and gripper opening; objects follow, 7 entries each
_GOAL = 36  # observation entries 36..38; 18..35 repeat 0..17 of the step before, which `obs_horizon` already offers


def make_env(id: str, *, obs: str = "state", max_episode_steps: int = 200, render: bool = False) -> gymnasium.Env:
    """One Meta-World task.

    id: e.g. "assembly-v3".   obs: "state", the only kind this adapter gives.
    Raises ImportError without Meta-World, ValueError for an unknown id or obs.
    """
    if obs != "state":
        raise ValueError(f"task.obs: Meta-World gives 'state', got {obs!r}")
    return MetaWorldEnv(id, max_episode_steps=max_episode_steps, render=render)


@final
class MetaWorldEnv(gymnasium.Env):
    """Observation: agent_pos (hand position, gripper opening), env_state (pose of each object, the way from the hand to
    each, the way from the first object to the goal, goal position). The differences are what ManiSkill's state
    observations hold too: ten demonstrations are too few to learn to subtract.

    Action: hand displacement as a fraction of 1 cm per step (3), gripper effort (1, positive closes), all in [-1, 1].
    Every seed draws object and goal positions anew (not one of the benchmark's 50 frozen tasks).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(self, id: str, *, max_episode_steps: int, render: bool) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"task.max_episode_steps: must be at least 1, got {max_episode_steps}")
        if render and "mujoco" not in sys.modules and "DISPLAY" not in os.environ:
            os.environ.setdefault("MUJOCO_GL", "egl")  # osmesa corrupts frames when one of two renderers closes
        self.base = _make_base(id)
        self.render_mode = "rgb_array" if render else None
        self.max_episode_steps = max_episode_steps
        self._objects = len(self.base._get_pos_objects()) // 3
        self.embodiment = _embodiment(self.base, self._objects)
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, spec.shape, np.float32) for key, spec in self.embodiment.obs.items()}
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._renderer: Any = None
        self._steps = 0
        self.raw_obs = np.zeros(39)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """First observation of the episode that `seed` fixes. `raw_obs` is Meta-World's own, for the experts."""
        super().reset(seed=seed)
        self._steps = 0
        self.base.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        self.raw_obs, _ = self.base.reset()
        return self._split(), {"success": False}

    def step(
        self, action: NDArray[np.floating]
    ) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """One control step (1/80 s); the action is clipped to [-1, 1]."""
        self.raw_obs, reward, _, _, info = self.base.step(np.clip(np.asarray(action, np.float32), -1.0, 1.0))
        self._steps += 1
        success = bool(info["success"])
        return self._split(), float(reward), success, self._steps >= self.max_episode_steps, {"success": success}

    def render(self) -> NDArray[np.uint8]:
        """(240, 320, 3) picture from the camera "corner3"."""
        if self.render_mode is None:
            raise RuntimeError(_NO_RENDERER.format(reason="this environment was made with render=False"))
        import mujoco

        if self._renderer is None:
            fatal: type[Exception] = mujoco.FatalError  # pyright: ignore[reportAttributeAccessIssue]
            try:
                self._renderer = mujoco.Renderer(self.base.model, 240, 320)
            except (RuntimeError, ImportError, AttributeError, fatal) as error:  # what the GL loaders raise
                raise RuntimeError(_NO_RENDERER.format(reason=f"no OpenGL context ({error})")) from error
        self._renderer.update_scene(self.base.data, camera="corner3")
        flags = mujoco.mjtRndFlag  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without stubs
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0  # six times faster on a CPU
        return np.ascontiguousarray(self._renderer.render()[::-1, ::-1])  # Meta-World hangs this camera upside down

    def close(self) -> None:
        """Free the renderer and the simulator."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.base.close()

    def _split(self) -> dict[str, NDArray[np.float32]]:
        obs = self.raw_obs.astype(np.float32)
        # the true goal: Meta-World clips the one in the observation to a box that not every task's goals respect
        goal = np.asarray(self.base._get_pos_goal(), np.float32)
        poses = obs[_HAND : _HAND + 7 * self._objects]
        positions = poses.reshape(-1, 7)[:, :3]
        reach = (positions - obs[:3]).reshape(-1)
        return {
            "agent_pos": obs[:_HAND],
            "env_state": np.concatenate([poses, reach, goal - positions[0], goal]),
        }


def _make_base(id: str) -> Any:
    """Meta-World's raw environment, drawing its random positions from `seed()`, with the goal in the observation."""
    environments = _environments()
    if id not in environments:
        raise ValueError(f"task.id: Meta-World knows no {id!r}; it knows {', '.join(environments)}")
    base = environments[id]()
    # what its own "goal-observable" classes set, except that positions come from the seeded generator
    base._partially_observable = False
    base._freeze_rand_vec = False
    base._set_task_called = True
    base.seeded_rand_vec = True
    base.max_path_length = sys.maxsize  # the step limit is the adapter's
    del base.sawyer_observation_space  # cached for a hidden goal
    base.seed(0)
    base.reset()
    return base


def _environments() -> Mapping[str, Any]:
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return ALL_V3_ENVIRONMENTS


def _embodiment(base: Any, objects: int) -> Embodiment:
    pose = ("x", "y", "z", "qx", "qy", "qz", "qw")
    names = tuple(f"object{i}.{entry}" for i in range(objects) for entry in pose)
    names += tuple(f"hand_to_object{i}.{axis}" for i in range(objects) for axis in "xyz")
    names += tuple(f"object0_to_goal.{axis}" for axis in "xyz") + ("goal.x", "goal.y", "goal.z")
    return Embodiment(
        robot="sawyer",
        obs={
            "agent_pos": KeySpec((_HAND,), "m, gripper 0..1", "world", ("hand.x", "hand.y", "hand.z", "gripper")),
            "env_state": KeySpec((len(names),), "m, quaternions xyzw", "world", names),
        },
        action=KeySpec((4,), "1 = 0.01 m per step, gripper effort", "world", ("dx", "dy", "dz", "gripper")),
        action_kind="eef_delta",
        control_hz=float(round(1.0 / base.dt)),
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        gripper="action -1 opens, 1 closes; observed 0 closed, 1 open",
    )
