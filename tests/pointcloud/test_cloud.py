"""Point clouds: geometry, farthest-point sampling (exact, one index for all implementations), and what a spec makes."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowpolicy.embodiment import CloudSpec
from flowpolicy.pointcloud.cloud import (
    _advance_together,
    crop,
    farthest_point_indices,
    farthest_point_indices_batch,
    make_cloud,
    stage_times,
    unproject,
    voxel_downsample,
)

SPEC = CloudSpec(points=64, crop_low=(-1.0, -1.0, 0.0), crop_high=(1.0, 1.0, 0.5))


def plain_farthest(points, count, start=0):
    """The definition, in float32 numpy."""
    distance, chosen = np.full(len(points), np.inf, np.float32), [start]
    for _ in range(count - 1):
        x, y, z = (points - points[chosen[-1]]).T
        distance = np.minimum(distance, (x * x + y * y) + z * z)
        chosen.append(int(distance.argmax()))
    return np.array(chosen)


def random_cloud(rng, kind, total):
    cloud = rng.normal(size=(total, 3)).astype(np.float32)
    if kind == "grid":  # many ties
        return np.round(cloud)
    if kind == "duplicates":
        return cloud[rng.integers(0, max(1, total // 4), total)]
    if kind == "one point":
        return np.repeat(cloud[:1], total, axis=0)
    if kind == "outlier":
        cloud[total // 2] = 1e4
    if kind == "tiny":
        return cloud * np.float32(1e-20)  # squares below the smallest normal number
    return cloud * np.array([1.0, 1.0, 0.0], np.float32) if kind == "plane" else cloud


KINDS = ["normal", "plane", "grid", "duplicates", "one point", "outlier", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_chooses_what_the_definition_chooses(kind):
    rng = np.random.default_rng(1)
    for total in [1, 2, 3, 127, 128, 129, 257, *rng.integers(1, 900, 40)]:
        cloud = random_cloud(rng, kind, int(total))
        count, start = int(rng.integers(1, total + 1)), int(rng.integers(0, total))
        chosen = farthest_point_indices(cloud, count, start=start)
        assert chosen.dtype == np.int64
        np.testing.assert_array_equal(chosen, plain_farthest(cloud, count, start))


@pytest.mark.parametrize("kind", KINDS)
def test_both_batch_versions_choose_what_the_kernel_chooses(kind):
    rng = np.random.default_rng(2)
    for total in (1, 40, 700):
        clouds = np.stack([random_cloud(rng, kind, total) for _ in range(5)])
        count, start = max(1, total // 2), total // 3
        wanted = np.stack([farthest_point_indices(cloud, count, start=start) for cloud in clouds])
        batch = torch.from_numpy(clouds)
        assert np.array_equal(farthest_point_indices_batch(batch, count, start=start), wanted)
        assert np.array_equal(_advance_together(batch, count, start), wanted)  # what a GPU runs
        if torch.cuda.is_available():
            assert np.array_equal(farthest_point_indices_batch(batch.cuda(), count, start=start).cpu(), wanted)


def test_a_batch_that_is_a_view_gives_the_same_indices():
    batch = torch.randn(3, 90, 6, generator=torch.Generator().manual_seed(0))
    wanted = farthest_point_indices_batch(batch[:, ::3, :3].contiguous(), 20)
    assert torch.equal(farthest_point_indices_batch(batch[:, ::3, :3], 20), wanted)
    assert torch.equal(farthest_point_indices_batch(batch[:, ::3, :3].double(), 20), wanted)


def test_ends_are_chosen_before_what_lies_between():
    line = np.zeros((5, 3), np.float32)
    line[:, 0] = [0, 1, 2, 3, 4]
    assert farthest_point_indices(line, 5).tolist() == [0, 4, 2, 1, 3]  # 1 and 3 tie: the lower first
    assert farthest_point_indices(line, 2, start=4).tolist() == [4, 0]


@pytest.mark.parametrize(
    ("points", "count", "start", "message"),
    [
        (np.zeros((4, 3)), 5, 0, "wanted 1 to 4 of 4 points, got count=5"),
        (np.zeros((4, 3)), 0, 0, "got count=0"),
        (np.zeros((4, 3)), 2, 4, "wanted start in 0..3, got 4"),
        (np.zeros((4, 6)), 2, 0, r"wanted points \(N, 3\), got \(4, 6\)"),
        (np.full((4, 3), np.nan), 2, 0, "NaN or infinity"),
    ],
)
def test_farthest_points_of_nonsense_are_refused(points, count, start, message):
    with pytest.raises(ValueError, match=message):
        farthest_point_indices(points, count, start=start)
    with pytest.raises(ValueError, match=message.replace("(N", "(B, N").replace(r"\(4", r"\(1, 4")):
        farthest_point_indices_batch(torch.from_numpy(points)[None], count, start=start)


def camera_pose(*, yaw, position):
    """OpenCV axes of a camera that looks along the world's x axis, turned left by yaw."""
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = turn @ np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # columns: right, down, forward
    pose[:3, 3] = position
    return pose


def test_unprojecting_inverts_projecting():
    rng = np.random.default_rng(0)
    matrix = np.array([[50.0, 0, 15.3], [0, 60.0, 11.8], [0, 0, 1]])
    pose = camera_pose(yaw=0.7, position=(0.2, -0.3, 0.9))
    depth = rng.uniform(0.3, 2.0, (24, 32))
    world = unproject(depth, matrix, pose)
    assert world.shape == (24 * 32, 3) and world.dtype == np.float32
    camera = (world - pose[:3, 3]) @ pose[:3, :3]
    pixel = camera @ matrix.T / camera[:, 2:]
    rows, columns = np.divmod(np.arange(24 * 32), 32)
    np.testing.assert_allclose(pixel[:, :2], np.stack([columns, rows], axis=1), atol=1e-4)
    np.testing.assert_allclose(camera[:, 2], depth.reshape(-1), rtol=1e-6)


def test_right_in_the_image_is_right_of_the_camera_and_down_is_down():
    matrix = np.array([[10.0, 0, 1], [0, 10.0, 1], [0, 0, 1]])
    world = unproject(np.full((3, 3), 2.0), matrix, camera_pose(yaw=0.0, position=(0, 0, 1))).reshape(3, 3, 3)
    np.testing.assert_allclose(world[1, 1], [2, 0, 1], atol=1e-6)  # straight ahead: 2 m along x
    np.testing.assert_allclose(world[1, 2], [2, -0.2, 1], atol=1e-6)
    np.testing.assert_allclose(world[2, 1], [2, 0, 0.8], atol=1e-6)


@pytest.mark.parametrize("reading", [0.0, -1.0, np.nan, np.inf])
def test_a_pixel_without_a_reading_gives_no_point(reading):
    depth = np.ones((4, 4))
    depth[1, 2] = reading
    world = unproject(depth, np.eye(3), np.eye(4))
    assert np.flatnonzero(np.isnan(world).any(axis=1)).tolist() == [6]
    assert len(crop(world, (-9, -9, -9), (9, 9, 9))) == 15


def test_unproject_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"camera_to_world \(4, 4\), got \(4, 4\), \(3, 3\) and \(3, 4\)"):
        unproject(np.ones((4, 4)), np.eye(3), np.eye(4)[:3])


def test_the_grid_keeps_one_mean_per_cell_colours_included():
    rows = [[0.01, 0.01, 0.01, 1, 0, 0], [0.03, 0.03, 0.03, 0, 1, 0], [-0.01, 0, 0, 0, 0, 1], [0.99, 0, 0, 1, 1, 1]]
    thin = voxel_downsample(np.array(rows, np.float32), 0.05)
    wanted = [[-0.01, 0, 0, 0, 0, 1], [0.02, 0.02, 0.02, 0.5, 0.5, 0], [0.99, 0, 0, 1, 1, 1]]
    np.testing.assert_allclose(thin, wanted, atol=1e-7)


def test_the_grid_thins_every_cell_to_one_point():
    cloud = np.random.default_rng(0).random((5000, 3), dtype=np.float32)
    thin = voxel_downsample(cloud, 0.25)
    assert thin.shape == (64, 3)
    assert len(np.unique(np.floor(thin / 0.25), axis=0)) == 64
    with pytest.raises(ValueError, match="too fine"):
        voxel_downsample(cloud, 1e-12)


def scene(rng, total=3000):
    """Points in and around the crop, with colours."""
    xyz = rng.uniform(-2, 2, (total, 3))
    return np.concatenate([xyz, rng.random((total, 3))], axis=1).astype(np.float32)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("voxel_m", [0.0, 0.1])
@pytest.mark.parametrize("points", [16, 512])
def test_a_cloud_has_the_shape_of_its_spec_and_lies_in_its_crop(color, voxel_m, points):
    spec = CloudSpec(points=points, crop_low=(-1, -1, 0), crop_high=(1, 1, 0.5), color=color, voxel_m=voxel_m)
    cloud = make_cloud(scene(np.random.default_rng(0)), spec)
    assert cloud.shape == spec.shape == (points, 6 if color else 3) and cloud.dtype == np.float32
    assert len(crop(cloud, spec.crop_low, spec.crop_high)) == points


def test_a_cloud_is_the_farthest_points_of_the_crop_and_keeps_their_colours():
    points = scene(np.random.default_rng(0))
    spec = CloudSpec(points=64, crop_low=SPEC.crop_low, crop_high=SPEC.crop_high, color=True)
    inside = points[((points[:, :3] >= spec.crop_low) & (points[:, :3] <= spec.crop_high)).all(axis=1)]
    np.testing.assert_array_equal(make_cloud(points, spec), inside[plain_farthest(inside[:, :3], 64)])
    np.testing.assert_array_equal(make_cloud(points, SPEC), inside[plain_farthest(inside[:, :3], 64)][:, :3])


def test_too_few_points_are_repeated_in_turn_and_nothing_is_added_at_the_origin():
    points = np.array([[0.1, 0, 0.1], [0.2, 0, 0.1], [0.3, 0, 0.1], [5, 5, 5]], np.float32)
    cloud = make_cloud(points, SPEC)
    np.testing.assert_array_equal(cloud, np.resize(points[:3], (64, 3)))


def test_an_empty_crop_names_where_the_points_are():
    with pytest.raises(ValueError, match=r"none of 2 points .* frame world; their coordinates span 5.00..6.00, 5.00"):
        make_cloud(np.array([[5.0, 5, 5], [6, 5, 5]]), SPEC)
    with pytest.raises(ValueError, match="no finite point"):
        make_cloud(np.full((2, 3), np.nan), SPEC)


def test_colour_that_is_not_there_is_an_error():
    spec = CloudSpec(crop_low=(-1, -1, -1), crop_high=(1, 1, 1), color=True)
    with pytest.raises(ValueError, match=re.escape("wanted points (N, 6), got (9, 3)")):
        make_cloud(np.zeros((9, 3)), spec)


def test_loading_the_module_loads_neither_torch_nor_numba():
    code = "import sys, flowpolicy.pointcloud.cloud; print(sorted({'torch', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stage_times_add_up_what_the_block_does_and_nothing_else():
    points = scene(np.random.default_rng(0))
    make_cloud(points, SPEC)
    with stage_times() as spent:
        assert spent == {}
        make_cloud(points, SPEC)
        once = dict(spent)
        with stage_times() as inner:
            make_cloud(points, SPEC)
        assert spent == once and set(inner) == {"crop", "sample"}
        make_cloud(points, SPEC)
    assert set(once) == {"crop", "sample"} and all(0 < once[stage] < spent[stage] for stage in once)
    make_cloud(points, SPEC)
    assert set(spent) == {"crop", "sample"}
