"""What works on this machine: every extra and renderer is really tried, each in a process of its own.

A simulator that crashes with a segmentation fault ends its own process and becomes one line of the report.
"""

import ctypes.util
import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from typing import Literal, NamedTuple, final

import torch

from flowpolicy.extras import how_to_install
from flowpolicy.provenance import versions

Status = Literal["ok", "missing", "broken"]
TIMEOUT_S = 180  # a first `import mani_skill` on a cold disk takes half a minute

_EGL_FIX = "apt-get install -y libegl1 libgl1 libegl-mesa0"
_OSMESA_FIX = "apt-get install -y libosmesa6"
_VULKAN_FIX = (
    "apt-get install -y libvulkan1 mesa-vulkan-drivers  # Mesa >= 24.3; Debian 12: add -t bookworm-backports, a suite "
    "that scripts/setup.sh adds. Or a GPU's driver"
)
_TORCHVISION_FIX = "pip uninstall torchvision  # or install the build that matches torch; flowpolicy needs none"

_STEP = """
env = make_env({id!r}, obs="state", max_episode_steps=5)
env.reset(seed=0)
env.step(env.action_space.sample())
env.close()
"""
_MUJOCO_FRAME = """
import ctypes, os
def loads(name):
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
names = {"egl": ["libEGL.so.1"], "osmesa": ["libOSMesa.so.8", "libOSMesa.so.6"]}[os.environ["MUJOCO_GL"]]
if not any(map(loads, names)):
    raise OSError(f"no library {names[0]}")
import mujoco
world = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1" rgba="1 0 0 1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(world)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 48, 48) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "the picture is black"
    from OpenGL.GL import GL_RENDERER, glGetString
    print(glGetString(GL_RENDERER).decode())
"""
_RAYS = """
import os
os.environ["MUJOCO_GL"] = "disable"
import mujoco, numpy
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
hit, distance = numpy.zeros(1, numpy.int32), numpy.zeros(1)
ray = numpy.array([0.0, 0.0, -1.0])
mujoco.mj_multiRay(model, data, -3 * ray, ray, None, 1, -1, hit, distance, 1, 10.0)
assert abs(distance[0] - 2.0) < 1e-9, distance
print("the processor, depth only")
"""
_SAPIEN_FRAME = """
import sapien
def find(name):
    try:
        device = sapien.Device(name)
    except RuntimeError:
        return None
    return device if device.can_render() else None
device = find("cuda") or find("pci:0")  # the second is Mesa on the CPU
if device is None:
    raise RuntimeError("no Vulkan device that can render")
scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(device)])
scene.set_ambient_light([1, 1, 1])
camera = scene.add_camera("camera", width=48, height=48, fovy=1.0, near=0.01, far=10)
scene.update_render()
camera.take_picture()
assert camera.get_picture("Color").shape == (48, 48, 4)
print(device.name)
"""
_VIDEO = """
import os, tempfile
import imageio.v2, numpy
with tempfile.TemporaryDirectory() as folder:
    with imageio.v2.get_writer(os.path.join(folder, "a.mp4"), fps=10) as writer:
        for _ in range(3):
            writer.append_data(numpy.zeros((64, 64, 3), numpy.uint8))
"""
_EXPORT = """
import logging, tempfile, warnings
import onnxruntime, torch
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    file = folder + "/a.onnx"
    torch.onnx.export(torch.nn.Linear(2, 1), (torch.ones(1, 2),), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: torch.ones(1, 2).numpy()})[0].shape == (1, 1)
"""
_TRAIN = """
import numba, numpy, zarr, gymnasium
zarr.create_array({}, shape=(4,), dtype="f4", zarr_format=2)[:] = numpy.arange(4)
assert numba.njit(lambda n: n + 1)(1) == 2
"""
_CORE = """
import torch, scipy.stats, hydra, omegaconf, safetensors.torch, tqdm
value, slope = torch.func.jvp(torch.tanh, (torch.zeros(2),), (torch.ones(2),))
assert slope.sum() == 2
"""


@final
@dataclass(frozen=True)
class Probe:
    """One thing to try. needs: distributions without which it counts as missing.

    Args:
        name: What is tried.
        needs: Distributions without which it counts as missing.
        code: Run in a fresh interpreter; what it prints last belongs to the finding (who draws).
        install: What to run when it is missing, empty when nobody needs it.
        fix: What to run when it fails.
        env: Environment variables to set.
        driver: Whether failing without a crash means that a system library is absent, which is not a breakage.
    """

    name: str
    needs: tuple[str, ...]
    code: str
    install: str
    fix: str
    env: dict[str, str] = field(default_factory=dict)
    driver: bool = False


@final
class Finding(NamedTuple):
    """Outcome of one probe. detail: version or error, one line.

    Args:
        name: What was tried.
        status: "ok", "missing" or "failed".
        detail: Version or error, one line.
        fix: Command, empty when ok.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def _again(*names: str) -> str:
    return f"pip install --force-reinstall --no-deps {' '.join(names)}"


PROBES = (
    Probe("core", ("torch",), _CORE, how_to_install(), _again("torch", "scipy", "hydra-core", "safetensors", "tqdm")),
    Probe(
        "train", ("zarr", "numba", "gymnasium"), _TRAIN, how_to_install("train"), _again("zarr", "numba", "gymnasium")
    ),
    Probe(
        "maniskill",
        ("mani_skill", "gymnasium"),
        "from flowpolicy_envs.maniskill import make_env" + _STEP.format(id="PickCube-v1"),
        how_to_install("maniskill"),
        _again("mani_skill", "sapien"),
    ),
    Probe("maniskill planner", ("mplib",), "import mplib", how_to_install("maniskill"), _again("mplib")),
    Probe(
        "metaworld",
        ("metaworld", "gymnasium"),
        "from flowpolicy_envs.metaworld import make_env" + _STEP.format(id="reach-v3"),
        how_to_install("metaworld"),
        _again("metaworld", "mujoco"),
    ),
    Probe("wandb", ("wandb",), "import wandb; assert callable(wandb.init)", how_to_install("wandb"), _again("wandb")),
    Probe("video", ("imageio", "imageio-ffmpeg"), _VIDEO, how_to_install("video"), _again("imageio", "imageio-ffmpeg")),
    Probe(
        "export",
        ("onnx", "onnxscript", "onnxruntime"),
        _EXPORT,
        how_to_install("export"),
        _again("onnx", "onnxscript", "onnxruntime"),
        env={"ORT_DISABLE_TELEMETRY": "1"},
    ),
    Probe("torchvision", ("torchvision",), "import torchvision", "", _TORCHVISION_FIX),
    Probe(
        "EGL (MuJoCo)",
        ("mujoco",),
        _MUJOCO_FRAME,
        how_to_install("metaworld"),
        _EGL_FIX,
        env={"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"},
        driver=True,
    ),
    Probe(
        "OSMesa (MuJoCo)",
        ("mujoco",),
        _MUJOCO_FRAME,
        how_to_install("metaworld"),
        _OSMESA_FIX,
        env={"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"},
        driver=True,
    ),
    Probe("rays (MuJoCo)", ("mujoco",), _RAYS, how_to_install("metaworld"), _again("mujoco")),
    Probe("Vulkan (SAPIEN)", ("sapien",), _SAPIEN_FRAME, how_to_install("maniskill"), _VULKAN_FIX, driver=True),
)


def run_probe(probe: Probe) -> Finding:
    """Try one thing. Never raises for what the probe does, not even when it takes its interpreter down.

    Args:
        probe: What to try.
    """
    if absent := missing(probe):
        return Finding(probe.name, "missing", f"{', '.join(absent)} not installed", probe.install)
    installed = ", ".join(f"{name} {_version(name)}" for name in probe.needs)
    if "mplib" in probe.needs and (numpy := _version("numpy")) and int(numpy.split(".")[0]) >= 2:
        return Finding(
            probe.name, "broken", f"mplib {_version('mplib')} segfaults with numpy {numpy}", 'pip install "numpy<2"'
        )
    try:
        done = subprocess.run(
            [sys.executable, "-c", probe.code],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, **probe.env},
        )
    except subprocess.TimeoutExpired:
        return Finding(probe.name, "broken", f"{installed}: no answer within {TIMEOUT_S} s", probe.fix)
    if done.returncode == 0:
        said = done.stdout.strip().splitlines()[-1:]
        return Finding(probe.name, "ok", ": ".join([installed, *said]))
    if done.returncode < 0:
        crash = signal.Signals(-done.returncode).name
        return Finding(probe.name, "broken", f"{installed}: crashed ({crash})", probe.fix)
    reason = _last_line(done.stderr)
    if "torchvision::nms" in done.stderr:
        return Finding(probe.name, "broken", f"{installed}: {reason}", _TORCHVISION_FIX)
    return Finding(probe.name, "missing" if probe.driver else "broken", f"{installed}: {reason}", probe.fix)


def missing(probe: Probe) -> list[str]:
    """The distributions that the probe needs and that are not installed.

    Args:
        probe: What is to be tried.
    """
    return [name for name in probe.needs if _version(name) is None]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _last_line(text: str) -> str:
    """The exception of a traceback; what follows it on stderr (noise of destructors) starts with a blank or a word."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].split(".")[-1].endswith(("Error", "Exception"))]
    said = (errors or lines or ["no message"])[0 if errors else -1]
    return said if len(said) <= 200 else said[:197] + "..."


def describe_machine() -> dict[str, str]:
    """Versions, device, processors and renderer libraries, without importing any extra."""
    libraries = {"EGL": "EGL", "OSMesa": "OSMesa", "Vulkan": "vulkan"}
    found = [name for name, library in libraries.items() if ctypes.util.find_library(library)]
    cuda = torch.cuda.is_available()
    return versions() | {
        "platform": platform.platform(),
        "device": f"cuda ({torch.cuda.get_device_name()})" if cuda else "cpu",
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "renderer libraries": ", ".join(found) or "none (states need none, clouds of Meta-World are then cast by rays)",
    }
