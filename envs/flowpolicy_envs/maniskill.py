"""ManiSkill 3 on the CPU with absolute joint targets: `make_env` adapts one task to states, point clouds or pictures.

Clouds and pictures come from the task's own cameras. ManiSkill hides markers of the goal from them and tells the goal's
position instead, in tasks that have one: the keys goal_pos and tcp_to_goal.
"""

from typing import Any, Literal, final, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowpolicy.embodiment import Embodiment, KeySpec
from flowpolicy.pointcloud.cloud import EmptyCropError, make_cloud
from flowpolicy_envs.maniskill_assets import import_mani_skill, makable
from flowpolicy_envs.rendering import maniskill as rendering
from flowpolicy_envs.view import View  # configs and older checkpoints name it as of this module

Obs = Literal["state", "point_cloud", "rgb"]
Observation = dict[str, NDArray[Any]]

_MODES = {"state": "state_dict", "point_cloud": "rgb+depth", "rgb": "rgb"}
JOINTS = ("agent.qpos", "agent.qvel")

# Depth: a cube of 4 cm is 25 pixels with ManiSkill's 128 and 95 with 256, which takes hardly longer to draw. The box
# holds the cubes and the gripper of the tabletop tasks, and of the table (z = 0) nothing: depth comes in whole
# millimetres.
VIEW = View(depth_size=256, crop_low=(-0.3, -0.3, 0.005), crop_high=(0.3, 0.3, 0.35))


def make_env(
    id: str, *, obs: Obs = "state", max_episode_steps: int = 200, render: bool = False, view: View | None = None
) -> gymnasium.Env:
    """One ManiSkill task, simulated by PhysX on the CPU.

    Args:
        id: e.g. "PickCube-v1".
        obs: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render()` is wanted.
        view: Cameras and cloud; None is VIEW.

    Raises:
        ImportError: Without ManiSkill.
        ValueError: For an unknown id or obs.
        RuntimeError: When nothing can draw and something must be drawn.
    """
    if obs not in get_args(Obs):
        raise ValueError(f"`obs`: ManiSkill gives {', '.join(get_args(Obs))}, got {obs!r}")
    return ManiSkillEnv(id, obs=obs, max_episode_steps=max_episode_steps, render=render, view=view or VIEW)


@final
class ManiSkillEnv(gymnasium.Env):
    """Observation: agent_pos (joint positions), and

    - state: agent_vel (joint velocities), env_state (the rest of ManiSkill's state observation, in its order).
    - point_cloud: point_cloud (points, 3 or 6) of all cameras together.
    - rgb: image_<camera> (size, size, 3) uint8 for each camera.

    Before and after agent_pos, where points or pictures are seen: tcp_pos, the point between the fingers, which the
    joint positions fix but few demonstrations teach to compute; and goal_pos and tcp_to_goal, the way there, where the
    task has a hidden goal.

    Action: absolute joint targets (rad), then the gripper in [-1 closed, 1 open] for robots that have one.

    Args:
        id: The task, by its name in the simulator.
        obs: What is observed: "state", "point_cloud" or "rgb".
        max_episode_steps: Control steps after which an episode is cut off.
        render: Whether `render` will be asked for frames.
        view: What is seen: cameras, image size, cloud.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    action_space: spaces.Box

    def __init__(self, id: str, *, obs: Obs, max_episode_steps: int, render: bool, view: View) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}")
        if view.renderer != "auto":
            raise ValueError(
                f"`renderer`: ManiSkill draws with Vulkan alone, got {view.renderer!r}; leave it at 'auto'"
            )
        self.base = _make_base(id, _MODES[obs], render, view.depth_size if obs == "point_cloud" else view.image_size)
        self.render_mode = "rgb_array" if render else None
        self.max_episode_steps = max_episode_steps
        self._obs, self._cloud = obs, view.cloud
        raw = self.base.get_obs()
        self.embodiment = embodiment(self.base, self._specs(raw))
        self.observation_space = spaces.Dict({key: _space(spec) for key, spec in self.embodiment.obs.items()})
        low, high = (np.asarray(b, np.float32) for b in (self.embodiment.action_low, self.embodiment.action_high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self._steps = 0
        self._seen: Observation = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """First observation of the episode that `seed` fixes.

        The scene is rebuilt, 0.2 s, because PhysX keeps contact state: once the cube has been touched, a later step may
        else differ, by up to 5e-3 in 12 replayed demonstrations.
        options={"keep_scene": True} spares that, for tasks whose seed draws only where things lie.

        Args:
            seed: Of the episode; None goes on with the generator as it is.
            options: Not used; gymnasium's interface has it.
        """
        super().reset(seed=seed)
        self._steps = 0
        rebuild = not (options or {}).get("keep_scene", False)
        obs, _ = self.base.reset(seed=seed, options={"reconfigure": rebuild})
        self._seen = self.observe(obs)
        return self._seen, {"success": bool(self.base.get_info()["success"])}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step; the action is clipped to the action space.

        An episode ends as a failure, outcome "nothing in sight", when the crop of the cloud is empty: what a bad policy
        has swept from the table must not end an evaluation. The last observation is then the one before.

        Args:
            action: (A,), robot units.
        """
        action = np.clip(np.asarray(action, np.float32), self.action_space.low, self.action_space.high)
        obs, reward, _, _, info = self.base.step(action)
        self._steps += 1
        told: dict[str, Any] = {"success": bool(info["success"])}
        try:
            self._seen = self.observe(obs)
        except EmptyCropError:
            told |= {} if told["success"] else {"outcome": "nothing in sight"}
        ends = told["success"] or "outcome" in told
        return self._seen, float(reward), ends, self._steps >= self.max_episode_steps, told

    def render(self) -> NDArray[np.uint8]:
        """(H, W, 3) picture of the scene."""
        if self.render_mode is None:
            raise RuntimeError("ManiSkill: no pictures: this environment was made with render=False")
        return self.base.render()[0].cpu().numpy().astype(np.uint8)

    def close(self) -> None:
        """Free the scene."""
        self.base.close()

    def observe(self, raw: dict[str, Any]) -> Observation:
        """ManiSkill's own observation (nested, a batch of one) as ours.

        Args:
            raw: What ManiSkill gave.
        """
        if self._obs == "state":
            flat = _flatten(raw)
            agent_pos, agent_vel = (flat.pop(joint) for joint in JOINTS)
            return {"agent_pos": agent_pos, "agent_vel": agent_vel, "env_state": np.concatenate(list(flat.values()))}
        obs = _seen_state(raw)
        if self._obs == "rgb":
            return obs | {f"image_{name}": rendering.picture(raw, name) for name in raw["sensor_data"]}
        return obs | {"point_cloud": make_cloud(rendering.points(raw, color=self._cloud.color), self._cloud)}

    def _specs(self, raw: dict[str, Any]) -> dict[str, KeySpec]:
        """What `observe` gives, with the simulator's names. raw: one observation of ManiSkill."""
        if self._obs == "state":
            return state_specs(self.base, raw)
        specs = {key: _position(key.removesuffix("_pos")) for key in _seen_state(raw)}
        specs["agent_pos"] = _joint_positions(self.base)
        if self._obs == "rgb":
            for name in raw["sensor_data"]:
                shape = rendering.picture(raw, name).shape
                specs[f"image_{name}"] = KeySpec(shape, "0..255", f"camera:{name}", dtype="uint8")
        else:
            specs["point_cloud"] = KeySpec(self._cloud.shape, "m", self._cloud.frame, cloud=self._cloud)
        return specs


def state_specs(base: Any, raw: dict[str, Any]) -> dict[str, KeySpec]:
    """The keys of obs="state".

    Args:
        base: ManiSkill's environment.
        raw: One observation of it.
    """
    agent_pos = _joint_positions(base)
    flat = _flatten(raw)
    rest = tuple(f"{path}.{i}" for path, value in flat.items() if path not in JOINTS for i in range(value.size))
    if not rest:
        raise ValueError(f"{base.spec.id}: ManiSkill tells no state of it but the joints; pass `obs='rgb'`")
    return {
        "agent_pos": agent_pos,
        "agent_vel": KeySpec(agent_pos.shape, "rad/s, fingers m/s", "joint", agent_pos.names),
        "env_state": KeySpec((len(rest),), "m, quaternions wxyz, flags 0/1", "world", rest),
    }


def _joint_positions(base: Any) -> KeySpec:
    names = tuple(joint.name for joint in base.agent.robot.get_active_joints())
    return KeySpec((len(names),), "rad, fingers m", "joint", names)


def _seen_state(raw: dict[str, Any]) -> Observation:
    """What the robot knows beside its cameras; the tool's position first, as `PointNet` wants it."""
    extra = raw["extra"]
    tcp = {"tcp_pos": _row(extra["tcp_pose"])[:3]} if "tcp_pose" in extra else {}
    obs = {**tcp, "agent_pos": _row(raw["agent"]["qpos"])}
    if "goal_pos" in extra:
        obs["goal_pos"] = _row(extra["goal_pos"])
        if tcp:
            obs["tcp_to_goal"] = obs["goal_pos"] - obs["tcp_pos"]
    return obs


def _position(name: str) -> KeySpec:
    return KeySpec((3,), "m", "world", tuple(f"{name}.{axis}" for axis in "xyz"))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, NDArray[np.float32]]:
    """Nested dict of (1, ...) tensors -> path -> (n,) float32, in the simulator's own (fixed) order."""
    flat: dict[str, NDArray[np.float32]] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _row(value)
    return flat


def _row(value: Any) -> NDArray[np.float32]:
    """Tensor (1, ...) -> (n,) float32."""
    return np.asarray(value[0].cpu(), np.float32).reshape(-1).copy()


def _space(spec: KeySpec) -> spaces.Box:
    if spec.dtype == "uint8":
        return spaces.Box(0, 255, spec.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, spec.shape, np.float32)


def embodiment(base: Any, obs: dict[str, KeySpec]) -> Embodiment:
    """Names, units and bounds, read from the simulator. Needs a scene that has been reset.

    Args:
        base: ManiSkill's environment, unwrapped.
        obs: Key -> its spec.
    """
    joints = obs["agent_pos"].names
    space = base.single_action_space
    arm = _arm(base)
    reference = tuple(arm) + (-1,) * (space.shape[0] - len(arm))
    has_gripper = len(arm) < space.shape[0]
    return Embodiment(
        robot=base.agent.uid,
        obs=obs,
        action=KeySpec(
            space.shape, "rad, gripper unitless", "joint", tuple(joints[i] if i >= 0 else "gripper" for i in reference)
        ),
        action_kind="joint_position",
        control_hz=float(base.control_freq),
        action_low=tuple(float(x) for x in space.low),
        action_high=tuple(float(x) for x in space.high),
        reference_key="agent_pos",
        reference_index=reference,
        gripper="-1 closed, 1 open" if has_gripper else "none",
    )


def _arm(base: Any) -> list[int]:
    """Which of the active joints the arm's targets are for."""
    from mani_skill.agents.controllers.base_controller import CombinedController

    controller = base.agent.controller
    if not (isinstance(controller, CombinedController) and "arm" in controller.controllers):
        raise ValueError(
            f"{base.spec.id}: its robot, {base.agent.uid}, has no arm with a controller of its own; "
            "wanted one with joint targets for an arm, and a gripper or none"
        )
    return [int(i) for i in controller.controllers["arm"].active_joint_indices]


def _make_base(id: str, mode: str, render: bool, size: int) -> Any:
    """ManiSkill's own environment (a batch of one), without its wrappers."""
    known = import_mani_skill()
    if id not in known:
        raise ValueError(f"`id`: ManiSkill knows no {id!r}; it knows {', '.join(known)}")
    with makable(id, draws=render or mode != "state_dict"):
        return gymnasium.make(
            id,
            num_envs=1,
            sim_backend="physx_cpu",
            render_backend="none",
            render_mode="rgb_array" if render else None,
            human_render_camera_configs={"width": 256, "height": 256},  # software rendering: 4 times faster than 512
            sensor_configs={"width": size, "height": size} if mode != "state_dict" else {},
            obs_mode=mode,
            control_mode="pd_joint_pos",
        ).unwrapped
