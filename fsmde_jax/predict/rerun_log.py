"""Predictions as a recording for the Rerun viewer: `rerun OUT/recording.rrd`.

Under `world` (the vehicle's frame) lie each camera with its image and depth, the LiDAR and the
fused cloud, one step of the timeline `sample` an item.
"""

import pathlib

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from jaxtyping import Float

from fsmde_jax.pictures.point_cloud import PointCloud
from fsmde_jax.predict.inputs import Item


class RerunLog:
    """Writes a recording, item by item."""

    def __init__(self, path: pathlib.Path, max_depth_m: float):
        self._path, self._max_depth_m = path, max_depth_m
        self._recording, self._count = None, 0

    def add(
        self,
        item: Item,
        depth_m: Float[np.ndarray, "n h w"],
        cloud: PointCloud,
        lidar_m: Float[np.ndarray, "p 3"],
    ) -> None:
        """One more step."""
        if self._recording is None:
            self._begin(item)
        log, sample = self._recording.log, item.sample
        self._recording.set_time("sample", sequence=self._count)
        self._count += 1
        log("world/name", rr.TextDocument(item.name))
        for i, camera in enumerate(_entities(item)):
            pose = sample["vehicle_from_camera"][i]
            height, width = depth_m.shape[1:]
            log(camera, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            log(camera, rr.Pinhole(
                image_from_camera=sample["intrinsics"][i],
                resolution=[width, height],
                camera_xyz=rr.ViewCoordinates.RDF,
                image_plane_distance=1.0,
            ))  # fmt: skip
            log(f"{camera}/image", rr.Image(sample["image"][i]).compress(jpeg_quality=90))
            shown = {"meter": 1.0, "colormap": "turbo", "depth_range": (0, self._max_depth_m)}
            log(f"{camera}/depth", rr.DepthImage(depth_m[i], **shown))
        log("world/lidar", rr.Points3D(lidar_m, colors=[255, 255, 255], radii=0.03))
        log("world/cloud", rr.Points3D(cloud.points_m, colors=cloud.colours, radii=0.04))

    def _begin(self, item: Item) -> None:
        """The layout: the cloud beside a pair of pictures a camera."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._recording = rr.RecordingStream("fsmde_jax")
        cameras = _entities(item)
        # In space the cloud takes the place of the depth images.
        in_space = ["+ /world/**", *(f"- /{camera}/depth" for camera in cameras)]
        pictures = [
            rrb.Spatial2DView(origin=f"/{camera}/{kind}", name=f"{camera.split('/')[1]} {kind}")
            for camera in cameras
            for kind in ("image", "depth")
        ]
        layout = rrb.Horizontal(
            rrb.Spatial3DView(origin="/world", contents=in_space, name="fused cloud"),
            rrb.Grid(*pictures, grid_columns=2),
            column_shares=[2, 1],
        )
        self._recording.save(self._path, default_blueprint=rrb.Blueprint(layout))
        self._recording.log("world", rr.ViewCoordinates.FLU, static=True)

    def close(self) -> None:
        """Waits until all is on disk; `OSError` where it cannot be written."""
        if self._recording is None:
            return
        try:
            self._recording.flush()
        except RuntimeError as error:
            raise OSError(f"{self._path}: {error}") from error
        self._recording.disconnect()


def _entities(item: Item) -> list[str]:
    return [f"world/{camera or 'camera'}" for camera in item.cameras]
