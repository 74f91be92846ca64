"""Pictures of a ring: image, LiDAR and prediction of every camera in one fixed metric range."""

import pathlib

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from fsmde_jax import rig
from fsmde_jax.data.recording import Camera

COLOUR_MAP = "turbo_r"  # near is red, far is blue
MIN_DEPTH_M = 1.0


def depth_colours(
    depth_m: Float[np.ndarray, "*s"], max_depth_m: float
) -> Float[np.ndarray, "*s 3"]:
    """RGB in 0..1, logarithmic from 1 m to `max_depth_m`; the same for every image."""
    place = np.log(np.maximum(depth_m, 1e-6) / MIN_DEPTH_M) / np.log(max_depth_m / MIN_DEPTH_M)
    return matplotlib.colormaps[COLOUR_MAP](np.clip(place, 0, 1))[..., :3]


def lidar_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    xy: Float[np.ndarray, "p 2"],
    depth_m: Float[np.ndarray, "p"],
    max_depth_m: float,
    scale: int,
) -> Float[np.ndarray, "h2 w2 3"]:
    """LiDAR points over the dimmed grey image, enlarged `scale` times; near points on top."""
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


def draw_ring(
    sample: dict[str, np.ndarray],
    predictions_m: dict[str, Float[np.ndarray, "n h w"]],
    cameras: tuple[str, ...],
    max_depth_m: float,
    path: pathlib.Path,
) -> None:
    """One column a camera, from left of the car to right of it; rows image, LiDAR, predictions.

    Args:
      sample: batch fields without `b`.
      predictions_m: z-depth by the name of its row.
    """
    yaw = rig.yaw_rad(sample["vehicle_from_camera"])
    order = [i for i in np.argsort(-yaw) if sample["camera_mask"][i]]
    height, width = sample["image"].shape[1:3]
    column_inches = 3.2
    row_inches = column_inches * height / width
    rows = 2 + len(predictions_m)
    figure = Figure(figsize=(column_inches * len(order) + 1.0, rows * row_inches + 0.6), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(order), squeeze=False)
    scale = max(1, round(480 / width))
    for column, i in enumerate(order):
        overlay = lidar_overlay(
            sample["image"][i],
            sample["lidar_xy"][i],
            sample["lidar_depth_m"][i],
            max_depth_m,
            scale,
        )
        predicted = [depth_colours(d[i], max_depth_m) for d in predictions_m.values()]
        for row, picture in enumerate((sample["image"][i], overlay, *predicted)):
            axes[row, column].imshow(picture, aspect="auto", interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(f"{cameras[i]}  {np.rad2deg(yaw[i]):+.0f}°", fontsize=9)
    for row, name in enumerate(("image", "LiDAR", *predictions_m)):
        axes[row, 0].set_ylabel(name, fontsize=9)
    figure.subplots_adjust(0.02, 0.02, 0.93, 0.93, wspace=0.02, hspace=0.02)
    _colour_bar(figure, max_depth_m)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_from_above(
    names: list[str],
    vehicle_from_camera: Float[np.ndarray, "n 4 4"],
    intrinsics: Float[np.ndarray, "n 3 3"],
    widths_px: list[int],
    points_m: Float[np.ndarray, "p 3"],
    path: pathlib.Path,
) -> None:
    """The ring in the vehicle's frame, forward up: near by with the cameras, far with the LiDAR.

    A camera is a dot, its field of view a wedge around its optical axis.
    """
    figure = Figure(figsize=(13, 6.5), dpi=110)
    FigureCanvasAgg(figure)
    positions_m = vehicle_from_camera[:, :3, 3]
    reach_m = 2 * max(1.5, float(np.abs(positions_m[:, :2]).max()))
    yaw_deg = np.rad2deg(rig.yaw_rad(vehicle_from_camera))
    beside_m, ahead_m, up_m = -points_m[:, 1], points_m[:, 0], points_m[:, 2]
    for axis, limit_m, wedge_m in zip(
        figure.subplots(1, 2), (reach_m, 40.0), (0.4 * reach_m, 30.0), strict=True
    ):
        axis.scatter(beside_m, ahead_m, s=0.4, c=up_m, cmap="viridis", vmin=-1, vmax=5)
        for i, name in enumerate(names):
            centre_px = intrinsics[i, 0, 2]
            left_deg, right_deg = np.rad2deg(
                np.arctan2([centre_px, widths_px[i] - centre_px], intrinsics[i, 0, 0])
            )
            at = np.array([-positions_m[i, 1], positions_m[i, 0]])
            facing_deg = 90 + yaw_deg[i]  # forward is up, and left of it anticlockwise
            facing = np.deg2rad(facing_deg)
            tip = at + np.array([np.cos(facing), np.sin(facing)]) * wedge_m
            first_deg, last_deg = facing_deg - right_deg, facing_deg + left_deg
            axis.add_patch(Wedge(at, wedge_m, first_deg, last_deg, color=f"C{i}", alpha=0.2))
            axis.plot([at[0], tip[0]], [at[1], tip[1]], color=f"C{i}")
            axis.plot(*at, "o", color=f"C{i}")
            axis.text(*tip, f"{name}\n{yaw_deg[i]:+.0f}°, {positions_m[i, 2]:.1f} m up",
                      fontsize=8, ha="center", va="center", clip_on=True)  # fmt: skip
        axis.set(xlim=(-limit_m, limit_m), ylim=(-limit_m, limit_m), aspect="equal")
        axis.set(xlabel="right of the origin (m)", ylabel="ahead of the origin (m)")
    figure.suptitle("From above; LiDAR coloured by height. Wedges are the fields of view", size=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_overlays(
    overlays: list[
        tuple[Camera, UInt8[np.ndarray, "_ _ 3"], Float[np.ndarray, "_ 2"], Float[np.ndarray, "_"]]
    ],
    path: pathlib.Path,
    max_depth_m: float = 80.0,
) -> None:
    """LiDAR over the image of every camera, from left of the car to right of it.

    Args:
      overlays: camera, image, pixels of the points in that image, their depths in metres.
      max_depth_m: end of the colour range.
    """
    poses = np.stack([camera.vehicle_from_camera for camera, *_ in overlays])
    yaw_deg = np.rad2deg(rig.yaw_rad(poses))
    ordered = [overlays[i] for i in np.argsort(-yaw_deg)]
    columns = min(3, len(ordered))
    rows = -(-len(ordered) // columns)
    height, width = ordered[0][1].shape[:2]
    figure = Figure(figsize=(5 * columns + 1, (5 * height / width + 0.3) * rows), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    ordered_yaw_deg = -np.sort(-yaw_deg)
    for axis, (camera, image, xy, depth_m), yaw in zip(
        axes, ordered, ordered_yaw_deg, strict=False
    ):
        scale = max(1, round(640 / image.shape[1]))
        axis.imshow(lidar_overlay(image, xy, depth_m, max_depth_m, scale))
        axis.set_title(f"{camera.name}  {yaw:+.0f}°, {len(xy)} points", fontsize=9)
    figure.subplots_adjust(0.01, 0.01, 0.93, 0.95, wspace=0.02, hspace=0.1)
    _colour_bar(figure, max_depth_m)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _colour_bar(figure: Figure, max_depth_m: float) -> None:
    norm = matplotlib.colors.LogNorm(MIN_DEPTH_M, max_depth_m)
    mappable = matplotlib.cm.ScalarMappable(norm, COLOUR_MAP)
    axis = figure.add_axes((0.94, 0.1, 0.012, 0.75))
    bar = figure.colorbar(mappable, cax=axis)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200) if t <= max_depth_m]
    bar.set_ticks(ticks, labels=[f"{t} m" for t in ticks])
