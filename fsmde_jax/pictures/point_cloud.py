"""Point clouds: pixels with depth as points of the vehicle's frame, of all cameras; PLY files.

Vehicle: x forward, y left, z up, in metres. The cameras are taken to see the same instant.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fsmde_jax import rig

MAX_SLOPE = 8.0  # tan 83°: a wall six metres aside, seen until 48 metres ahead


class PointCloud(NamedTuple):
    """Points of all cameras."""

    points_m: Float[np.ndarray, "p 3"]
    colours: UInt8[np.ndarray, "p 3"]
    camera: Int[np.ndarray, "p"]  # place of the camera that saw the point


def fuse(
    sample: dict[str, np.ndarray],
    depth_m: Float[np.ndarray, "n h w"],
    usable: Bool[np.ndarray, "n h w"],
) -> PointCloud:
    """One cloud of all cameras' usable pixels.

    Args:
      sample: batch fields of `data/pipeline.py` without `b`.
      depth_m: at the size of the images.
    """
    n, height, width = depth_m.shape
    y, x = np.mgrid[:height, :width]
    centres = np.stack([x, y], axis=-1) + np.float32(0.5)
    points_m = [
        rig.transform(pose, rig.unproject(centres[seen], z[seen], k))
        for z, seen, k, pose in zip(
            depth_m, usable, sample["intrinsics"], sample["vehicle_from_camera"], strict=True
        )
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
    """Pixels at the edge of a near object whose depth lies between the object and its background.

    There depth changes along a row faster than on any plausible surface: by more than `MAX_SLOPE`
    metres per metre sideways. Columns are not looked at, since a flat road changes as fast there.
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
        [rig.transform(pose, rig.unproject(xy[z > 0], z[z > 0], k)) for xy, z, k, pose in rows]
    ).astype(np.float32)


def write_ply(path: pathlib.Path, cloud: PointCloud) -> None:
    """Writes a binary little-endian PLY: x y z in metres and red green blue."""
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
