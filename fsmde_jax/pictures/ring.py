"""Pictures of a ring: image, LiDAR and prediction of every camera in one fixed metric range."""

import pathlib

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from PIL import Image

from fsmde_jax import files, rig
from fsmde_jax.data.readers.recording import Camera
from fsmde_jax.pictures.point_cloud import PointCloud

COLOUR_MAP = "turbo_r"  # near is red, far is blue
MIN_DEPTH_M = 1.0
HEADROOM_M = 2.0  # what is higher over the cameras hides a street from above
FILM_WIDTH_PX = 1920


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
    confidence: Float[np.ndarray, "n h w"] | None = None,
) -> None:
    """One column a camera, from left of the car to right of it.

    Rows are the image, the LiDAR where there is any, the predictions, the confidence if given.

    Args:
      sample: batch fields without `b`.
      predictions_m: z-depth by the name of its row.
      confidence: 0 is black, 1 is white.
    """
    yaw = rig.yaw_rad(sample["vehicle_from_camera"])
    order = [i for i in np.argsort(-yaw) if sample["camera_mask"][i]]
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
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(order), squeeze=False)
    for row, (name, pictures) in enumerate(rows.items()):
        for column, i in enumerate(order):
            axes[row, column].imshow(pictures[i], aspect="auto", interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(name, fontsize=9)
    for column, i in enumerate(order):
        axes[0, column].set_title(f"{_plain(cameras[i])}  {np.rad2deg(yaw[i]):+.0f}°", fontsize=9)
    wide, high = figure.get_size_inches()
    figure.subplots_adjust(
        0.4 / wide, 0.1 / high, 1 - 1.1 / wide, 1 - 0.4 / high, wspace=0.02, hspace=0.02
    )
    _colour_bar(figure, max_depth_m)
    with files.replacing(path) as partial:
        figure.savefig(partial)


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
            at = np.array([-positions_m[i, 1], positions_m[i, 0]])
            facing = np.deg2rad(90 + yaw_deg[i])
            tip = at + np.array([np.cos(facing), np.sin(facing)]) * wedge_m
            axis.add_patch(
                _wedge(vehicle_from_camera[i], intrinsics[i], widths_px[i], wedge_m,
                       color=f"C{i}", alpha=0.2)
            )  # fmt: skip
            axis.plot([at[0], tip[0]], [at[1], tip[1]], color=f"C{i}")
            axis.plot(*at, "o", color=f"C{i}")
            axis.text(*tip, f"{_plain(name)}\n{yaw_deg[i]:+.0f}°, {positions_m[i, 2]:.1f} m up",
                      fontsize=8, ha="center", va="center", clip_on=True)  # fmt: skip
        axis.set(xlim=(-limit_m, limit_m), ylim=(-limit_m, limit_m), aspect="equal")
        axis.set(xlabel="right of the origin (m)", ylabel="ahead of the origin (m)")
    figure.suptitle("From above; LiDAR coloured by height. Wedges are the fields of view", size=10)
    with files.replacing(path) as partial:
        figure.savefig(partial)


def _wedge(
    vehicle_from_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    width_px: int,
    reach_m: float,
    **style,
) -> Wedge:
    """A camera's field of view from above; forward is up, and left of it anticlockwise."""
    centre_px = intrinsics[0, 2]
    left_deg, right_deg = np.rad2deg(
        np.arctan2([centre_px, width_px - centre_px], intrinsics[0, 0])
    )
    facing_deg = 90 + np.rad2deg(rig.yaw_rad(vehicle_from_camera[None])[0])
    at = (-vehicle_from_camera[1, 3], vehicle_from_camera[0, 3])
    return Wedge(at, reach_m, facing_deg - right_deg, facing_deg + left_deg, **style)


def draw_birds_eye(
    cloud: PointCloud,
    sample: dict[str, np.ndarray],
    cameras: tuple[str, ...],
    path: pathlib.Path,
    lidar_m: Float[np.ndarray, "p 3"],
    reach_m: float = 30.0,
) -> None:
    """A fused cloud from above, forward up: in the images' colours, and in one a camera.

    Where two fields of view overlap, the points of both cameras should lie on each other, and on
    the LiDAR's, which are black. What is more than `HEADROOM_M` over the cameras is left out.

    Args:
      sample: batch fields without `b`, of the cameras in `cameras`.
      lidar_m: the vehicle's frame; may be empty.
    """
    poses = sample["vehicle_from_camera"]
    ceiling_m = poses[:, 2, 3].max() + HEADROOM_M
    shown = cloud.points_m[:, 2] < ceiling_m
    points_m = cloud.points_m[shown]
    upward = np.argsort(points_m[:, 2])
    beside_m, ahead_m = -points_m[upward, 1], points_m[upward, 0]
    own = np.array([matplotlib.colors.to_rgb(f"C{i}") for i in range(len(cameras))])
    camera = cloud.camera[shown][upward]
    figure = Figure(figsize=(15, 7.6), dpi=110)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.scatter(beside_m, ahead_m, s=1.5, c=cloud.colours[shown][upward] / 255.0, linewidths=0)
    # In turns, so that no camera covers the other one where they overlap.
    mixed = np.random.default_rng(0).permutation(len(camera))
    right.scatter(
        beside_m[mixed], ahead_m[mixed], s=1.5, c=own[camera[mixed]], linewidths=0, alpha=0.6
    )
    near_m = lidar_m[lidar_m[:, 2] < ceiling_m]
    right.scatter(-near_m[:, 1], near_m[:, 0], s=0.5, c="black", linewidths=0)
    for i, name in enumerate(cameras):
        for axis in (left, right):
            axis.add_patch(
                _wedge(poses[i], sample["intrinsics"][i], sample["image"].shape[2], 2 * reach_m,
                       fill=False, color=f"C{i}", linewidth=0.5, alpha=0.7)
            )  # fmt: skip
        right.plot([], [], "o", color=f"C{i}", label=_plain(name) or "camera")
    if len(near_m):
        right.plot([], [], "o", color="black", markersize=2, label="LiDAR")
    right.legend(loc="upper right", fontsize=8)
    for axis, title in ((left, "colours of the images"), (right, "a colour a camera")):
        axis.set(xlim=(-reach_m, reach_m), ylim=(-reach_m, reach_m), aspect="equal", title=title)
        axis.set(xlabel="right of the origin (m)", ylabel="ahead of the origin (m)")
    figure.subplots_adjust(0.05, 0.07, 0.99, 0.94, wspace=0.12)
    with files.replacing(path) as partial:
        figure.savefig(partial)


def ring_views(sample: dict[str, np.ndarray], max_depth_m: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A ring's images, from left of the car to right of it, above their depths.

    Args:
      sample: batch fields without `b`, and `depth_m`, of any size.
    """
    yaw = rig.yaw_rad(sample["vehicle_from_camera"])
    order = [i for i in np.argsort(-yaw) if sample["camera_mask"][i]]
    image, depth_m = sample["image"][order], sample["depth_m"][order]
    (height, width), (rows, columns) = image.shape[1:3], depth_m.shape[1:]
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    return stack_views(image, depth_m[:, row[:, None], column], max_depth_m)


def stack_views(
    image: UInt8[np.ndarray, "n h w 3"], depth_m: Float[np.ndarray, "n h w"], max_depth_m: float
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A film's frame: a camera's image beside its depth; a ring's images above their depths.

    Views are enlarged by a whole number, to `FILM_WIDTH_PX` if they can.
    """
    depth = np.rint(depth_colours(depth_m, max_depth_m) * 255).astype(np.uint8)
    columns = max(2, len(image))
    scale = max(1, FILM_WIDTH_PX // (columns * image.shape[2]))
    views = [np.concatenate([_enlarged(one, scale) for one in rows], axis=1)
             for rows in (image, depth)]  # fmt: skip
    return np.concatenate(views, axis=1 if len(image) == 1 else 0)


def _enlarged(image: UInt8[np.ndarray, "h w 3"], scale: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = image.shape[:2]
    size = (width * scale, height * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


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
        axis.set_title(f"{_plain(camera.name)}  {yaw:+.0f}°, {len(xy)} points", fontsize=9)
    right = 1 - 1.1 / figure.get_figwidth()
    figure.subplots_adjust(0.01, 0.01, right, 0.95, wspace=0.02, hspace=0.1)
    _colour_bar(figure, max_depth_m)
    with files.replacing(path) as partial:
        figure.savefig(partial)


def _plain(name: str) -> str:
    """A camera's or file's name as matplotlib can show it: no formula, no broken UTF-8."""
    return name.encode(errors="replace").decode().replace("$", r"\$")


def _colour_bar(figure: Figure, max_depth_m: float) -> None:
    norm = matplotlib.colors.LogNorm(MIN_DEPTH_M, max_depth_m)
    mappable = matplotlib.cm.ScalarMappable(norm, COLOUR_MAP)
    inch = 1 / figure.get_figwidth()
    axis = figure.add_axes((1 - 0.95 * inch, 0.1, 0.2 * inch, 0.75))
    bar = figure.colorbar(mappable, cax=axis)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200) if t <= max_depth_m]
    bar.set_ticks(ticks, labels=[f"{t} m" for t in ticks])
