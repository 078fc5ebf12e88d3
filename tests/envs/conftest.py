"""What draws here: MuJoCo's platform is chosen before a test imports MuJoCo; fixtures that skip where nothing draws."""

import pytest

from flowpolicy_envs.rendering.mujoco import choose_platform

choose_platform("auto")


@pytest.fixture(scope="session")
def opengl():
    """Skips with the reason where MuJoCo has no OpenGL."""
    mujoco = pytest.importorskip("mujoco", reason="needs the extra metaworld")
    from flowpolicy_envs.rendering.mujoco import open_renderer

    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><camera name='eye'/></worldbody></mujoco>")
    renderer = open_renderer(model, "auto", max_height=8, max_width=8, samples=0)
    try:
        renderer.color(mujoco.MjData(model), "eye", 8, 8)
    except RuntimeError as error:
        pytest.skip(str(error))
    finally:
        renderer.close()


@pytest.fixture(scope="session")
def vulkan():
    """Skips with the reason where SAPIEN has no device that can draw."""
    pytest.importorskip("mani_skill", reason="needs the extra maniskill")
    from flowpolicy_envs.rendering.maniskill import device

    try:
        with device():
            pass
    except RuntimeError as error:
        pytest.skip(str(error))
