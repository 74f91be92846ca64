"""LiDAR points to image pixels, by the rules that made the public ground truth, and back out of
prepared samples (`prepared.PreparedSplit`)."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


def project_points(
    points_m: Float[np.ndarray, "p 3"],
    world_from_lidar: Float[np.ndarray, "4 4"],
    world_from_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    rule: str = "dgp",
) -> tuple[Int[np.ndarray, "q 2"], Float[np.ndarray, "q"]]:
    """Pixels (column, row) that receive a point and their z-depth in metres, in row-major order.

    Each sensor's pose is that of its own instant, and the last point in the cloud's order wins a
    pixel, however far it is.

    "dgp", the rule of TRI-ML's `dgp`: z > 0, the pixel by truncation. That goes towards zero there
    (`astype(int)`), so a coordinate in (-1, 0) counts as pixel 0; we follow, although `floor` would
    leave those points outside. `dgp` drops the skew, which is 0 in DDAD; here it is used.

    "nuscenes", the rule of nuscenes-devkit and of the depth maps SurroundDepth makes with it:
    z > 1 m, more than a pixel inside the image, the pixel by rounding.

    Args:
        points_m: the cloud in the LiDAR's frame.
        size: (height, width) of the image in the pixels of `intrinsics`.
        rule: "dgp" or "nuscenes".
    """
    in_camera_m = _inverse_transform(world_from_camera, _transform(world_from_lidar, points_m))
    in_camera_m = in_camera_m[in_camera_m[:, 2] > (1.0 if rule == "nuscenes" else 0.0)]
    depth_m = in_camera_m[:, 2]
    with np.errstate(over="ignore"):  # points next to the camera's plane leave every image
        xy = (in_camera_m @ intrinsics.T)[:, :2] / depth_m[:, None]
    height, width = size
    if rule == "nuscenes":
        inside = ((xy > 1) & (xy < (width - 1, height - 1))).all(axis=1)
        xy = np.round(xy)
    else:
        inside = ((xy > -1) & (xy < (width, height))).all(axis=1)
    uv, depth_m = xy[inside].astype(np.int64), depth_m[inside]
    pixels = uv[:, 1] * width + uv[:, 0]
    _, from_the_end = np.unique(pixels[::-1], return_index=True)
    winner = len(pixels) - 1 - from_the_end
    return uv[winner], depth_m[winner]


def _transform(
    a_from_b: Float[np.ndarray, "4 4"], points_m: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, "p 3"]:
    return points_m @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def _inverse_transform(
    a_from_b: Float[np.ndarray, "4 4"], points_m: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, "p 3"]:
    return (points_m - a_from_b[:3, 3]) @ a_from_b[:3, :3]


def slices_of(sample: dict[str, Any]) -> list[slice]:
    """Where each image's points lie in a sample's LiDAR fields."""
    ends = np.cumsum(sample["lidar_counts"]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def keep_points(sample: dict[str, Any], kept: Bool[np.ndarray, "p"]) -> dict[str, Any]:
    """The sample with the `kept` ones of its points alone."""
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
