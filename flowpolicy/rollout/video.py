"""Frames to an mp4 file, written beside and renamed."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from flowpolicy.extras import how_to_install
from flowpolicy.files import beside, move_file, remove_leftovers


def write_video(path: Path, frames: Sequence[np.ndarray], *, fps: float) -> None:
    """H.264 video. frames: (H, W, 3) uint8 each; odd sizes lose their last row or column.

    Args:
        path: The file.
        frames: (H, W, 3) uint8 each.
        fps: Frames per second.

    Raises:
        ImportError: Without the extra `video`.
        ValueError: For no frames.
    """
    if not frames:
        raise ValueError(f"write_video: no frames for {path}")
    imageio = _imageio()
    remove_leftovers(path)
    new = beside(path)
    new = new.with_name(f"{new.name}.mp4")
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])  # yuv420p halves both
    try:
        with imageio.get_writer(new, fps=fps, codec="libx264", macro_block_size=2) as writer:
            for frame in frames:
                writer.append_data(frame[:height, :width])
        move_file(new, path)
    finally:
        new.unlink(missing_ok=True)


def require_video() -> None:
    """Raise ImportError naming the extra when videos cannot be written: before the episodes, not after."""
    _imageio()


def _imageio() -> ModuleType:
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401  imageio finds it by itself, and fails late without it
    except ImportError as error:
        raise ImportError(f"videos need imageio with ffmpeg; {how_to_install('video')}") from error
    return imageio.v2
