"""Panels of a ring, from left of the car to right of it: images, LiDAR, predictions."""

import pathlib

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from fsmde_jax import files, rig
from fsmde_jax.data.readers.recording import Camera
from fsmde_jax.pictures.colours import depth_colours, draw_colour_bar
from fsmde_jax.pictures.film import stack_views


def draw_ring(
    sample: dict[str, np.ndarray],
    predictions_m: dict[str, Float[np.ndarray, "n h w"]],
    cameras: tuple[str, ...],
    max_depth_m: float,
    path: pathlib.Path,
    confidence: Float[np.ndarray, "n h w"] | None = None,
) -> None:
    """Draws a column a camera, from left of the car to right of it.

    The rows are images, LiDAR (if there is any), predictions and confidence (if it is given).

    Args:
      sample: batch fields without `b`.
      predictions_m: z-depth by the name of its row.
      cameras: their names.
      max_depth_m: end of the colour range.
      path: the file, of any format that matplotlib writes.
      confidence: 0 is black, 1 is white.
    """
    yaw, order = rig.yaw_rad(sample["vehicle_from_camera"]), _left_to_right(sample)
    height, width = sample["image"].shape[1:3]
    column_inches = 3.2
    row_inches = column_inches * height / width
    scale = max(1, round(480 / width))
    rows = {"image": sample["image"]}
    if sample["lidar_depth_m"].any():
        points = zip(sample["image"], sample["lidar_xy"], sample["lidar_depth_m"], strict=True)
        rows["LiDAR"] = [lidar_overlay(*of_image, max_depth_m, scale) for of_image in points]
    rows |= {name: depth_colours(depth, max_depth_m) for name, depth in predictions_m.items()}
    if confidence is not None:
        rows["confidence"] = confidence[..., None].repeat(3, axis=-1)
    figure = Figure(
        figsize=(column_inches * len(order) + 1.5, len(rows) * row_inches + 0.5), dpi=120
    )
    axes = figure.subplots(len(rows), len(order), squeeze=False)
    for row, (name, pictures) in enumerate(rows.items()):
        for column, i in enumerate(order):
            axes[row, column].imshow(pictures[i], aspect="auto", interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(name, fontsize=9)
    for column, i in enumerate(order):
        axes[0, column].set_title(f"{plain(cameras[i])}  {np.rad2deg(yaw[i]):+.0f}°", fontsize=9)
    wide, high = figure.get_size_inches()
    figure.subplots_adjust(
        0.4 / wide, 0.1 / high, 1 - 1.1 / wide, 1 - 0.4 / high, wspace=0.02, hspace=0.02
    )
    draw_colour_bar(figure, max_depth_m)
    with files.replacing(path) as partial:
        figure.savefig(partial)


def draw_overlays(
    overlays: list[
        tuple[Camera, UInt8[np.ndarray, "_ _ 3"], Float[np.ndarray, "_ 2"], Float[np.ndarray, "_"]]
    ],
    path: pathlib.Path,
    max_depth_m: float = 80.0,
) -> None:
    """Draws the LiDAR over the image of every camera, from left of the car to right of it.

    Args:
      overlays: of each camera its image, the points' pixels in it, and their depths in metres.
      path: the file, of any format that matplotlib writes.
      max_depth_m: end of the colour range.
    """
    poses = np.stack([camera.vehicle_from_camera for camera, *_ in overlays])
    yaw_deg = np.rad2deg(rig.yaw_rad(poses))
    ordered = [overlays[i] for i in np.argsort(-yaw_deg)]
    columns = min(3, len(ordered))
    rows = -(-len(ordered) // columns)
    height, width = ordered[0][1].shape[:2]
    figure = Figure(figsize=(5 * columns + 1, (5 * height / width + 0.3) * rows), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    ordered_yaw_deg = -np.sort(-yaw_deg)
    for axis, (camera, image, xy, depth_m), yaw in zip(
        axes, ordered, ordered_yaw_deg, strict=False
    ):
        scale = max(1, round(640 / image.shape[1]))
        axis.imshow(lidar_overlay(image, xy, depth_m, max_depth_m, scale))
        axis.set_title(f"{plain(camera.name)}  {yaw:+.0f}°, {len(xy)} points", fontsize=9)
    right = 1 - 1.1 / figure.get_figwidth()
    figure.subplots_adjust(0.01, 0.01, right, 0.95, wspace=0.02, hspace=0.1)
    draw_colour_bar(figure, max_depth_m)
    with files.replacing(path) as partial:
        figure.savefig(partial)


def ring_views(sample: dict[str, np.ndarray], max_depth_m: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """One picture of a ring: its images, from left of the car to right of it, above their depths.

    Args:
      sample: batch fields without `b`, and `depth_m` of any size.
      max_depth_m: end of the colour range.
    """
    order = _left_to_right(sample)
    image, depth_m = sample["image"][order], sample["depth_m"][order]
    (height, width), (rows, columns) = image.shape[1:3], depth_m.shape[1:]
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    return stack_views(image, depth_m[:, row[:, None], column], max_depth_m)


def lidar_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    xy: Float[np.ndarray, "p 2"],
    depth_m: Float[np.ndarray, "p"],
    max_depth_m: float,
    scale: int,
) -> Float[np.ndarray, "h2 w2 3"]:
    """LiDAR points over the dimmed grey image, enlarged `scale` times; near points on top.

    Args:
      xy: the points' pixels in `image`.
      depth_m: their depths; points of depth 0 are not there.
      max_depth_m: end of the colour range.
    """
    grey = image.mean(axis=-1, keepdims=True).repeat(3, axis=-1) / 255.0 * 0.7
    canvas = grey.repeat(scale, axis=0).repeat(scale, axis=1)
    far_first = np.argsort(-depth_m)
    far_first = far_first[depth_m[far_first] > 0]
    column, row = (xy[far_first] * scale).astype(int).T
    colours = depth_colours(depth_m[far_first], max_depth_m)
    for dy in (0, 1):
        for dx in (0, 1):
            y = np.clip(row + dy, 0, canvas.shape[0] - 1)
            x = np.clip(column + dx, 0, canvas.shape[1] - 1)
            canvas[y, x] = colours
    return canvas


def _left_to_right(sample: dict[str, np.ndarray]) -> Int[np.ndarray, "m"]:
    """The places of the cameras that the rig has, from left of the car to right of it."""
    order = np.argsort(-rig.yaw_rad(sample["vehicle_from_camera"]))
    return order[sample["camera_mask"][order]]


def plain(name: str) -> str:
    """A camera's or file's name as matplotlib can show it: no formula, no broken UTF-8."""
    return name.encode(errors="replace").decode().replace("$", r"\$")
