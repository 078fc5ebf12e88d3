"""Whether MuJoCo draws a picture through the OpenGL that MUJOCO_GL names; prints who draws."""

import ctypes
import importlib
import os

LIBRARIES = {"egl": ["libEGL.so.1"], "osmesa": ["libOSMesa.so.8", "libOSMesa.so.6"]}
_WORLD = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1" rgba="1 0 0 1"/></worldbody></mujoco>'


def main() -> None:
    """Raise whatever goes wrong; OSError without the library."""
    names = LIBRARIES[os.environ["MUJOCO_GL"]]
    if not any(map(_loads, names)):
        raise OSError(f"no library {names[0]}")
    mujoco = importlib.import_module("mujoco")
    model = mujoco.MjModel.from_xml_string(_WORLD)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 48, 48) as renderer:
        renderer.update_scene(data)
        assert renderer.render().max() > 0, "the picture is black"
        gl = importlib.import_module("OpenGL.GL")
        print(gl.glGetString(gl.GL_RENDERER).decode())


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
