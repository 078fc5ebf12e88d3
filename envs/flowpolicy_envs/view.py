"""What a simulator's cameras give: the sizes of pictures and depth, and how a cloud is made of the depth."""

from dataclasses import dataclass
from typing import final, get_args

from flowpolicy.embodiment import CloudSpec
from flowpolicy_envs.rendering.mujoco import RendererName


@final
@dataclass(frozen=True, kw_only=True)
class View:
    """How a task is seen. Each simulator's module has its own as VIEW; `dataclasses.replace` makes others of it.

    Args:
        image_size: Height and width of pictures, pixels.
        depth_size: Height and width of depth, pixels.
        points: Of the cloud.
        crop_low: Corner of the box that the cloud is cut to, metres in the world's frame.
        crop_high: The opposite corner.
        color: Whether red, green and blue in 0..1 follow the coordinates; rays cannot give them.
        voxel_m: Edge of the grid that thins the points before farthest-point sampling, metres; 0 is no grid.
        renderer: Of MuJoCo: "egl", "osmesa", "ray" (clouds without a graphics library), or "auto", the first of them
            that works. Other simulators have one way to draw and take "auto" alone.

    Raises:
        ValueError: For a size, a crop or a renderer that makes no sense.
    """

    image_size: int = 128
    depth_size: int
    points: int = 512
    crop_low: tuple[float, float, float]
    crop_high: tuple[float, float, float]
    color: bool = False
    voxel_m: float = 0.0
    renderer: RendererName = "auto"

    def __post_init__(self) -> None:
        """Bad values must not wait for the first picture."""
        for name, size in (("image_size", self.image_size), ("depth_size", self.depth_size)):
            if not 8 <= size <= 4096:
                raise ValueError(f"`{name}`: wanted 8 to 4096 pixels, got {size}")
        if self.renderer not in get_args(RendererName):
            names = ", ".join(get_args(RendererName))
            raise ValueError(f"`renderer` must be one of {names}, got {self.renderer!r}")
        _ = self.cloud

    @property
    def cloud(self) -> CloudSpec:
        """How the cloud is made."""
        return CloudSpec(
            points=self.points, crop_low=self.crop_low, crop_high=self.crop_high, color=self.color, voxel_m=self.voxel_m
        )
