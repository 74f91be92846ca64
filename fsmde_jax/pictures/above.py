"""A rig from above, forward up: its cameras with the LiDAR, and a fused point cloud."""

import pathlib

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Wedge

from fsmde_jax import files, rig
from fsmde_jax.pictures.point_cloud import PointCloud
from fsmde_jax.pictures.ring import plain

HEADROOM_M = 2.0  # points higher above the cameras would hide the street


def draw_from_above(
    names: list[str],
    vehicle_from_camera: Float[np.ndarray, "n 4 4"],
    intrinsics: Float[np.ndarray, "n 3 3"],
    widths_px: list[int],
    points_m: Float[np.ndarray, "p 3"],
    path: pathlib.Path,
) -> None:
    """Draws the rig in the vehicle's frame, twice: left close up, right 40 m all around.

    A camera is a dot; its field of view is a wedge around its optical axis.

    Args:
      names: of the cameras.
      widths_px: of their images; `intrinsics` are in the same pixels.
      points_m: the LiDAR's, in the vehicle's frame.
      path: the file, of any format that matplotlib writes.
    """
    figure = Figure(figsize=(13, 6.5), dpi=110)
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
            axis.text(*tip, f"{plain(name)}\n{yaw_deg[i]:+.0f}°, {positions_m[i, 2]:.1f} m up",
                      fontsize=8, ha="center", va="center", clip_on=True)  # fmt: skip
        _show_metres(axis, limit_m)
    figure.suptitle("From above; LiDAR coloured by height. Wedges are the fields of view", size=10)
    with files.replacing(path) as partial:
        figure.savefig(partial)


def draw_birds_eye(
    cloud: PointCloud,
    sample: dict[str, np.ndarray],
    cameras: tuple[str, ...],
    path: pathlib.Path,
    lidar_m: Float[np.ndarray, "p 3"],
    reach_m: float = 30.0,
) -> None:
    """Draws a fused cloud twice: left in the images' colours, right with one colour a camera.

    Where two fields of view overlap, the points of both cameras should lie on each other and on
    the LiDAR's points, which are black. Points more than `HEADROOM_M` above the cameras are left
    out.

    Args:
      sample: batch fields without `b`, of the cameras in `cameras`.
      lidar_m: in the vehicle's frame; may be empty.
      reach_m: how far the picture shows, in all directions.
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
    left, right = figure.subplots(1, 2)
    left.scatter(beside_m, ahead_m, s=1.5, c=cloud.colours[shown][upward] / 255.0, linewidths=0)
    # In random order, so that no camera covers another one where they overlap.
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
        right.plot([], [], "o", color=f"C{i}", label=plain(name) or "camera")
    if len(near_m):
        right.plot([], [], "o", color="black", markersize=2, label="LiDAR")
    right.legend(loc="upper right", fontsize=8)
    for axis, title in ((left, "colours of the images"), (right, "a colour a camera")):
        _show_metres(axis, reach_m)
        axis.set(title=title)
    figure.subplots_adjust(0.05, 0.07, 0.99, 0.94, wspace=0.12)
    with files.replacing(path) as partial:
        figure.savefig(partial)


def _wedge(
    vehicle_from_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    width_px: int,
    reach_m: float,
    **style,
) -> Wedge:
    """A camera's field of view from above; forward is up, and the left is left."""
    centre_px = intrinsics[0, 2]
    left_deg, right_deg = np.rad2deg(
        np.arctan2([centre_px, width_px - centre_px], intrinsics[0, 0])
    )
    facing_deg = 90 + np.rad2deg(rig.yaw_rad(vehicle_from_camera[None])[0])
    at = (-vehicle_from_camera[1, 3], vehicle_from_camera[0, 3])
    return Wedge(at, reach_m, facing_deg - right_deg, facing_deg + left_deg, **style)


def _show_metres(axis: Axes, reach_m: float) -> None:
    axis.set(xlim=(-reach_m, reach_m), ylim=(-reach_m, reach_m), aspect="equal")
    axis.set(xlabel="right of the origin (m)", ylabel="ahead of the origin (m)")
