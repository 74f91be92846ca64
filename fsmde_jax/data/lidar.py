"""LiDAR points: to image pixels by the rules of the public ground truth, and in prepared samples.

Prepared samples are those of `prepared.PreparedSplit`.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fsmde_jax import rig

# Two public projects make nuScenes' ground truth, each by its own rule. Bit r of a stored point's
# `lidar_rules` says that the point wins its pixel by RULES[r]. Training learns from all stored
# points; evaluation uses those of its protocol (`of_rule`).
RULES = ("surrounddepth", "vfdepth")
ALL_RULES = 2 ** len(RULES) - 1


def project_points(
    points_m: Float[np.ndarray, "p 3"],
    world_from_lidar: Float[np.ndarray, "4 4"],
    world_from_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    rule: str = "dgp",
) -> tuple[Int[np.ndarray, "q 2"], Float[np.ndarray, "q"]]:
    """Pixels (column, row) that receive a point and their z-depth in metres, in row-major order.

    Common to all rules: each sensor has the pose of its own instant, all points in front of the
    camera (z > 0) count, and the last point in the cloud's order wins a pixel, at any distance.

    "dgp", the rule of TRI-ML's `dgp`: coordinates are truncated to pixels. They are truncated
    towards zero (`astype(int)`), so a coordinate in (-1, 0) counts as pixel 0. This is followed
    here, although `floor` would leave those points outside. `dgp` ignores the skew, which is 0 in
    DDAD; here it is used.

    "surrounddepth", the rule of SurroundDepth (`tools/export_gt_depth_nusc.py`): coordinates are
    rounded (half to even); then pixels from 0 to width - 1 and height - 1 are inside.

    "vfdepth", the rule of VFDepth (`dataset/nuscenes_dataset.py`): coordinates from 0 to width - 1
    and height - 1 are inside; then they are rounded. Its pixels are a subset of SurroundDepth's.

    nuscenes-devkit keeps only z > 1 m and a margin of one pixel, but only in its drawing function
    (`map_pointcloud_to_image`), which neither of the two uses. SurroundDepth computes in single
    precision. On a real key frame that moved one point of 22,134 to the next pixel. Here it is
    double precision as in VFDepth, and none of VFDepth's points moved.

    Args:
        points_m: the cloud in the LiDAR's frame.
        size: (height, width) of the image in the pixels of `intrinsics`.
        rule: "dgp" or one of `RULES`.
    """
    xy, depth_m = _onto_image(points_m, world_from_lidar, world_from_camera, intrinsics)
    winner, uv = _winners(xy, size, rule)
    return uv, depth_m[winner]


def project_for_rules(
    points_m: Float[np.ndarray, "p 3"],
    world_from_lidar: Float[np.ndarray, "4 4"],
    world_from_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
) -> tuple[Int[np.ndarray, "q 2"], Float[np.ndarray, "q"], UInt8[np.ndarray, "q"]]:
    """The points of `project_points` by any of `RULES`: pixels, depths and the rules' bits.

    In row-major order. A pixel that two rules give to different points comes twice.
    """
    xy, depth_m = _onto_image(points_m, world_from_lidar, world_from_camera, intrinsics)
    bits = np.zeros(len(xy), np.uint8)
    uv = np.zeros((len(xy), 2), np.int64)
    for bit, rule in enumerate(RULES):
        winner, pixels = _winners(xy, size, rule)
        bits[winner] |= 1 << bit
        uv[winner] = pixels  # the rules differ in what is inside, not in the pixel
    kept = np.flatnonzero(bits)
    kept = kept[np.argsort(uv[kept] @ (1, size[1]), kind="stable")]
    return uv[kept], depth_m[kept], bits[kept]


def _onto_image(
    points_m: Float[np.ndarray, "p 3"],
    world_from_lidar: Float[np.ndarray, "4 4"],
    world_from_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> tuple[Float[np.ndarray, "q 2"], Float[np.ndarray, "q"]]:
    """Image coordinates and depths of the points in front of the camera, in the cloud's order."""
    in_world_m = rig.transform(world_from_lidar, points_m)
    in_camera_m = rig.transform_back(world_from_camera, in_world_m)
    in_camera_m = in_camera_m[in_camera_m[:, 2] > 0]
    with np.errstate(over="ignore"):  # points next to the camera's plane leave every image
        return rig.project(in_camera_m, intrinsics), in_camera_m[:, 2]


def _winners(
    xy: Float[np.ndarray, "p 2"], size: tuple[int, int], rule: str
) -> tuple[Int[np.ndarray, "q"], Int[np.ndarray, "q 2"]]:
    """The points that win a pixel, and that pixel, in row-major order."""
    height, width = size
    last = (width - 1, height - 1)
    pixels = np.trunc(xy) if rule == "dgp" else np.round(xy)
    bounded = xy if rule == "vfdepth" else pixels
    inside = np.flatnonzero(((bounded >= 0) & (bounded <= last)).all(axis=1))
    uv = pixels[inside].astype(np.int64)
    _, from_the_end = np.unique(uv[::-1] @ (1, width), return_index=True)
    winner = len(uv) - 1 - from_the_end
    return inside[winner], uv[winner]


def of_rule(sample: dict[str, Any], rule: str) -> dict[str, Any]:
    """A prepared sample with only the LiDAR points of one of `RULES`.

    Points that were projected by DGP's rule belong to every rule, so nothing changes there.
    """
    return keep_points(sample, (sample["lidar_rules"] >> RULES.index(rule) & 1).astype(bool))


def slices_of(sample: dict[str, Any]) -> list[slice]:
    """Where each image's points lie in a sample's LiDAR fields."""
    ends = np.cumsum(sample["lidar_counts"]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def keep_points(sample: dict[str, Any], kept: Bool[np.ndarray, "p"]) -> dict[str, Any]:
    """The sample with only the `kept` ones of its points."""
    counts = np.array([kept[points].sum() for points in slices_of(sample)])
    fields = {name for name in sample if name.startswith("lidar_")} - {"lidar_counts"}
    out = {**sample, **{name: sample[name][kept] for name in fields}}
    return {**out, "lidar_counts": counts.astype(sample["lidar_counts"].dtype)}


def pixels_at(sample: dict[str, Any], image: int, size: tuple[int, int]) -> Int[np.ndarray, "p 2"]:
    """The pixels (column, row) of an image's points, truncated to another size."""
    height, width = size
    native = sample["native_sizes"][image].astype(np.int64)
    uv = sample["lidar_uv"][slices_of(sample)[image]].astype(np.int64)
    return uv * (width, height) // native[::-1]
