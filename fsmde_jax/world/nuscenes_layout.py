"""Writes a miniature world again in nuScenes' layout: tables, `samples/` and `sweeps/`.

All thirteen tables are there, so nuscenes-devkit opens the folder too; those of annotations are
empty. What the world does not have is written as nothing: the ring number of a LiDAR point is 0.
"""

import collections
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float

from fsmde_jax.data.readers import dgp, nuscenes, recording
from fsmde_jax.errors import UserError
from fsmde_jax.world.meshes import rotation
from fsmde_jax.world.sensors import MOUNTS, pose
from fsmde_jax.world.writer import quaternion

VERSION = "v1.0-trainval"  # its lists of scenes have room for a world
# Both in ring order from the front.
CHANNELS = dict(zip((mount.name for mount in MOUNTS), nuscenes.CAMERAS, strict=True))
# As on the real car: x to its right, y ahead, z up.
_VEHICLE_FROM_LIDAR = pose(rotation(-np.pi / 2), np.array([0.94, 0.0, 1.84]))
_MAP_FILE = "maps/blank.png"
_LAST_SCENE = 9999
_TICKS_PER_US = 10  # the world's file stems count 100 ns

Row = dict[str, Any]


def write_nuscenes(world: pathlib.Path, out: pathlib.Path, key_every: int = 1) -> None:
    """Writes the world in `world`, as `write_world` left it, into `out/v1.0-trainval` and beside.

    Scenes are renamed so that they fall into their split by nuScenes' lists. Points are rounded
    to float32 in a sensor frame of their own; images are copied byte by byte.

    Args:
      key_every: every so many samples of a scene one is a key frame; the rest become sweeps.

    Raises `UserError` where `out` has tables already or a split has more scenes than its list,
    `RecordingError` where the world is broken.
    """
    tables_dir = out / VERSION
    if tables_dir.exists():
        raise UserError(f"{tables_dir} exists: remove it, or choose another folder")
    dataset_json = dgp.find(world)
    writer = _Writer(out, key_every)
    for split in ("train", "val"):
        scenes = dgp.scene_paths(dataset_json, split)
        names = list(itertools.islice(_names(split), len(scenes)))
        if len(names) < len(scenes):
            raise UserError(
                f"{dataset_json}: {len(scenes)} {split} scenes, nuScenes names {len(names)}"
            )
        for name, path in zip(names, scenes.values(), strict=True):
            writer.add_scene(name, dgp.Scene(path))
    unfinished = out / f".unfinished-{VERSION}"
    unfinished.mkdir(parents=True, exist_ok=True)
    for table, rows in writer.tables().items():
        (unfinished / f"{table}.json").write_text(json.dumps(rows, indent=0))
    unfinished.rename(tables_dir)


def _names(split: str) -> Iterator[str]:
    """Names of scenes that are of the split."""
    names = (f"scene-{number:04d}" for number in range(1, _LAST_SCENE + 1))
    return (name for name in names if nuscenes.split_of(name, VERSION) == split)


def _token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def _motion(a_from_b: Float[np.ndarray, "4 4"]) -> Row:
    return {
        "rotation": quaternion(a_from_b[:3, :3]).tolist(),
        "translation": a_from_b[:3, 3].tolist(),
    }


class _Writer:
    """Writes blobs as scenes come and gathers the rows of the tables."""

    def __init__(self, out: pathlib.Path, key_every: int):
        self.out, self.key_every = out, key_every
        self.rows: dict[str, list[Row]] = collections.defaultdict(list)
        self.calibrations: dict[str, Row] = {}  # by token

    def tables(self) -> dict[str, list[Row]]:
        """All tables; the sensors, the log and the map are the same for every scene."""
        channels = (*nuscenes.CAMERAS, nuscenes.LIDAR)
        sensors = [
            {
                "token": _token("sensor", channel),
                "channel": channel,
                "modality": "lidar" if channel == nuscenes.LIDAR else "camera",
            }
            for channel in channels
        ]
        log = {"token": _token("log"), "logfile": "", "vehicle": "", "date_captured": "",
               "location": "miniature-world"}  # fmt: skip
        blank = {"token": _token("map"), "log_tokens": [log["token"]],
                 "category": "semantic_prior", "filename": _MAP_FILE}  # fmt: skip
        (self.out / _MAP_FILE).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (1, 1)).save(self.out / _MAP_FILE)
        empty = ("category", "attribute", "visibility", "instance", "sample_annotation")
        return {
            **{table: [] for table in empty},
            **self.rows,
            "calibrated_sensor": list(self.calibrations.values()),
            "sensor": sensors,
            "log": [log],
            "map": [blank],
        }

    def add_scene(self, name: str, scene: dgp.Scene) -> None:
        """Blobs and rows of a scene."""
        key_frames: list[Row] = []
        of_channel: dict[str, list[Row]] = collections.defaultdict(list)
        for index in range(len(scene)):
            sample, is_key_frame = scene.sample(index), index % self.key_every == 0
            if is_key_frame:
                key_frames.append(self._sample_row(name, sample))
            for channel, row in self._data_rows(name, sample, key_frames[-1], is_key_frame):
                of_channel[channel].append(row)
        for chain in (key_frames, *of_channel.values()):
            _link(chain)
        self.rows["sample"] += key_frames
        self.rows["sample_data"] += itertools.chain(*of_channel.values())
        self.rows["scene"].append({
            "token": _token(name), "name": name, "description": "A procedural street.",
            "log_token": _token("log"), "nbr_samples": len(key_frames),
            "first_sample_token": key_frames[0]["token"],
            "last_sample_token": key_frames[-1]["token"],
        })  # fmt: skip

    def _sample_row(self, name: str, sample: recording.Sample) -> Row:
        timestamp_us = _timestamp_us(sample.lidar.cloud_path)
        token = _token(name, timestamp_us)
        return {"token": token, "timestamp": timestamp_us, "scene_token": _token(name)}

    def _data_rows(
        self, name: str, sample: recording.Sample, key_frame: Row, is_key_frame: bool
    ) -> Iterator[tuple[str, Row]]:
        """Channel and row of `sample_data` for each sensor, its blob written."""
        # The world's LiDAR has the vehicle's frame.
        lidar = sample.lidar
        common = {"sample_token": key_frame["token"], "is_key_frame": is_key_frame}
        row = self._data_row(
            name, nuscenes.LIDAR, lidar.cloud_path, ".pcd.bin", common, lidar.world_from_lidar,
            self._calibrate(name, nuscenes.LIDAR, _VEHICLE_FROM_LIDAR, []), (0, 0),
        )  # fmt: skip
        _write_sweep(lidar.cloud_path, self.out / row["filename"])
        yield nuscenes.LIDAR, row
        for camera in sample.cameras:
            channel, mount = CHANNELS[camera.name], camera.vehicle_from_camera
            row = self._data_row(
                name, channel, camera.image_path, ".jpg", common,
                camera.world_from_camera @ np.linalg.inv(mount),
                self._calibrate(name, channel, mount, camera.intrinsics.tolist()), camera.size,
            )  # fmt: skip
            shutil.copyfile(camera.image_path, self.out / row["filename"])
            yield channel, row

    def _data_row(
        self, name: str, channel: str, blob: pathlib.Path, suffix: str, common: Row,
        world_from_vehicle: Float[np.ndarray, "4 4"], calibration: str, size: tuple[int, int],
    ) -> Row:  # fmt: skip
        timestamp_us = _timestamp_us(blob)
        token = _token(name, channel, timestamp_us)
        folder = pathlib.Path("samples" if common["is_key_frame"] else "sweeps") / channel
        (self.out / folder).mkdir(parents=True, exist_ok=True)
        self.rows["ego_pose"].append(
            {"token": token, "timestamp": timestamp_us, **_motion(world_from_vehicle)}
        )
        return {
            "token": token, "ego_pose_token": token, "calibrated_sensor_token": calibration,
            "timestamp": timestamp_us, "fileformat": suffix.split(".")[1], **common,
            "height": size[0], "width": size[1],
            "filename": f"{folder}/{name}__{channel}__{timestamp_us}{suffix}",
        }  # fmt: skip

    def _calibrate(
        self, name: str, channel: str, vehicle_from_sensor: np.ndarray, intrinsics: list
    ) -> str:
        """Token of the sensor's calibration in this scene."""
        token = _token(name, channel, vehicle_from_sensor.tolist(), intrinsics)
        self.calibrations[token] = {
            "token": token, "sensor_token": _token("sensor", channel),
            "camera_intrinsic": intrinsics, **_motion(vehicle_from_sensor),
        }  # fmt: skip
        return token


def _timestamp_us(blob: pathlib.Path) -> int:
    return int(blob.stem) // _TICKS_PER_US


def _link(rows: list[Row]) -> None:
    """Each row's token of the one before and of the one after, "" at the ends."""
    tokens = ["", *(row["token"] for row in rows), ""]
    for row, previous, following in zip(rows, tokens, tokens[2:], strict=False):
        row |= {"prev": previous, "next": following}


def _write_sweep(cloud: pathlib.Path, path: pathlib.Path) -> None:
    """The points of the vehicle's frame as x y z intensity ring of the sensor's own."""
    points = dgp.read_array(cloud)
    turn, at_m = _VEHICLE_FROM_LIDAR[:3, :3], _VEHICLE_FROM_LIDAR[:3, 3]
    rows = np.zeros((len(points), nuscenes.POINT_FIELDS), np.float32)
    rows[:, :3] = (points[:, :3] - at_m) @ turn
    rows[:, 3] = points[:, 3]
    path.write_bytes(rows.tobytes())
