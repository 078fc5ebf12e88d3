"""Meta-World point clouds on one core: steps per second, and the share of simulation, rendering and cloud code.

  OMP_NUM_THREADS=1 python scripts/bench_metaworld_cloud.py [assembly-v3] [auto|egl|osmesa|ray] [depth size]

Processor time is what a core to itself would take; wall time is what it took here.
"""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import cast

import numpy as np

from flowpolicy.pointcloud.cloud import make_cloud, unproject
from flowpolicy_envs.metaworld import CAMERA, VIEW, MetaWorldEnv, make_env
from flowpolicy_envs.rendering import mujoco as rendering

STEPS = 200


def measure(action: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of processor and of wall time, mean over STEPS calls."""
    processor, wall = time.process_time(), time.perf_counter()
    for _ in range(STEPS):
        action()
    return 1e3 * (time.process_time() - processor) / STEPS, 1e3 * (time.perf_counter() - wall) / STEPS


def main() -> None:
    """Measure the whole environment, then its parts."""
    arguments = dict(enumerate(sys.argv[1:]))
    id, size = arguments.get(0, "assembly-v3"), int(arguments.get(2, 128))
    view = replace(VIEW, renderer=cast(rendering.RendererName, arguments.get(1, "auto")), depth_size=size)
    rng = np.random.default_rng(0)
    with closing(make_env(id, obs="point_cloud", view=view)) as env, closing(make_env(id)) as blind:
        assert isinstance(env, MetaWorldEnv)
        for one in (env, blind):
            one.reset(seed=0)
            one.step(np.zeros(4))  # compiles the sampling kernel
        whole = measure(lambda: env.step(rng.uniform(-1, 1, 4)))
        simulation = measure(lambda: blind.step(rng.uniform(-1, 1, 4)))
        model, data = env.base.model, env.base.data
        with closing(rendering.open_renderer(model, view.renderer, max_height=size, max_width=size, samples=0)) as one:
            drawing = measure(lambda: one.depth(data, CAMERA, size, size))
            depth, drawer = one.depth(data, CAMERA, size, size), type(one).__name__
        intrinsics, pose = rendering.intrinsics(model, CAMERA, size, size), rendering.camera_to_world(data, CAMERA)
        cloud = measure(lambda: make_cloud(unproject(depth, intrinsics, pose), view.cloud))
    print(f"{id}, {drawer}, {size}x{size} depth -> {view.points} points, {STEPS} steps")
    print(f"{'':12}{'processor':>12}{'share':>8}{'wall':>12}")
    for name, (processor, wall) in {"simulation": simulation, "rendering": drawing, "cloud": cloud}.items():
        print(f"{name:12}{processor:9.2f} ms{processor / whole[0]:8.0%}{wall:9.2f} ms")
    print(f"{'whole step':12}{whole[0]:9.2f} ms{1:8.0%}{whole[1]:9.2f} ms")
    print(f"{1e3 / whole[0]:.0f} steps/s of processor time, {1e3 / whole[1]:.0f} steps/s here")


if __name__ == "__main__":
    main()
