"""Frames of a recording in memory, and what is found in them."""

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fsmde_jax import rig
from fsmde_jax.data.readers import recording
from fsmde_jax.data.readers.recording import Camera, RecordingError, Sample

FRAMES = 3  # read of each scene, evenly spaced
WIDTH_PX = 320  # images are shrunk to this width before they are compared
MIN_POINTS = 100  # fewer LiDAR points say nothing


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that looks wrong.

    Args:
      what: a camera's name, "A and B", "LiDAR", or the path of a file.
      fault: a word for it, the same in all scenes.
      text: the evidence in figures, and what to try.
    """

    what: str
    fault: str
    text: str


@dataclasses.dataclass(frozen=True)
class Frame:
    """A sample in memory; `points_m` are in the LiDAR's frame, none without LiDAR."""

    sample: Sample
    points_m: Float[np.ndarray, "p 3"]
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...]  # shrunk

    def world_points_m(
        self, turn: Float[np.ndarray, "3 3"] | None = None
    ) -> Float[np.ndarray, "p 3"]:
        """The points in the world, after a turn of the LiDAR on its spot."""
        if self.sample.lidar is None:
            return self.points_m
        points_m = self.points_m if turn is None else self.points_m @ turn.T
        return rig.transform(self.sample.lidar.world_from_lidar, points_m)

    def vehicle_points_m(self, camera: Camera) -> Float[np.ndarray, "p 3"]:
        """The points in the vehicle's frame at a camera's instant."""
        pose = camera.vehicle_from_camera @ np.linalg.inv(camera.world_from_camera)
        return rig.transform(pose, self.world_points_m())


def read(reader: ModuleType, path: Path, scene_id: str) -> tuple[list[Frame], list[RecordingError]]:
    """Some frames of a scene, and the errors of those that could not be read."""
    frames, broken = [], []
    try:
        scene = reader.Scene(path, scene_id)
    except RecordingError as error:
        return [], [error]
    for index in evenly(range(len(scene)), FRAMES):
        try:
            sample = scene.sample(index)
            points_m = reader.read_points(sample.lidar) if sample.lidar else np.zeros((0, 3))
            images = tuple(_small_image(camera) for camera in sample.cameras)
        except RecordingError as error:
            broken.append(error)
        else:
            frames.append(Frame(sample, points_m, images))
    return frames, broken


def evenly(items, count: int) -> list:
    """At most `count` of the items, evenly spaced, with the first and the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def _small_image(camera: Camera) -> UInt8[np.ndarray, "_ _ 3"]:
    image = recording.read_image(camera)
    if image.width > WIDTH_PX:
        size = (WIDTH_PX, round(image.height * WIDTH_PX / image.width))
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image)


def project(
    points_m: Float[np.ndarray, "p 3"], camera: Camera
) -> tuple[Float[np.ndarray, "p 2"], Float[np.ndarray, "p"], np.ndarray]:
    """Pixels and z-depths of points in the world, and which are in the image, over 1 m away."""
    in_camera_m = rig.transform_back(camera.world_from_camera, points_m)
    depth_m = in_camera_m[:, 2]
    inside = depth_m > 1.0
    xy = np.zeros((len(points_m), 2))
    xy[inside] = rig.project(in_camera_m[inside], camera.intrinsics)
    height, width = camera.size
    inside &= ((xy >= 0) & (xy < (width, height))).all(axis=1)
    return xy, depth_m, inside
