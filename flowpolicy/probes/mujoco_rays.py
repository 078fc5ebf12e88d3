"""Whether MuJoCo measures a distance without any graphics library."""

import importlib
import os


def main() -> None:
    """Raise whatever goes wrong."""
    import numpy

    os.environ["MUJOCO_GL"] = "disable"  # MuJoCo reads it once, when it is imported
    mujoco = importlib.import_module("mujoco")
    model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    hit, distance = numpy.zeros(1, numpy.int32), numpy.zeros(1)
    ray = numpy.array([0.0, 0.0, -1.0])
    mujoco.mj_multiRay(model, data, -3 * ray, ray, None, 1, -1, hit, distance, 1, 10.0)
    assert abs(distance[0] - 2.0) < 1e-9, distance
    print("the processor, depth only")


if __name__ == "__main__":
    main()
