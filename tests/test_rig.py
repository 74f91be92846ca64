import jax.numpy as jnp
import numpy as np
import pytest

from fsmde_jax import rig


def pose(yaw_deg: float) -> np.ndarray:
    """A camera at the origin that looks horizontally along `yaw_deg`."""
    yaw = np.deg2rad(yaw_deg)
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, [0.0, 0.0, -1.0], forward], axis=1)
    return matrix


def ring(yaws_deg, hfov_deg, width=160) -> tuple[np.ndarray, np.ndarray]:
    focal = width / 2 / np.tan(np.deg2rad(np.broadcast_to(hfov_deg, len(yaws_deg))) / 2)
    intrinsics = np.array([[[f, 0, width / 2], [0, f, 48], [0, 0, 1]] for f in focal])
    return np.stack([pose(y) for y in yaws_deg]), intrinsics


def project(point, intrinsics, vehicle_from_camera) -> np.ndarray:
    in_camera = np.linalg.inv(vehicle_from_camera) @ np.append(point, 1.0)
    x, y, w = intrinsics @ in_camera[:3]
    return np.array([x / w, y / w, w])


def test_six_cameras_form_a_closed_ring():
    poses, intrinsics = ring([0, 55, 110, 180, -110, -55], [48, 85, 85, 85, 85, 85])
    neighbour, overlaps = rig.ring_neighbours(poses, intrinsics, 160, np.ones(6, bool))
    assert neighbour.tolist() == [1, 2, 3, 4, 5, 0]
    assert overlaps.all()


def test_ends_of_a_partial_ring_have_no_pair():
    poses, intrinsics = ring([0, 55, -55], [48, 85, 85])
    neighbour, overlaps = rig.ring_neighbours(poses, intrinsics, 160, np.ones(3, bool))
    assert neighbour.tolist() == [1, 2, 0]
    assert overlaps.tolist() == [True, False, True]


def test_absent_cameras_take_no_part():
    poses, intrinsics = ring([0, 55, 110, 180, -110, -55], 85)
    mask = np.array([True, False, True, True, False, False])
    neighbour, overlaps = rig.ring_neighbours(poses, intrinsics, 160, mask)
    assert overlaps.tolist() == [False, False, True, False, False, False]
    assert neighbour[2] == 3


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_cameras_make_no_pair(count):
    poses, intrinsics = ring([0, 90], 85)
    mask = np.arange(2) < count
    assert not rig.ring_neighbours(poses, intrinsics, 160, mask)[1].any()


def test_two_cameras_are_one_pair():
    poses, intrinsics = ring([30, -30], 85)
    _, overlaps = rig.ring_neighbours(poses, intrinsics, 160, np.ones(2, bool))
    assert overlaps.tolist() == [False, True]


def test_flip_projects_the_mirrored_point_to_the_mirrored_pixel():
    (matrix,), (intrinsics,) = ring([40], 85)
    matrix = matrix.copy()
    matrix[:3, 3] = 1.6, 0.4, 1.4
    point = np.array([9.0, 8.0, 1.0])
    x, y, depth = project(point, intrinsics, matrix)
    mirrored = project(
        point * [1, -1, 1], rig.flip_intrinsics(intrinsics, 160), rig.flip_extrinsics(matrix)
    )
    np.testing.assert_allclose(mirrored, [160 - x, y, depth])
    assert np.linalg.det(rig.flip_extrinsics(matrix)[:3, :3]) == pytest.approx(1.0)


def test_scaled_intrinsics_project_to_the_scaled_pixel():
    (matrix,), (intrinsics,) = ring([0], 85)
    point = np.array([9.0, 2.0, 1.0])
    x, y, _ = project(point, intrinsics, matrix)
    scaled = project(point, rig.scale_intrinsics(intrinsics, (96, 160), (48, 320)), matrix)
    np.testing.assert_allclose(scaled[:2], [2 * x, y / 2])


def test_mirror_swaps_left_and_right():
    poses, _ = ring([1, 55, 110, 180, -112, -53], 85)
    assert rig.mirror_order(poses, np.ones(6, bool)).tolist() == [0, 5, 4, 3, 2, 1]


def test_mirror_keeps_cameras_without_counterpart():
    poses, _ = ring([0, 55, 110], 85)
    assert rig.mirror_order(poses, np.ones(3, bool)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("library", [np, jnp])
def test_projection_and_its_inverse_are_those_of_matrices(library):
    poses, intrinsics = ring([0, 55, 180], [48, 85, 85])
    intrinsics[:, 0, 1] = 0.3  # skew
    poses[:, :3, 3] = [[1.5, 0.0, 1.6], [1.0, 0.5, 1.5], [-0.5, 0.1, 1.4]]
    rng = np.random.default_rng(0)
    xy, depth_m = rng.uniform(0, 96, (3, 5, 2)), rng.uniform(2, 50, (3, 5))
    given = [library.asarray(part) for part in (xy, depth_m, intrinsics, poses)]
    in_camera_m = rig.unproject(*given[:3])
    in_vehicle_m = rig.transform(given[3], in_camera_m)
    for i in range(3):
        for point, place, z in zip(in_vehicle_m[i], xy[i], depth_m[i], strict=True):
            expected = project(np.asarray(point), intrinsics[i], poses[i])
            np.testing.assert_allclose(expected, [*place, z], rtol=1e-4)
    again_m = rig.transform_back(given[3], in_vehicle_m)
    np.testing.assert_allclose(again_m, in_camera_m, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rig.project(again_m, given[2]), xy, rtol=1e-4)
