"""Depth and colour from MuJoCo, through OpenGL (EGL, OSMesa) or, where there is none, by casting rays.

MuJoCo reads MUJOCO_GL once, when it is imported: call `choose_platform` before.
"""

import atexit
import ctypes
import os
import sys
from abc import ABC, abstractmethod
from functools import cache
from typing import Any, Literal, final, get_args

import numpy as np
from numpy.typing import NDArray

from flowpolicy_envs.rendering.base import before_first_context

RendererName = Literal["auto", "egl", "osmesa", "ray"]
_INSTALL = "apt-get install -y libegl1 libgl1 libegl-mesa0"
_LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6")}
_GROUPS = 3  # geom and site groups 0..2 are drawn, as in every MuJoCo viewer; collision shapes are in the others


class Renderer(ABC):
    """Draws one model. Cameras are named as in the model; pictures are (H, W), row 0 at the top."""

    @abstractmethod
    def depth(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.float32]:
        """(H, W) metres along the optical axis, not along the ray; at least 50 where there is nothing.

        Args:
            data: The MuJoCo state (MjData) to draw.
            camera: Name of the camera.
            height: Of the picture, pixels.
            width: Of the picture, pixels.
        """

    @abstractmethod
    def color(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """(H, W, 3). Raises RuntimeError where only rays can be cast.

        Args:
            data: The MuJoCo state (MjData) to draw.
            camera: Name of the camera.
            height: Of the picture, pixels.
            width: Of the picture, pixels.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what belongs to this model; may be called twice."""


def open_renderer(model: Any, name: RendererName, *, max_height: int, max_width: int, samples: int) -> Renderer:
    """The renderer `name` for one model; "auto" casts rays where OpenGL fails.

    Args:
        model: The MuJoCo model (MjModel) of the scene.
        name: "egl", "osmesa", "rays" or "auto".
        max_height: Of the largest picture.
        max_width: As `max_height`.
        samples: Per pixel; 0 for depth, so that a pixel is what its centre sees.

    Raises:
        RuntimeError: Saying what to install when OpenGL was asked for and fails.
    """
    if name == "ray":
        return RayRenderer(model, no_opengl="`renderer='ray'` asks for none")
    platform = _platform()
    if name != "auto" and name != platform:
        raise RuntimeError(
            f"`renderer={name!r}`: MuJoCo was imported with MUJOCO_GL for {platform}; set MUJOCO_GL={name} before"
        )
    try:
        return GLRenderer(model, max_height=max_height, max_width=max_width, samples=samples)
    except _failures() as error:
        fix = _INSTALL if platform != "glfw" else f"set MUJOCO_GL=egl before MuJoCo is imported; {_INSTALL}"
        said = " ".join(str(error).split())[:120]  # PyOpenGL lists the arguments of the call, one a line
        reason = f"{platform} gives no context ({said}); {fix}"
        if name == "auto":
            return RayRenderer(model, no_opengl=reason)
        raise RuntimeError(f"`renderer={name!r}`: {reason}; or `renderer='ray'` for clouds") from error


def choose_platform(name: RendererName) -> None:
    """Set MUJOCO_GL to `name`, or to the first library that loads; what the user has set stays.

    Has no effect once MuJoCo is imported. EGL comes before OSMesa: MuJoCo's own `Renderer` corrupts the frames of a
    second one when it closes, with OSMesa (it deletes its objects after its context, hence from the other's).

    Args:
        name: "egl", "osmesa" or "auto".

    Raises:
        ValueError: For an unknown name.
    """
    if name not in get_args(RendererName):
        raise ValueError(f"`renderer` must be one of {', '.join(get_args(RendererName))}, got {name!r}")
    if "mujoco" in sys.modules or sys.platform != "linux":
        return
    if name in _LIBRARIES:
        os.environ["MUJOCO_GL"] = name
    else:
        os.environ.setdefault("MUJOCO_GL", next(filter(_loads, _LIBRARIES), "disable"))


def _loads(platform: str) -> bool:
    for library in _LIBRARIES[platform]:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def _library() -> Any:
    """MuJoCo, whose compiled half has no type stubs."""
    import mujoco

    return mujoco


def _platform() -> str:
    """What the imported MuJoCo draws with: egl, osmesa, glfw, cgl, wgl, or none."""
    from mujoco import gl_context

    context = vars(gl_context).get("GLContext")
    return context.__module__.rpartition(".")[2] if context else "none"


def _failures() -> tuple[type[Exception], ...]:
    """What MuJoCo and PyOpenGL raise where libraries, drivers or displays are missing."""
    opengl = vars(sys.modules["OpenGL.error"])["Error"] if "OpenGL.error" in sys.modules else RuntimeError
    return RuntimeError, ImportError, AttributeError, _library().FatalError, opengl


@cache
def _context() -> Any:
    """The OpenGL context of this process. One is enough for any number of models, and closing a renderer then frees
    that renderer's objects and no other's."""
    if _platform() == "none":
        raise RuntimeError("no OpenGL library was found")
    before_first_context()
    context = _library().GLContext(640, 480)
    context.make_current()
    atexit.register(context.free)  # before MuJoCo closes the display that it lives on
    return context


@final
class GLRenderer(Renderer):
    """OpenGL, without shadows and reflections: six times faster in software, and depth has none.

    Args:
        model: The MuJoCo model (MjModel) of the scene.
        max_height: Of pictures, pixels.
        max_width: Of pictures, pixels.
        samples: Per pixel, against jagged edges.
    """

    def __init__(self, model: Any, *, max_height: int, max_width: int, samples: int) -> None:
        mujoco = _library()
        model.vis.global_.offheight, model.vis.global_.offwidth = max_height, max_width
        model.vis.quality.offsamples = samples
        _context().make_current()
        self._model = model
        self._objects = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._objects.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # keeps float32 precise far away
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        flag = mujoco.mjtRndFlag
        self._plain = [int(flag.mjRND_SEGMENT), int(flag.mjRND_IDCOLOR)]  # no light, no blending
        self._scene.flags[[int(flag.mjRND_SHADOW), int(flag.mjRND_REFLECTION)]] = 0
        self._options = mujoco.MjvOption()

    def depth(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.float32]:
        mujoco = _library()
        raw = np.empty((height, width), np.float32)
        mujoco.mjr_readPixels(None, raw, self._draw(data, camera, height, width, plain=True), self._objects)
        near, far = (self._model.stat.extent * edge for edge in (self._model.vis.map.znear, self._model.vis.map.zfar))
        return (near * far / (near + raw[::-1].astype(np.float64) * (far - near))).astype(np.float32)

    def color(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        mujoco = _library()
        raw = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(raw, None, self._draw(data, camera, height, width, plain=False), self._objects)
        return np.ascontiguousarray(raw[::-1])

    def close(self) -> None:
        if self._objects is not None:
            _context().make_current()
            self._objects.free()
            self._objects = None

    def _draw(self, data: Any, camera: str, height: int, width: int, *, plain: bool) -> Any:
        mujoco = _library()
        _context().make_current()
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._model.camera(camera).id
        mujoco.mjv_updateScene(self._model, data, self._options, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        self._scene.flags[self._plain] = plain
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._objects)  # another renderer may have drawn
        rect = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rect, self._scene, self._objects)
        return rect


@final
class RayRenderer(Renderer):
    """One ray per pixel centre: depth without any graphics library, four times slower than software OpenGL.

    Args:
        model: The MuJoCo model (MjModel) of the scene.
        no_opengl: Why OpenGL cannot be had, for the error when colour is asked for.

    Raises:
        RuntimeError: When the model shows sites that are no spheres (Meta-World's all are).
    """

    def __init__(self, model: Any, *, no_opengl: str) -> None:
        self._model, self._no_opengl = model, no_opengl
        shown = (model.site_group < _GROUPS) & (model.site_rgba[:, 3] > 0)
        self._sites = np.flatnonzero(shown)
        for site in self._sites:
            if model.site_type[site] != _library().mjtGeom.mjGEOM_SPHERE:
                name = model.site(int(site)).name or f"number {site}"
                raise RuntimeError(f"rays see sites that are spheres, not '{name}'; draw it with OpenGL: {no_opengl}")

    def depth(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.float32]:
        mujoco = _library()
        id = self._model.camera(camera).id
        directions = _directions(float(self._model.cam_fovy[id]), height, width)  # (H * W, 3), camera axes
        origin, rotation = data.cam_xpos[id], data.cam_xmat[id].reshape(3, 3)
        world = np.ascontiguousarray(directions @ rotation.T)
        distance = np.empty(len(world))
        hit = np.empty(len(world), np.int32)
        groups = (np.arange(6) < _GROUPS).astype(np.uint8)
        mujoco.mj_multiRay(
            self._model, data, origin, world.ravel(), groups, 1, -1, hit, distance, len(world), mujoco.mjMAXVAL
        )
        distance[hit < 0] = np.inf
        for site in self._sites:  # rays pass through sites, which OpenGL draws
            np.minimum(
                distance, _sphere(world, data.site_xpos[site] - origin, self._model.site_size[site, 0]), distance
            )
        depth = np.minimum(distance, 1e4) * -directions[:, 2]  # MuJoCo's cameras look along -z
        return depth.reshape(height, width).astype(np.float32)

    def color(self, data: Any, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        raise RuntimeError(f"pictures need OpenGL: {self._no_opengl}")

    def close(self) -> None:
        """Nothing to free."""


@cache
def _directions(fovy: float, height: int, width: int) -> NDArray[np.float64]:
    """Unit vectors (H * W, 3) through the pixel centres: x right, y up, z backwards."""
    focal = height / (2.0 * np.tan(np.deg2rad(fovy) / 2.0))
    v, u = np.mgrid[:height, :width]
    rays = np.stack([u - (width - 1) / 2, (height - 1) / 2 - v, np.full_like(u, -focal, float)], -1).reshape(-1, 3)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _sphere(directions: NDArray[np.float64], centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Distance along each unit direction to a sphere in front of the origin, infinity where it is missed."""
    along = directions @ centre
    inside = radius**2 - (centre @ centre - along**2)
    return np.where((inside >= 0) & (along > 0), along - np.sqrt(np.maximum(inside, 0.0)), np.inf)


def intrinsics(model: Any, camera: str, height: int, width: int) -> NDArray[np.float64]:
    """(3, 3), OpenCV: pixel (u, v) is the centre of column u, row v.

    Args:
        model: The MuJoCo model (MjModel) of the scene.
        camera: Name of the camera.
        height: Of the picture, pixels.
        width: Of the picture, pixels.
    """
    focal = height / (2.0 * np.tan(np.deg2rad(model.camera(camera).fovy[0]) / 2.0))
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def camera_to_world(data: Any, camera: str) -> NDArray[np.float64]:
    """(4, 4), from OpenCV's camera axes (x right, y down, z forward) to the world's.

    Args:
        data: The MuJoCo state (MjData) to draw.
        camera: Name of the camera.
    """
    pose = np.eye(4)
    pose[:3, :3] = data.camera(camera).xmat.reshape(3, 3) * (1.0, -1.0, -1.0)  # columns: MuJoCo's are x, up, backwards
    pose[:3, 3] = data.camera(camera).xpos
    return pose
