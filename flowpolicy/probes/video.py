"""Whether a film can be encoded."""

import importlib
import os
import tempfile


def main() -> None:
    """Raise whatever goes wrong."""
    import numpy

    imageio = importlib.import_module("imageio.v2")
    with (
        tempfile.TemporaryDirectory() as folder,
        imageio.get_writer(os.path.join(folder, "a.mp4"), fps=10) as writer,
    ):
        for _ in range(3):
            writer.append_data(numpy.zeros((64, 64, 3), numpy.uint8))


if __name__ == "__main__":
    main()
