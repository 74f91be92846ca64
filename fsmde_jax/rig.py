"""Camera geometry of a rig: projection, pixels, adjacency on the ring, mirror images.

Conventions: pixel `i` covers `[i, i + 1)`, its centre is `i + 0.5`; so resizing an image
multiplies the rows of the intrinsics, and a horizontal flip maps `x` to `width - x`.
Cameras: x right, y down, z forward. Vehicle: x forward, y left, z up.

The first four functions take arrays of NumPy or of JAX, all of one kind, and return that kind.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


def transform(
    a_from_b: Float[Any, "*n 4 4"], points_m: Float[Any, "*n p 3"]
) -> Float[Any, "*n p 3"]:
    """Points of frame b in frame a."""
    return points_m @ a_from_b[..., :3, :3].mT + a_from_b[..., None, :3, 3]


def transform_back(
    a_from_b: Float[Any, "*n 4 4"], points_m: Float[Any, "*n p 3"]
) -> Float[Any, "*n p 3"]:
    """Points of frame a in frame b; `a_from_b` has to be a rigid motion."""
    return (points_m - a_from_b[..., None, :3, 3]) @ a_from_b[..., :3, :3]


def project(
    in_camera_m: Float[Any, "*n p 3"], intrinsics: Float[Any, "*n 3 3"]
) -> Float[Any, "*n p 2"]:
    """Where points of the camera's frame appear in the image, in pixels; z must not be 0."""
    return (in_camera_m @ intrinsics.mT)[..., :2] / in_camera_m[..., 2:]


def unproject(
    xy: Float[Any, "*n p 2"], depth_m: Float[Any, "*n p"], intrinsics: Float[Any, "*n 3 3"]
) -> Float[Any, "*n p 3"]:
    """Points of the camera's frame from places in the image (pixels) and z-depths."""
    xp = intrinsics.__array_namespace__()
    rays = xp.concat([xy, xp.ones_like(xy[..., :1])], axis=-1) @ xp.linalg.inv(intrinsics).mT
    return depth_m[..., None] * rays


def scale_intrinsics(
    intrinsics: Float[np.ndarray, "*n 3 3"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[np.ndarray, "*n 3 3"]:
    """Intrinsics after resizing from one (height, width) to another."""
    scale_y, scale_x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return intrinsics * np.array([scale_x, scale_y, 1.0], intrinsics.dtype)[:, None]


def flip_intrinsics(
    intrinsics: Float[np.ndarray, "*n 3 3"], width: int
) -> Float[np.ndarray, "*n 3 3"]:
    """Intrinsics of the horizontally mirrored image (skew changes sign)."""
    flipped = intrinsics.copy()
    flipped[..., 0, 1] = -intrinsics[..., 0, 1]
    flipped[..., 0, 2] = width - intrinsics[..., 0, 2]
    return flipped


def flip_extrinsics(
    vehicle_from_camera: Float[np.ndarray, "*n 4 4"],
) -> Float[np.ndarray, "*n 4 4"]:
    """Poses in the world mirrored at the vehicle's x-z plane, still proper rotations."""
    mirror_y = np.diag([1.0, -1.0, 1.0, 1.0]).astype(vehicle_from_camera.dtype)
    mirror_x = np.diag([-1.0, 1.0, 1.0, 1.0]).astype(vehicle_from_camera.dtype)
    return mirror_y @ vehicle_from_camera @ mirror_x


def yaw_rad(vehicle_from_camera: Float[np.ndarray, "*n 4 4"]) -> Float[np.ndarray, "*n"]:
    """Direction of the optical axis in the vehicle's ground plane, left of forward positive."""
    return np.arctan2(vehicle_from_camera[..., 1, 2], vehicle_from_camera[..., 0, 2])


def ring_neighbours(
    vehicle_from_camera: Float[np.ndarray, "n 4 4"],
    intrinsics: Float[np.ndarray, "n 3 3"],
    width: int,
    camera_mask: Bool[np.ndarray, "n"],
) -> tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """For each camera the next one counter-clockwise, and whether their views overlap.

    Only cameras in `camera_mask` take part. Two views overlap when the angle between the
    optical axes is smaller than the half fields of view that face each other, so the ends
    of a partial ring have no pair.
    """
    neighbour = np.arange(len(camera_mask), dtype=np.int32)
    overlaps = np.zeros(len(camera_mask), bool)
    present = np.flatnonzero(camera_mask)
    if len(present) < 2:
        return neighbour, overlaps
    yaw = yaw_rad(vehicle_from_camera)
    half_left = np.arctan2(intrinsics[:, 0, 2], intrinsics[:, 0, 0])
    half_right = np.arctan2(width - intrinsics[:, 0, 2], intrinsics[:, 0, 0])
    ring = present[np.argsort(yaw[present])]
    following = np.roll(ring, -1)
    gap = np.mod(yaw[following] - yaw[ring], 2 * np.pi)
    neighbour[ring] = following
    overlaps[ring] = (gap > 0) & (gap < half_left[ring] + half_right[following])
    return neighbour, overlaps


def mirror_order(
    vehicle_from_camera: Float[np.ndarray, "n 4 4"],
    camera_mask: Bool[np.ndarray, "n"],
    tolerance_rad: float = np.deg2rad(20.0),
) -> Int[np.ndarray, "n"]:
    """For each slot the camera whose mirror image looks its way (left and right swap).

    A camera without a counterpart (partial rings) keeps its own slot; if the cameras present
    do not pair up one to one, all keep their slots.
    """
    order = np.arange(len(camera_mask), dtype=np.int32)
    present = np.flatnonzero(camera_mask)
    yaw = yaw_rad(vehicle_from_camera)[present]
    apart = np.abs(np.angle(np.exp(1j * (yaw[:, None] + yaw[None, :]))))
    nearest = np.argmin(apart, axis=1) if len(present) else np.zeros(0, int)
    close = apart[np.arange(len(present)), nearest] < tolerance_rad
    source = np.where(close, nearest, np.arange(len(present)))
    if len(set(source.tolist())) == len(present):
        order[present] = present[source]
    return order
