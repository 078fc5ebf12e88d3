"""Whether SAPIEN draws a picture through Vulkan; prints which device draws."""

from typing import Any


def main() -> None:
    """Raise whatever goes wrong; RuntimeError where nothing can draw."""
    import sapien

    device = _find("cuda") or _find("pci:0")  # the second is Mesa on the CPU
    if device is None:
        raise RuntimeError("no Vulkan device that can render")
    scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(device)])
    scene.set_ambient_light([1, 1, 1])
    camera = scene.add_camera("camera", width=48, height=48, fovy=1.0, near=0.01, far=10)
    scene.update_render()
    camera.take_picture()
    assert camera.get_picture("Color").shape == (48, 48, 4)
    print(device.name)


def _find(name: str) -> Any:
    import sapien

    try:
        device = sapien.Device(name)
    except RuntimeError:
        return None
    return device if device.can_render() else None


if __name__ == "__main__":
    main()
