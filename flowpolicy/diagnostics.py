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


@final
@dataclass(frozen=True)
class Probe:
    """One thing to try. needs: distributions without which it counts as missing.

    Args:
        name: What is tried.
        needs: Distributions without which it counts as missing.
        program: Module that is run in a fresh interpreter; what it prints last belongs to the finding (who draws).
        install: What to run when it is missing, empty when nobody needs it.
        fix: What to run when it fails.
        env: Environment variables to set.
        driver: Whether failing without a crash means that a system library is absent, which is not a breakage.
        arguments: Of the program.
    """

    name: str
    needs: tuple[str, ...]
    program: str
    install: str
    fix: str
    env: dict[str, str] = field(default_factory=dict)
    driver: bool = False
    arguments: tuple[str, ...] = ()


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
    Probe(
        "core",
        ("torch",),
        "flowpolicy.probes.core",
        how_to_install(),
        _again("torch", "scipy", "hydra-core", "safetensors", "tqdm"),
    ),
    Probe(
        "train",
        ("zarr", "numba", "gymnasium"),
        "flowpolicy.probes.train",
        how_to_install("train"),
        _again("zarr", "numba", "gymnasium"),
    ),
    Probe(
        "maniskill",
        ("mani_skill", "gymnasium"),
        "flowpolicy.probes.simulator",
        how_to_install("maniskill"),
        _again("mani_skill", "sapien"),
        arguments=("flowpolicy_envs.maniskill", "PickCube-v1"),
    ),
    Probe(
        "maniskill planner",
        ("mplib",),
        "flowpolicy.probes.imports",
        how_to_install("maniskill"),
        _again("mplib"),
        arguments=("mplib",),
    ),
    Probe(
        "metaworld",
        ("metaworld", "gymnasium"),
        "flowpolicy.probes.simulator",
        how_to_install("metaworld"),
        _again("metaworld", "mujoco"),
        arguments=("flowpolicy_envs.metaworld", "reach-v3"),
    ),
    Probe(
        "wandb",
        ("wandb",),
        "flowpolicy.probes.imports",
        how_to_install("wandb"),
        _again("wandb"),
        arguments=("wandb:init",),
    ),
    Probe(
        "video",
        ("imageio", "imageio-ffmpeg"),
        "flowpolicy.probes.video",
        how_to_install("video"),
        _again("imageio", "imageio-ffmpeg"),
    ),
    Probe(
        "export",
        ("onnx", "onnxscript", "onnxruntime"),
        "flowpolicy.probes.onnx_export",
        how_to_install("export"),
        _again("onnx", "onnxscript", "onnxruntime"),
        env={"ORT_DISABLE_TELEMETRY": "1"},
    ),
    Probe(
        "torchvision", ("torchvision",), "flowpolicy.probes.imports", "", _TORCHVISION_FIX, arguments=("torchvision",)
    ),
    Probe(
        "EGL (MuJoCo)",
        ("mujoco",),
        "flowpolicy.probes.mujoco_frame",
        how_to_install("metaworld"),
        _EGL_FIX,
        env={"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"},
        driver=True,
    ),
    Probe(
        "OSMesa (MuJoCo)",
        ("mujoco",),
        "flowpolicy.probes.mujoco_frame",
        how_to_install("metaworld"),
        _OSMESA_FIX,
        env={"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"},
        driver=True,
    ),
    Probe("rays (MuJoCo)", ("mujoco",), "flowpolicy.probes.mujoco_rays", how_to_install("metaworld"), _again("mujoco")),
    Probe(
        "Vulkan (SAPIEN)",
        ("sapien",),
        "flowpolicy.probes.sapien_frame",
        how_to_install("maniskill"),
        _VULKAN_FIX,
        driver=True,
    ),
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
            [sys.executable, "-m", probe.program, *probe.arguments],
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
