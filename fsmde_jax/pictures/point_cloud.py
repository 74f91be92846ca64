"""Pixels with depth as points of the vehicle's frame: a ring's cameras fused, and PLY files.

Vehicle: x forward, y left, z up, in metres. The cameras are taken to see one instant.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

MAX_SLOPE = 8.0  # tan 83°: a wall six metres aside, seen until 48 metres ahead


class PointCloud(NamedTuple):
    """Points of all cameras."""

    points_m: Float[np.ndarray, "p 3"]
    colours: UInt8[np.ndarray, "p 3"]
    camera: Int[np.ndarray, "p"]  # place of the camera that saw it


def unproject(
    xy: Float[np.ndarray, "*p 2"],
    depth_m: Float[np.ndarray, "*p"],
    intrinsics: Float[np.ndarray, "3 3"],
    vehicle_from_camera: Float[np.ndarray, "4 4"],
) -> Float[np.ndarray, "*p 3"]:
    """Where places in an image (pixels) lie, given their z-depths."""
    rays = np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1) @ np.linalg.inv(intrinsics).T
    in_camera_m = rays * depth_m[..., None]
    return in_camera_m @ vehicle_from_camera[:3, :3].T + vehicle_from_camera[:3, 3]


def fuse(
    sample: dict[str, np.ndarray],
    depth_m: Float[np.ndarray, "n h w"],
    usable: Bool[np.ndarray, "n h w"],
) -> PointCloud:
    """The usable pixels of all cameras.

    Args:
      sample: batch fields of `data/pipeline.py` without `b`.
      depth_m: at the size of the images.
    """
    n, height, width = depth_m.shape
    y, x = np.mgrid[:height, :width]
    centres = np.stack([x, y], axis=-1) + np.float32(0.5)
    points_m = [
        unproject(
            centres[usable[i]],
            depth_m[i][usable[i]],
            sample["intrinsics"][i],
            sample["vehicle_from_camera"][i],
        )
        for i in range(n)
    ]
    camera = np.repeat(np.arange(n), usable.sum(axis=(1, 2)))
    return PointCloud(np.concatenate(points_m).astype(np.float32), sample["image"][usable], camera)


def fuse_reliable(
    sample: dict[str, np.ndarray],
    depth_m: Float[np.ndarray, "n h w"],
    confidence: Float[np.ndarray, "n h w"],
    min_confidence: float,
    max_depth_m: float,
) -> PointCloud:
    """The pixels of all cameras nearer than `max_depth_m`, with at least that confidence, no smear.

    Args:
      sample: as for `fuse`.
      depth_m: at the size of the images.
      confidence: 0 to 1.
    """
    usable = (depth_m < max_depth_m) & (confidence >= min_confidence)
    return fuse(sample, depth_m, usable & ~is_smear(depth_m, sample["intrinsics"]))


def is_smear(
    depth_m: Float[np.ndarray, "n h w"], intrinsics: Float[np.ndarray, "n 3 3"]
) -> Bool[np.ndarray, "n h w"]:
    """Pixels between a near edge and what is behind it, whose depths are of neither.

    There depth changes along a row faster than on a surface seen at a glance, `MAX_SLOPE` metres
    away per metre aside. Not along a column, where a flat road does so, too.
    """
    step = np.gradient(np.log(depth_m), axis=2)
    return np.abs(step) * intrinsics[:, None, None, 0, 0] > MAX_SLOPE


def of_lidar(sample: dict[str, np.ndarray]) -> Float[np.ndarray, "p 3"]:
    """The LiDAR points that the cameras of a sample see."""
    rows = zip(
        *(sample[field] for field in
          ("lidar_xy", "lidar_depth_m", "intrinsics", "vehicle_from_camera")),
        strict=True,
    )  # fmt: skip
    return np.concatenate(
        [unproject(xy[z > 0], z[z > 0], k, pose) for xy, z, k, pose in rows]
    ).astype(np.float32)


def write_ply(path: pathlib.Path, cloud: PointCloud) -> None:
    """Binary little-endian PLY: x y z in metres and red green blue."""
    types = [(axis, "<f4") for axis in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    table = np.empty(len(cloud.points_m), types)
    for values, names in ((cloud.points_m, "xyz"), (cloud.colours, ("red", "green", "blue"))):
        for column, name in enumerate(names):
            table[name] = values[:, column]
    properties = "".join(
        f"property {'float' if kind == '<f4' else 'uchar'} {name}\n" for name, kind in types
    )
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        "comment metres; x forward, y left, z up\n"
        f"element vertex {len(table)}\n{properties}end_header\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode("ascii") + table.tobytes())
