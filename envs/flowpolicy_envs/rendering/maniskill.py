"""Where SAPIEN draws (GPU, or Mesa on the CPU, or nowhere), and what its cameras see as points and pictures."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.pointcloud.cloud import unproject
from flowpolicy_envs.rendering.base import before_first_context

_INSTALL = (
    "install a Vulkan driver: a GPU's, or Mesa >= 24.3 for the CPU (Debian 12: "
    "apt-get install -t bookworm-backports mesa-vulkan-drivers libvulkan1). State observations need none"
)


@contextlib.contextmanager
def device() -> Iterator[None]:
    """Make ManiSkill draw with a GPU or else with Mesa's software Vulkan ("pci:0", llvmpipe).

    ManiSkill 3.0.1 cannot be told "pci:0": it splits the name at the colon, and its "cpu" cannot render.

    Raises:
        RuntimeError: Saying what to install when nothing can draw.
    """
    import mani_skill.envs.sapien_env as module

    before_first_context()
    chosen = _find_device()
    parse = module.parse_sim_and_render_backend
    module.parse_sim_and_render_backend = lambda sim, render: dataclasses.replace(
        parse(sim, render), render_device=chosen, render_backend="sapien_cuda" if chosen.is_cuda() else "sapien_cpu"
    )
    try:
        yield
    finally:
        module.parse_sim_and_render_backend = parse


def _find_device() -> Any:
    import sapien

    for name in ("cuda", "pci:0"):
        with contextlib.suppress(RuntimeError):  # no such device
            found = sapien.Device(name)
            if found.can_render():
                return found
    raise RuntimeError(f"ManiSkill: no Vulkan device can draw; {_INSTALL}")


@contextlib.contextmanager
def no_device() -> Iterator[None]:
    """Let tasks build on a machine without any Vulkan device, where even creating a material raises RuntimeError."""
    import sapien
    import sapien.pysapien
    import sapien.wrapper.urdf_loader

    before_first_context()  # where there is a device, the material opens one
    try:
        sapien.render.RenderMaterial()
    except RuntimeError:
        modules: tuple[Any, ...] = (sapien.render, sapien.pysapien.render, sapien.wrapper.urdf_loader)
        for module in modules:
            module.RenderMaterial = _NoMaterial
    yield


class _NoMaterial:
    """Stands in for `sapien.render.RenderMaterial`: tasks describe their colours even when nothing is rendered."""

    def __init__(self, **properties: object) -> None:
        del properties

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("set_"):
            raise AttributeError(name)
        return lambda value: None


def picture(raw: dict[str, Any], camera: str) -> NDArray[np.uint8]:
    """(H, W, 3) of one camera, from ManiSkill's own observation.

    Args:
        raw: ManiSkill's own observation.
        camera: Name of the camera.
    """
    return raw["sensor_data"][camera]["rgb"][0, ..., :3].cpu().numpy().copy()


def points(raw: dict[str, Any], *, color: bool) -> NDArray[np.float32]:
    """What all cameras see, (N, 3) metres in the world's frame, with `color` (N, 6); NaN where there is nothing.

    Args:
        raw: ManiSkill's own observation.
        color: With the colours.
    """
    clouds = []
    for camera, seen in raw["sensor_data"].items():
        parameters = raw["sensor_param"][camera]
        intrinsics = parameters["intrinsic_cv"][0].cpu().numpy().copy()
        intrinsics[:2, 2] -= 0.5  # SAPIEN counts from the pixel's corner, `unproject` from its centre
        pose = parameters["cam2world_gl"][0].cpu().numpy() * np.array(
            [1, -1, -1, 1], np.float32
        )  # OpenGL's axes -> OpenCV's
        depth = seen["depth"][0, ..., 0].cpu().numpy() * np.float32(1e-3)  # int16 millimetres, 0 where there is nothing
        cloud = unproject(depth, intrinsics, pose)
        if color:
            cloud = np.concatenate([cloud, picture(raw, camera).reshape(-1, 3) / np.float32(255)], axis=1)
        clouds.append(cloud)
    return np.concatenate(clouds)
