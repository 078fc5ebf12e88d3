"""Depth is metres from the true camera, by OpenGL as by rays; closing one renderer leaves another's frames alone."""

import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco", reason="needs the extra metaworld")

from flowpolicy.pointcloud.cloud import unproject  # noqa: E402
from flowpolicy_envs.rendering import mujoco as rendering  # noqa: E402

SIZE = 96
WORLD = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="eye" pos="0.9 -0.6 1.1" xyaxes="0.5 0.8 0 -0.5 0.3 0.7" fovy="50"/>
    <geom name="ball" type="sphere" size="{ball}" pos="0.1 0.05 0.2" rgba="{color} 1"/>
    <geom name="block" type="box" size="0.1 0.2 0.05" pos="-0.2 -0.1 0.1" euler="0 0 30"/>
    <geom type="sphere" size="0.3" pos="0.4 -0.3 0.6" group="3"/>
    <site name="goal" type="sphere" size="0.05" pos="-0.1 0.3 0.2"/>
    <site type="sphere" size="0.3" pos="0.4 -0.3 0.6" rgba="1 0 0 0"/>
  </worldbody>
</mujoco>
"""


def scene(ball=0.12, color="1 0 0"):
    model = mujoco.MjModel.from_xml_string(WORLD.format(ball=ball, color=color))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def opened(model, name="auto", samples=0):
    return closing(rendering.open_renderer(model, name, max_height=SIZE, max_width=SIZE, samples=samples))


def seen(name):
    model, data = scene()
    with opened(model, name) as renderer:
        depth = renderer.depth(data, "eye", SIZE, SIZE)
    points = unproject(depth, rendering.intrinsics(model, "eye", SIZE, SIZE), rendering.camera_to_world(data, "eye"))
    return depth, points


def check_points_lie_on_what_is_there(name, tolerance):
    depth, points = seen(name)
    assert depth.dtype == np.float32 and depth.shape == (SIZE, SIZE)
    there = points[depth.reshape(-1) < 10]
    surfaces = [np.abs(np.linalg.norm(there - (0.1, 0.05, 0.2), axis=1) - 0.12)]
    surfaces.append(np.abs(np.linalg.norm(there - (-0.1, 0.3, 0.2), axis=1) - 0.05))
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    local = np.abs((there - (-0.2, -0.1, 0.1)) @ [[c, -s, 0], [s, c, 0], [0, 0, 1]]) - (0.1, 0.2, 0.05)
    surfaces.append(np.abs(local.max(axis=1)))
    assert np.min(surfaces, axis=0).max() < tolerance
    nearest = np.argmin(surfaces, axis=0)
    assert min(np.bincount(nearest, minlength=3)) > 20, "ball, goal and block are all seen"


def test_rays_hit_what_is_there():
    check_points_lie_on_what_is_there("ray", 1e-5)


def test_opengl_draws_what_is_there(opengl):
    check_points_lie_on_what_is_there("auto", 3e-3)  # its spheres have corners


def test_rays_and_opengl_see_the_same_depth(opengl):
    by_ray, by_opengl = seen("ray")[0], seen("auto")[0]
    both = (by_ray < 10) & (by_opengl < 10)
    assert np.mean((by_ray < 10) == (by_opengl < 10)) > 0.995  # the rest is the corners again
    difference = np.abs(by_ray - by_opengl)[both]
    assert difference.mean() < 1e-3 and np.quantile(difference, 0.98) < 5e-3
    assert by_ray[~both].min() > 0.5 and np.all(np.maximum(by_ray, by_opengl)[~both] >= 50)


def test_rays_refuse_a_site_that_they_cannot_see():
    world = WORLD.format(ball=0.1, color="1 0 0").replace('name="goal" type="sphere"', 'name="goal" type="box"')
    with pytest.raises(RuntimeError, match="spheres, not 'goal'; draw it with OpenGL"):
        rendering.open_renderer(mujoco.MjModel.from_xml_string(world), "ray", max_height=8, max_width=8, samples=0)


def test_pictures_are_upright_and_coloured(opengl):
    model, data = scene()
    with opened(model, samples=4) as renderer:
        picture = renderer.color(data, "eye", SIZE, SIZE)
        depth = renderer.depth(data, "eye", SIZE, SIZE)
    red = (picture[..., 0] > 60) & (picture[..., 1:].max(-1) < 30)
    points = unproject(depth, rendering.intrinsics(model, "eye", SIZE, SIZE), rendering.camera_to_world(data, "eye"))
    ball = np.abs(np.linalg.norm(points - (0.1, 0.05, 0.2), axis=1) - 0.12).reshape(SIZE, SIZE) < 0.01
    assert picture.dtype == np.uint8 and red.sum() > 100 and (red & ball).sum() > 0.9 * red.sum()


CLOSING = """
import sys
import numpy as np
from flowpolicy_envs.rendering import mujoco as rendering
name = sys.argv[1]
rendering.choose_platform(name)
from tests.envs.test_rendering_mujoco import opened, scene, SIZE
(model, data), (other, other_data) = scene(), scene(ball=0.3, color="0 0 1")
with opened(model, name) as kept:
    def frames():
        return kept.depth(data, "eye", SIZE, SIZE), kept.color(data, "eye", SIZE, SIZE)
    before = frames()
    for _ in range(2):
        with opened(other, name) as closed:
            assert not np.array_equal(closed.depth(other_data, "eye", SIZE, SIZE), before[0])
        for one, two in zip(before, frames()):
            assert np.array_equal(one, two)
print("drew with", rendering._platform())
"""


def run(code, *arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    environment |= {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.path.join(os.getcwd(), "envs")]), **variables}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("name", ["egl", "osmesa"])
def test_closing_a_renderer_leaves_the_frames_of_another_alone(name):
    """MuJoCo's own Renderer fails this with OSMesa: 73 % of the other's depth changes."""
    if not rendering._loads(name):
        pytest.skip(f"no library for {name} on this machine")
    done = run(CLOSING, name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["drew", "with", name] and done.stderr == ""


TWO_WAYS = """
from tests.envs.test_rendering_mujoco import opened, rendering, scene, SIZE
model, data = scene()
with opened(model, "auto") as renderer:
    print(type(renderer).__name__, renderer.depth(data, "eye", SIZE, SIZE).min() < 2)
    try:
        renderer.color(data, "eye", SIZE, SIZE)
    except RuntimeError as error:
        print(error)
try:
    rendering.open_renderer(model, "egl", max_height=8, max_width=8, samples=0)
except RuntimeError as error:
    print(error)
"""


def test_without_a_driver_rays_are_cast_and_the_errors_say_what_to_install():
    if not rendering._loads("egl"):
        pytest.skip("no library for egl on this machine")
    done = run(TWO_WAYS, MUJOCO_GL="egl", __EGL_VENDOR_LIBRARY_DIRS="/nowhere", __EGL_VENDOR_LIBRARY_FILENAMES="")
    lines = done.stdout.splitlines()
    assert lines[0] == "RayRenderer True", done.stderr
    assert lines[1].startswith("pictures need OpenGL: egl gives no context") and "apt-get install" in lines[1]
    assert lines[2].startswith("`renderer='egl'`: ") and "`renderer='ray'`" in lines[2]


def test_a_library_that_loads_is_chosen_unless_the_user_chose():
    code = "import os; from flowpolicy_envs.rendering import mujoco as r; r._loads = lambda name: name in {}\n"
    code += "r.choose_platform('auto'); print(os.environ['MUJOCO_GL'])"
    assert run(code.format(["egl", "osmesa"])).stdout == "egl\n"
    assert run(code.format(["osmesa"])).stdout == "osmesa\n"
    assert run(code.format([])).stdout == "disable\n"
    assert run(code.format(["egl"]), MUJOCO_GL="osmesa").stdout == "osmesa\n"
    with pytest.raises(ValueError, match="one of auto, egl, osmesa, ray, got 'vulkan'"):
        rendering.choose_platform("vulkan")  # pyright: ignore[reportArgumentType]


def test_triton_comes_before_the_first_context_but_not_into_workers(tmp_path):
    """Two LLVMs in one process: triton's must be loaded first (torch's CPU build has none, so a fake stands in)."""
    if not (rendering._loads("egl") or rendering._loads("osmesa")):
        pytest.skip("no OpenGL library on this machine")
    (tmp_path / "triton.py").write_text("")
    (tmp_path / "torch" / "_dynamo").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text("")
    said = "from flowpolicy_envs.rendering import mujoco as r\nprint('dynamo', r._context.cache_info().currsize)\n"
    (tmp_path / "torch" / "_dynamo" / "__init__.py").write_text(said)
    code = f"""
import multiprocessing, sys
sys.path[:0] = [{str(tmp_path)!r}]
from flowpolicy_envs.rendering.mujoco import _context, choose_platform
choose_platform("auto")
def draw():
    try:
        _context()
    except RuntimeError:
        pass
    print("torch._dynamo" in sys.modules, flush=True)
if multiprocessing.parent_process() is None:
    child = multiprocessing.get_context("fork").Process(target=draw)
    child.start(); child.join()
    draw()
"""
    done = run(code)
    assert done.stdout.splitlines() == ["False", "dynamo 0", "True"], done.stderr
