"""ManiSkill 3 on the CPU with state observations and absolute joint targets: `make_env` adapts one task."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowpolicy.embodiment import Embodiment, KeySpec

_JOINTS = ("agent.qpos", "agent.qvel")
_INSTALL = 'ManiSkill is not installed; pip install "flowpolicy[maniskill]"'
_NO_RENDERER = (
    "ManiSkill: {reason}. Pictures need a Vulkan driver: a GPU driver, or Mesa >= 24.3 for the CPU (Debian 12: "
    "apt-get install -t bookworm-backports mesa-vulkan-drivers libvulkan1). State observations need none: render=False"
)


def make_env(id: str, *, obs: str = "state", max_episode_steps: int = 200, render: bool = False) -> gymnasium.Env:
    """One ManiSkill task, simulated by PhysX on the CPU.

    id: e.g. "PickCube-v1".   obs: "state", the only kind this adapter gives.
    Raises ImportError without ManiSkill, ValueError for an unknown id or obs, RuntimeError when render=True and no
    renderer exists.
    """
    if obs != "state":
        raise ValueError(f"task.obs: ManiSkill gives 'state', got {obs!r}")
    return ManiSkillEnv(id, max_episode_steps=max_episode_steps, render=render)


@final
class ManiSkillEnv(gymnasium.Env):
    """Observation: agent_pos and agent_vel (joint positions and velocities), env_state (the rest of ManiSkill's state
    observation, in its order).

    Action: absolute joint targets (rad), then the gripper in [-1 closed, 1 open] for robots that have one.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    action_space: spaces.Box

    def __init__(self, id: str, *, max_episode_steps: int, render: bool) -> None:
        if max_episode_steps < 1:
            raise ValueError(f"task.max_episode_steps: must be at least 1, got {max_episode_steps}")
        self.base = _make_base(id, render)
        self.render_mode = "rgb_array" if render else None
        self.max_episode_steps = max_episode_steps
        self.embodiment = _embodiment(self.base)
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, spec.shape, np.float32) for key, spec in self.embodiment.obs.items()}
        )
        low, high = (np.asarray(b, np.float32) for b in (self.embodiment.action_low, self.embodiment.action_high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """First observation of the episode that `seed` fixes. The scene is rebuilt: PhysX keeps contact state."""
        super().reset(seed=seed)
        self._steps = 0
        obs, _ = self.base.reset(seed=seed, options={"reconfigure": True})
        return split_observation(obs), {"success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """One control step; the action is clipped to the action space."""
        action = np.clip(np.asarray(action, np.float32), self.action_space.low, self.action_space.high)
        obs, reward, _, _, info = self.base.step(action)
        self._steps += 1
        success = bool(info["success"])
        truncated = self._steps >= self.max_episode_steps
        return split_observation(obs), float(reward), success, truncated, {"success": success}

    def render(self) -> NDArray[np.uint8]:
        """(H, W, 3) picture of the scene."""
        if self.render_mode is None:
            raise RuntimeError(_NO_RENDERER.format(reason="this environment was made with render=False"))
        return self.base.render()[0].cpu().numpy().astype(np.uint8)

    def close(self) -> None:
        """Free the scene."""
        self.base.close()


def split_observation(obs: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """ManiSkill's nested state (batch of one) -> {"agent_pos", "agent_vel", "env_state"}, float32."""
    flat = _flatten(obs)
    agent_pos, agent_vel = flat.pop("agent.qpos"), flat.pop("agent.qvel")
    return {"agent_pos": agent_pos, "agent_vel": agent_vel, "env_state": np.concatenate(list(flat.values()))}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, NDArray[np.float32]]:
    """Nested dict of (1, ...) tensors -> path -> (n,) float32, in the simulator's own (fixed) order."""
    flat: dict[str, NDArray[np.float32]] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = np.asarray(value[0].cpu(), np.float32).reshape(-1).copy()
    return flat


def _embodiment(base: Any) -> Embodiment:
    """Keys, names, units and bounds, read from the simulator. Needs a scene that has been reset."""
    flat = _flatten(base.get_obs())
    joints = tuple(joint.name for joint in base.agent.robot.get_active_joints())
    rest = tuple(f"{path}.{i}" for path, value in flat.items() if path not in _JOINTS for i in range(value.size))
    space = base.single_action_space
    arm = [int(i) for i in base.agent.controller.controllers["arm"].active_joint_indices]
    reference = tuple(arm) + (-1,) * (space.shape[0] - len(arm))
    has_gripper = len(arm) < space.shape[0]
    return Embodiment(
        robot=base.agent.uid,
        obs={
            "agent_pos": KeySpec((len(joints),), "rad, fingers m", "joint", joints),
            "agent_vel": KeySpec((len(joints),), "rad/s, fingers m/s", "joint", joints),
            "env_state": KeySpec((len(rest),), "m, quaternions wxyz, flags 0/1", "world", rest),
        },
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


def _make_base(id: str, render: bool) -> Any:
    """ManiSkill's own environment (a batch of one), without its wrappers."""
    known = _import_mani_skill()
    if id not in known:
        raise ValueError(f"task.id: ManiSkill knows no {id!r}; it knows {', '.join(known)}")
    if not render:
        _tolerate_missing_renderer()
    with _render_device() if render else contextlib.nullcontext():
        return gymnasium.make(
            id,
            num_envs=1,
            sim_backend="physx_cpu",
            render_backend="none",
            render_mode="rgb_array" if render else None,
            human_render_camera_configs={"width": 256, "height": 256},  # software rendering: 4 times faster than 512
            obs_mode="state_dict",
            control_mode="pd_joint_pos",
        ).unwrapped


def _import_mani_skill() -> list[str]:
    """Import it without the warnings it prints where no Vulkan library is installed. Returns the ids it registered."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mani_skill.envs  # noqa: F401  registers the tasks with gymnasium
            import sapien
            from mani_skill.utils.logging_utils import logger
            from mani_skill.utils.registration import REGISTERED_ENVS
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    sapien.set_log_level("error")
    logger.setLevel(logging.ERROR)
    return sorted(REGISTERED_ENVS)


@contextlib.contextmanager
def _render_device() -> Iterator[None]:
    """Make ManiSkill render with a GPU or else Mesa's software Vulkan ("pci:0", llvmpipe).

    ManiSkill 3.0.1 cannot be told "pci:0": it splits the name at the colon, and its "cpu" cannot render.
    """
    import mani_skill.envs.sapien_env as module
    import sapien

    device = None
    for name in ("cuda", "pci:0"):
        with contextlib.suppress(RuntimeError):  # no such device
            device = device or sapien.Device(name)
    if device is None or not device.can_render():
        raise RuntimeError(_NO_RENDERER.format(reason="no device can render"))
    parse = module.parse_sim_and_render_backend
    module.parse_sim_and_render_backend = lambda sim, render: dataclasses.replace(
        parse(sim, render), render_device=device, render_backend="sapien_cuda" if device.is_cuda() else "sapien_cpu"
    )
    try:
        yield
    finally:
        module.parse_sim_and_render_backend = parse


class _NoMaterial:
    """Stands in for `sapien.render.RenderMaterial`: tasks describe their colours even when nothing is rendered."""

    def __init__(self, **properties: object) -> None:
        del properties

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("set_"):
            raise AttributeError(name)
        return lambda value: None


def _tolerate_missing_renderer() -> None:
    """Let tasks build on a machine without any Vulkan device, where even creating a material raises RuntimeError."""
    import sapien
    import sapien.pysapien
    import sapien.wrapper.urdf_loader

    try:
        sapien.render.RenderMaterial()
    except RuntimeError:
        modules: tuple[Any, ...] = (sapien.render, sapien.pysapien.render, sapien.wrapper.urdf_loader)
        for module in modules:
            module.RenderMaterial = _NoMaterial
