"""Point clouds from depth images: unproject, crop, thin out to a fixed number."""

from typing import TYPE_CHECKING

from flowpolicy.exports import exported

if TYPE_CHECKING:
    from flowpolicy.pointcloud.cloud import (
        EmptyCropError as EmptyCropError,
        crop as crop,
        farthest_point_indices as farthest_point_indices,
        farthest_point_indices_batch as farthest_point_indices_batch,
        make_cloud as make_cloud,
        unproject as unproject,
        voxel_downsample as voxel_downsample,
    )

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "cloud": [
            "EmptyCropError",
            "crop",
            "farthest_point_indices",
            "farthest_point_indices_batch",
            "make_cloud",
            "unproject",
            "voxel_downsample",
        ],
    },
)
