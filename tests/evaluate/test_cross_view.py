"""Measures of agreement between the cameras of a rig."""

import jax.numpy as jnp
import numpy as np
import pytest

from fsmde_jax import rig
from fsmde_jax.evaluate import cross_view

SIZE = (40, 60)


def ring_inside_a_cylinder(radius_m=10.0, cameras=6):
    """Batch fields of a ring at one point, and the true z-depth of a cylinder around it."""
    focal = 30.0
    k = np.array([[focal, 0, SIZE[1] / 2], [0, focal, SIZE[0] / 2], [0, 0, 1]])
    yaw = np.arange(cameras) * 2 * np.pi / cameras
    forward = np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], -1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), 0 * yaw], -1)
    down = np.broadcast_to([0.0, 0.0, -1.0], right.shape)
    poses = np.tile(np.eye(4), (cameras, 1, 1))
    poses[:, :3, :3] = np.stack([right, down, forward], axis=-1)
    x = np.arange(SIZE[1]) + 0.5
    depth = radius_m / np.sqrt(1 + ((x - SIZE[1] / 2) / focal) ** 2)
    depth = np.broadcast_to(depth, (1, cameras, *SIZE))
    intrinsics = np.tile(k, (1, cameras, 1, 1))
    neighbour, mask = rig.ring_neighbours(poses, intrinsics[0], SIZE[1], np.ones(cameras, bool))
    fields = (intrinsics.astype(np.float32), SIZE, poses[None].astype(np.float32))
    return jnp.asarray(depth, jnp.float32), (*fields, neighbour[None], mask[None])


def disagreement(depth_m, fields):
    intrinsics, size, *rest = fields
    arrays = [jnp.asarray(array) for array in (intrinsics, *rest)]
    return float(cross_view.overlap_disagreement(depth_m, arrays[0], size, *arrays[1:])[0])


def test_true_depth_agrees_and_a_scaled_camera_does_not():
    depth, fields = ring_inside_a_cylinder()
    # Nearest pixels of a smooth wall: below a pixel's slope.
    assert disagreement(depth, fields) < 0.02
    scaled = depth.at[0, 2].multiply(1.5)
    # Two of the six pairs are off by log 1.5.
    assert disagreement(scaled, fields) == pytest.approx(np.log(1.5) / 3, rel=0.1)


def test_a_common_scale_changes_nothing_for_cameras_at_one_point():
    depth, fields = ring_inside_a_cylinder()
    assert disagreement(3 * depth, fields) == pytest.approx(disagreement(depth, fields), abs=1e-4)


def test_predictions_of_another_size_use_their_own_pixels():
    depth, fields = ring_inside_a_cylinder()
    assert disagreement(depth[:, :, ::2, ::2], fields) < 0.04


def test_pixels_without_prediction_do_not_count():
    depth, fields = ring_inside_a_cylinder()
    for gone in (depth.at[0, 2].set(0.0), depth.at[0, :, 10:20].set(0.0)):
        assert disagreement(gone, fields) < 0.02


def test_a_ring_without_overlap_has_no_disagreement():
    depth, fields = ring_inside_a_cylinder()
    alone = (*fields[:-1], np.zeros((1, 6), bool))
    assert np.isnan(disagreement(depth, alone))


def test_scale_spread_is_the_deviation_of_log_scales():
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 50, (2, 4, 99)).astype(np.float32)
    factors = np.array([[1.0, 1.2, 0.9, 1.1], [2.0, 2.0, 2.0, 2.0]], np.float32)
    valid = np.ones(truth.shape, bool)
    valid[0, 3] = False  # a camera without points
    scale = cross_view.median_scale(
        jnp.asarray(truth * factors[..., None]), jnp.asarray(truth), jnp.asarray(valid)
    )
    np.testing.assert_allclose(scale[0, :3], factors[0, :3], rtol=1e-5)
    assert np.isnan(scale[0, 3])
    spread = cross_view.scale_spread(scale)
    np.testing.assert_allclose(spread, [np.std(np.log(factors[0, :3])), 0.0], atol=1e-5)
    assert np.isnan(cross_view.scale_spread(jnp.asarray([[1.0, np.nan]]))[0])
