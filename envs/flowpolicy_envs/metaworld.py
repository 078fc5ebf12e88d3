"""Meta-World 3 (50 tabletop tasks, MuJoCo): `make_env` adapts one task to states, point clouds or pictures.

Seen from DP3's camera: "corner2" moved to (0.6, 0.295, 0.8) m. The goal is visible in every kind of observation: in
clouds and pictures it is the small sphere that Meta-World draws there, which DP3's data show as well.
"""

import sys
from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import Any, Literal, final, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.extras import how_to_install
from flowpolicy.pointcloud.cloud import EmptyCropError, make_cloud, unproject
from flowpolicy_envs.rendering import mujoco as rendering
from flowpolicy_envs.view import View  # configs and older checkpoints name it as of this module

Obs = Literal["state", "point_cloud", "rgb"]
Observation = dict[str, NDArray[Any]]
CAMERA = "corner2"

_CAMERA_POSITION = (0.6, 0.295, 0.8)  # m; DP3 moves the camera closer and keeps its direction
_FILM_CAMERA, _FILM_SIZE = "corner3", (240, 320)
_HAND = 4  # observation entries 0..3: hand x, y, z and gripper opening; objects follow, 7 entries each

# 128 pixels as in DP3. Above 2 mm, as there, there is no table but all of the goal's marker in coffee-pull-v3, 1 cm
# high. What else DP3 keeps is mostly arm and table edge, beyond y = 0.95 and z = 0.35; without it 3 to 10 times as many
# of the 512 points lie on the object.
VIEW = View(depth_size=128, crop_low=(-0.5, 0.3, 0.002), crop_high=(0.5, 0.95, 0.35))


def make_env(
    id: str, *, obs: Obs = "state", max_episode_steps: int = 200, render: bool = False, view: View | None = None
) -> gymnasium.Env:
    """One Meta-World task.

    Args:
        id: e.g. "assembly-v3".
        obs: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render()` is wanted.
        view: Camera, cloud and renderer; None is VIEW.

    Raises:
        ImportError: Without Meta-World.
        ValueError: For an unknown id or obs; the first picture raises RuntimeError when nothing can draw it.
    """
    if obs not in get_args(Obs):
        raise ValueError(f"`obs`: Meta-World gives {', '.join(get_args(Obs))}, got {obs!r}")
    return MetaWorldEnv(id, obs=obs, max_episode_steps=max_episode_steps, render=render, view=view or VIEW)


@final
class MetaWorldEnv(gymnasium.Env):
    """Observation: agent_pos (hand position, gripper opening), and

    - state: env_state (pose of each object, the way from the hand to each, the way from the first object to the goal,
      goal position). The differences are what ManiSkill's state observations hold too: ten demonstrations are too few
      to learn to subtract.
    - point_cloud: point_cloud (points, 3 or 6), metres in the world's frame.
    - rgb: image_corner2 (size, size, 3) uint8.

    Action: hand displacement as a fraction of 1 cm per step (3), gripper effort (1, positive closes), all in [-1, 1].
    Every seed draws object and goal positions anew (not one of the benchmark's 50 frozen tasks).

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render` will be asked for frames.
        view: What is seen: cameras, image size, cloud.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(self, id: str, *, obs: Obs, max_episode_steps: int, render: bool, view: View) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}")
        rendering.choose_platform(view.renderer)
        self.base = _make_base(id)
        self.render_mode = "rgb_array" if render else None
        self.max_episode_steps = max_episode_steps
        self._obs, self._view = obs, view
        self._objects = len(self.base._get_pos_objects()) // 3
        self.embodiment = _embodiment(self.base, _obs_specs(obs, self._objects, view))
        self.observation_space = spaces.Dict({key: _space(spec) for key, spec in self.embodiment.obs.items()})
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._renderer: rendering.Renderer | None = None
        self._steps = 0
        self._seen: Observation = {}
        self.raw_obs = np.zeros(39)
        model = self.base.model
        model.cam_pos[model.camera(CAMERA).id] = _CAMERA_POSITION
        self._intrinsics = rendering.intrinsics(model, CAMERA, view.depth_size, view.depth_size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """First observation of the episode that `seed` fixes. `raw_obs` is Meta-World's own, for the experts.

        Args:
            seed: Of the episode; None goes on with the generator as it is.
            options: Not used; gymnasium's interface has it.
        """
        super().reset(seed=seed)
        self._steps = 0
        self.base.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        self.raw_obs, _ = self.base.reset()
        self._seen = self._observe()
        return self._seen, {"success": self._solved()}

    def step(self, action: NDArray[np.floating]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step (1/80 s); the action is clipped to [-1, 1].

        An episode ends as a failure, outcome "nothing in sight", when the crop of the cloud is empty: what a bad policy
        has swept from the table must not end an evaluation. The last observation is then the one before.

        Args:
            action: (A,), robot units.
        """
        self.raw_obs, reward, _, _, info = self.base.step(np.clip(np.asarray(action, np.float32), -1.0, 1.0))
        self._steps += 1
        told: dict[str, Any] = {"success": bool(info["success"])}
        try:
            self._seen = self._observe()
        except EmptyCropError:
            told |= {} if told["success"] else {"outcome": "nothing in sight"}
        ends = told["success"] or "outcome" in told
        return self._seen, float(reward), ends, self._steps >= self.max_episode_steps, told

    def render(self) -> NDArray[np.uint8]:
        """(240, 320, 3) picture from the camera "corner3"."""
        if self.render_mode is None:
            raise RuntimeError("Meta-World: no pictures: this environment was made with render=False")
        return self._picture(_FILM_CAMERA, *_FILM_SIZE)

    def close(self) -> None:
        """Free the renderer and the simulator."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.base.close()

    def _solved(self) -> bool:
        """Whether Meta-World's own rule calls the first state a success, as it would after an action that does nothing.

        Asked of a copy, since `reset` leaves the sites where they were before and some rules remember their first call.
        """
        import mujoco

        base = vars(self.base)
        kept = dict(base)
        base["data"] = copy(self.base.data)
        try:
            mujoco.mj_forward(self.base.model, base["data"])  # pyright: ignore
            _, info = self.base.evaluate_state(self.base._get_obs(), np.zeros(4, np.float32))
        finally:
            base.clear()
            base.update(kept)
        return bool(info["success"])

    def _observe(self) -> Observation:
        agent_pos = self.raw_obs[:_HAND].astype(np.float32)
        if self._obs == "state":
            return {"agent_pos": agent_pos, "env_state": self._env_state()}
        for name, position in self.base._target_site_config:  # Meta-World itself moves the marker at the first step
            self.base._set_pos_site(name, position)
        if self._obs == "rgb":
            size = self._view.image_size
            return {"agent_pos": agent_pos, f"image_{CAMERA}": self._picture(CAMERA, size, size)}
        size, data = self._view.depth_size, self.base.data
        depth = self._drawer().depth(data, CAMERA, size, size)
        points = unproject(depth, self._intrinsics, rendering.camera_to_world(data, CAMERA))
        if self._view.color:
            picture = self._drawer().color(data, CAMERA, size, size)  # as it comes: pixel for pixel with the depth
            points = np.concatenate([points, picture.reshape(-1, 3) / np.float32(255)], axis=1)
        return {"agent_pos": agent_pos, "point_cloud": make_cloud(points, self._view.cloud)}

    def _env_state(self) -> NDArray[np.float32]:
        obs = self.raw_obs.astype(np.float32)
        # the true goal: Meta-World clips the one in the observation to a box that not every task's goals respect
        goal = np.asarray(self.base._get_pos_goal(), np.float32)
        poses = obs[_HAND : _HAND + 7 * self._objects]
        positions = poses.reshape(-1, 7)[:, :3]
        reach = (positions - obs[:3]).reshape(-1)
        return np.concatenate([poses, reach, goal - positions[0], goal])

    def _picture(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        picture = self._drawer().color(self.base.data, camera, height, width)
        return np.ascontiguousarray(picture[::-1, ::-1])  # Meta-World hangs its cameras upside down

    def _drawer(self) -> rendering.Renderer:
        """Made when the first picture is due: states need none."""
        if self._renderer is None:
            height, width = (max(self._view.image_size, self._view.depth_size, edge) for edge in _FILM_SIZE)
            samples = 0 if self._obs == "point_cloud" else 4
            self._renderer = rendering.open_renderer(
                self.base.model, self._view.renderer, max_height=height, max_width=width, samples=samples
            )
        return self._renderer


def _make_base(id: str) -> Any:
    """Meta-World's raw environment, drawing its random positions from `seed()`, with the goal in the observation."""
    environments = _environments()
    if id not in environments:
        raise ValueError(f"`id`: Meta-World knows no {id!r}; it knows {', '.join(environments)}")
    base = environments[id]()
    # what its own "goal-observable" classes set, except that positions come from the seeded generator
    base._partially_observable = False
    base._freeze_rand_vec = False
    base._set_task_called = True
    base.seeded_rand_vec = True
    base.max_path_length = sys.maxsize  # the step limit is the adapter's
    del base.sawyer_observation_space  # cached for a hidden goal
    base.touching_object = partial(_touching, base)
    base.seed(0)
    base.reset()
    return base


def _touching(base: Any, object_geom_id: int) -> bool:
    """Meta-World's own `touching_object`, whose two Python loops over all contacts are a third of its step."""
    geoms, force = base.data.contact.geom, base.data.efc_force  # (N, 2)
    with_object = (geoms == object_geom_id).any(axis=1)
    for pad in ("leftpad_geom", "rightpad_geom"):
        contacts = with_object & (geoms == base.data.geom(pad).id).any(axis=1)
        if sum(force[base.data.contact.efc_address[contacts]]) <= 0:
            return False
    return True


def _environments() -> Mapping[str, Any]:
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise ImportError(f"Meta-World is not installed; {how_to_install('metaworld')}") from error
    return ALL_V3_ENVIRONMENTS


def _obs_specs(obs: Obs, objects: int, view: View) -> dict[str, KeySpec]:
    hand = KeySpec((_HAND,), "m, gripper 0..1", "world", ("hand.x", "hand.y", "hand.z", "gripper"))
    if obs == "point_cloud":
        return {"agent_pos": hand, "point_cloud": KeySpec(view.cloud.shape, "m", view.cloud.frame, cloud=view.cloud)}
    if obs == "rgb":
        image = KeySpec((view.image_size, view.image_size, 3), "0..255", f"camera:{CAMERA}", dtype="uint8")
        return {"agent_pos": hand, f"image_{CAMERA}": image}
    pose = ("x", "y", "z", "qx", "qy", "qz", "qw")
    names = tuple(f"object{i}.{entry}" for i in range(objects) for entry in pose)
    names += tuple(f"hand_to_object{i}.{axis}" for i in range(objects) for axis in "xyz")
    names += tuple(f"object0_to_goal.{axis}" for axis in "xyz") + ("goal.x", "goal.y", "goal.z")
    return {"agent_pos": hand, "env_state": KeySpec((len(names),), "m, quaternions xyzw", "world", names)}


def _space(spec: KeySpec) -> spaces.Box:
    if spec.dtype == "uint8":
        return spaces.Box(0, 255, spec.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, spec.shape, np.float32)


def _embodiment(base: Any, obs: dict[str, KeySpec]) -> Embodiment:
    return Embodiment(
        robot="sawyer",
        obs=obs,
        action=KeySpec((4,), "1 = 0.01 m per step, gripper effort", "world", ("dx", "dy", "dz", "gripper")),
        action_kind="eef_delta",
        control_hz=float(round(1.0 / base.dt)),
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        gripper="action -1 opens, 1 closes; observed 0 closed, 1 open",
    )
