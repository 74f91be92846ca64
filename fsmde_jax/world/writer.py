"""Writes worlds to disk in the DGP layout, scene by scene and in parallel."""

import concurrent.futures
import dataclasses
import datetime
import hashlib
import json
import multiprocessing
import pathlib
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import PIL.Image
import tqdm
from jaxtyping import Float

from fsmde_jax import cli, files
from fsmde_jax.errors import UserError
from fsmde_jax.world.meshes import rotation
from fsmde_jax.world.objects import CAR_PAINTS, ego_car
from fsmde_jax.world.render import World
from fsmde_jax.world.sensors import LIDAR, Camera, Drive, draw_rig, pose, sweep_lidar, take_picture
from fsmde_jax.world.street import build_street

CONFIG_FILE = "world_config.json"
DATASET_FILE = "world.json"
_LOCK_FILE = ".lock"
_FORMAT = 1  # raise it when the same config draws other worlds
_FRAME_S = 0.1
_FIRST_SECOND = 1_556_919_594
_TICKS_PER_S = 10_000_000  # file stems count 100 ns, as DDAD's do


class WorldError(UserError):
    """A folder holds something else than the world asked for, or rendering ended early."""


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """What world to draw; the same config draws the same bytes.

    Args:
        seed: every scene is drawn from it, the split and the scene's number.
        train_scenes, val_scenes: how many streets in each split.
        samples_per_scene: how many instants of a street are kept.
        height, width: of the images, in pixels; focal lengths follow the width.
        varied_rigs: other focal lengths, heights, tilts, light and haze in every scene.
        sample_stride: the car is simulated at 10 Hz; every so many frames one is kept.
        lidar_beams: rows of the LiDAR; images do not depend on it.
    """

    seed: int = 0
    train_scenes: int = 32
    val_scenes: int = 8
    samples_per_scene: int = 6
    height: int = 200
    width: int = 320
    varied_rigs: bool = False
    sample_stride: int = 1
    lidar_beams: int = 44

    def __post_init__(self) -> None:
        for name in ("samples_per_scene", "height", "width", "sample_stride", "lidar_beams"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"WorldConfig.{name} must be at least 1, not {getattr(self, name)}"
                )
        if min(self.train_scenes, self.val_scenes, self.seed) < 0:
            raise ValueError(f"seed and scene counts must not be negative: {self}")


def write_world(
    config: WorldConfig, directory: pathlib.Path, num_workers: int = 0, progress: bool = True
) -> None:
    """Render a world; run again after an interruption, it goes on where it stopped.

    Args:
        config: what to draw.
        directory: where; holds `world.json` only once every scene is there.
        num_workers: processes (0: one a core; 1: this process).
        progress: show a bar with the time left.

    Raises:
        WorldError: the folder holds a world of another config, or anything else.
    """
    _check(config, directory)
    if (directory / DATASET_FILE).exists() and not _waiting(config, directory):
        return  # so several processes may ask for it at once
    with files.locked(directory / _LOCK_FILE, f"writing the world {directory}", remove=True):
        if not (directory / CONFIG_FILE).exists():
            _write_json(directory / CONFIG_FILE, _content(config))
        scenes, waiting = config.train_scenes + config.val_scenes, _waiting(config, directory)
        if waiting:
            (directory / DATASET_FILE).unlink(missing_ok=True)
        bar = tqdm.tqdm(
            _render(config, directory, waiting, num_workers or cli.num_cores()),
            desc=f"world {directory.name}", unit="scene", initial=scenes - len(waiting),
            total=scenes, disable=not progress,
        )  # fmt: skip
        for _ in bar:
            pass
        _write_json(directory / DATASET_FILE, _dataset_json(config, directory))


def _waiting(config: WorldConfig, directory: pathlib.Path) -> list[int]:
    """The scenes that are not there yet."""
    scenes = range(config.train_scenes + config.val_scenes)
    return [scene for scene in scenes if not (directory / f"{scene:06d}").is_dir()]


def _content(config: WorldConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "format": _FORMAT}


def _check(config: WorldConfig, directory: pathlib.Path) -> None:
    """Refuses a folder that is neither empty nor this config's."""
    path, wanted = directory / CONFIG_FILE, _content(config)
    if not path.exists():
        there = directory.iterdir() if directory.is_dir() else ()
        if others := [p for p in there if not p.name.startswith((_LOCK_FILE, files.UNFINISHED))]:
            raise WorldError(
                f"{directory}: this folder holds {sorted(others)[0].name} and no world; choose "
                "another folder"
            )
        return
    found = files.read_json(path, "the config of this world", "Choose another folder.")
    found.setdefault("lidar_beams", WorldConfig.lidar_beams)  # worlds from before it was a choice
    if found != wanted:
        raise WorldError(
            f"{path}: this folder holds a world made with {found}, but {wanted} is asked for; "
            "choose another folder, or delete this one"
        )


def _render(
    config: WorldConfig, directory: pathlib.Path, waiting: list[int], workers: int
) -> Iterator[None]:
    """Render the scenes, yielding as each is finished."""
    workers = min(workers, len(waiting))
    if workers <= 1:
        for scene in waiting:
            yield write_scene(config, directory, scene)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker) as pool:
        jobs = [pool.submit(write_scene, config, directory, scene) for scene in waiting]
        try:
            for job in concurrent.futures.as_completed(jobs):
                yield job.result()
        except BrokenProcessPool as error:
            raise WorldError(
                f"{directory}: a process that renders died (out of memory?); the same command "
                "goes on"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's business; a parent that dies takes the worker along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files.end_with_parent()  # the thread that starts workers waits for them
    files.end_with_parent_process()


def write_scene(config: WorldConfig, directory: pathlib.Path, scene: int) -> None:
    """Render one scene beside its place, then move it there whole."""
    unfinished = directory / f".unfinished-{scene:06d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    _SceneWriter(config, unfinished, scene).write()
    unfinished.rename(directory / f"{scene:06d}")


class _SceneWriter:
    """Simulates one drive and writes its folder."""

    def __init__(self, config: WorldConfig, folder: pathlib.Path, scene: int):
        self.config, self.folder, self.scene = config, folder, scene
        validation = scene >= config.train_scenes
        number = scene - config.train_scenes if validation else scene
        self.entropy = [config.seed, int(validation), number, int(config.varied_rigs)]
        rng = np.random.default_rng(self.entropy)
        duration_s = config.samples_per_scene * config.sample_stride * _FRAME_S
        street = build_street(rng, duration_s, config.varied_rigs)
        ego = ego_car(CAR_PAINTS[rng.integers(4)])
        self.world, self.drive = World(street, ego), Drive(street, rng)
        self.cameras = draw_rig(rng, config.height, config.width, config.varied_rigs)
        self.lidar_reach_m = float(rng.uniform(120.0, 200.0))
        shift = rng.uniform(-2000.0, 2000.0, 3) * np.array([1.0, 1.0, 0.02])
        self.world_from_scene = pose(rotation(float(rng.uniform(-np.pi, np.pi))), shift)

    def write(self) -> None:
        """All samples, then the calibration and the scene's JSON."""
        self._make_folders()
        calibration_key = self._write_calibration()
        data, samples = [], []
        for index in range(self.config.samples_per_scene):
            datums = self._write_sample(index)
            data += datums
            identity = {**datums[0]["id"], "name": "", "index": str(index)}
            samples.append({
                "calibration_key": calibration_key, "datum_keys": [d["key"] for d in datums],
                "id": identity, "metadata": {},
            })  # fmt: skip
        content = {
            "data": data, "description": "A procedural street.", "log": "", "metadata": {},
            "name": f"{self.scene:06d}", "ontologies": {}, "samples": samples,
        }  # fmt: skip
        _write_json(self.folder / f"scene_{_digest(json.dumps(content))}.json", content)

    def _make_folders(self) -> None:
        names = [f"point_cloud/{LIDAR}", "calibration"]
        names += [f"{kind}/{camera.name}" for camera in self.cameras for kind in ("rgb", "depth")]
        for name in names:
            (self.folder / name).mkdir(parents=True)

    def _write_sample(self, index: int) -> list[dict[str, Any]]:
        """One sweep and one picture a camera; returns their entries for the scene's JSON."""
        time_s = index * self.config.sample_stride * _FRAME_S
        datums = [self._write_sweep(index, time_s)]
        for number, camera in enumerate(self.cameras):
            rng = np.random.default_rng([*self.entropy, index, number])
            datums.append(self._write_picture(camera, index, time_s + camera.delay_s, rng))
        return datums

    def _write_sweep(self, index: int, time_s: float) -> dict[str, Any]:
        rng = np.random.default_rng([*self.entropy, index, len(self.cameras)])
        points = sweep_lidar(
            self.world, self.drive, time_s, self.lidar_reach_m, self.config.lidar_beams, rng
        )
        filename = f"point_cloud/{LIDAR}/{self._stem(time_s)}.npz"
        np.savez(self.folder / filename, data=points)
        datum = {
            "annotations": {}, "filename": filename, "metadata": {}, "point_fields": [],
            "point_format": ["X", "Y", "Z", "INTENSITY"],
            "pose": self._pose(time_s, np.eye(4)),
        }  # fmt: skip
        return self._entry(LIDAR, index, time_s, {"point_cloud": datum})

    def _write_picture(
        self, camera: Camera, index: int, time_s: float, rng: np.random.Generator
    ) -> dict[str, Any]:
        size = (self.config.height, self.config.width)
        image, depth_m = take_picture(self.world, self.drive, camera, time_s, size, rng)
        stem = self._stem(time_s)
        filename = f"rgb/{camera.name}/{stem}.jpg"
        PIL.Image.fromarray(image).save(self.folder / filename, quality=95, subsampling=0)
        np.savez(self.folder / "depth" / camera.name / f"{stem}.npz", data=depth_m)
        datum = {
            "annotations": {}, "channels": 3, "filename": filename, "height": size[0],
            "metadata": {}, "pose": self._pose(time_s, camera.vehicle_from_camera),
            "width": size[1],
        }  # fmt: skip
        return self._entry(camera.name, index, time_s, {"image": datum})

    def _pose(self, time_s: float, vehicle_from_sensor: np.ndarray) -> dict[str, Any]:
        """world_from_sensor at that instant."""
        scene_from_vehicle = self.drive.scene_from_vehicle(time_s)
        return _transform_json(self.world_from_scene @ scene_from_vehicle @ vehicle_from_sensor)

    def _entry(self, name: str, index: int, time_s: float, datum: dict[str, Any]) -> dict[str, Any]:
        identity = {
            "index": str(index), "log": "", "name": name, "timestamp": self._timestamp(time_s),
        }  # fmt: skip
        key = _digest(f"{self.entropy} {name} {self._stem(time_s)}")
        return {"datum": datum, "id": identity, "key": key, "next_key": "", "prev_key": ""}

    def _write_calibration(self) -> str:
        """Returns the key under which the scene's samples find it."""
        nothing = {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0, "skew": 0.0}
        intrinsics = [nothing] + [
            {"fx": c.focal_px[0], "fy": c.focal_px[1], "cx": c.centre_px[0], "cy": c.centre_px[1],
             "skew": 0.0} for c in self.cameras
        ]  # fmt: skip
        poses = [np.eye(4)] + [camera.vehicle_from_camera for camera in self.cameras]
        content = {
            "extrinsics": [_transform_json(matrix) for matrix in poses],
            "intrinsics": intrinsics,
            "names": [LIDAR] + [camera.name for camera in self.cameras],
        }
        key = _digest(json.dumps(content))
        _write_json(self.folder / "calibration" / f"{key}.json", content)
        return key

    def _ticks(self, time_s: float) -> int:
        return (_FIRST_SECOND + 1000 * self.scene) * _TICKS_PER_S + round(time_s * _TICKS_PER_S)

    def _stem(self, time_s: float) -> str:
        return str(self._ticks(time_s))

    def _timestamp(self, time_s: float) -> str:
        seconds, ticks = divmod(self._ticks(time_s), _TICKS_PER_S)
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{ticks // 10:06d}Z"


def _transform_json(matrix: Float[np.ndarray, "4 4"]) -> dict[str, Any]:
    """A rigid motion as the layout stores it."""
    w, x, y, z = quaternion(matrix[:3, :3]).tolist()
    tx, ty, tz = matrix[:3, 3].tolist()
    return {
        "rotation": {"qw": w, "qx": x, "qy": y, "qz": z},
        "translation": {"x": tx, "y": ty, "z": tz},
    }


def quaternion(turn: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Unit quaternion w x y z: the top eigenvector of the rotation's quaternion form."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = turn
    form = np.array(
        [[xx + yy + zz, zy - yz, xz - zx, yx - xy],
         [zy - yz, xx - yy - zz, xy + yx, xz + zx],
         [xz - zx, xy + yx, yy - xx - zz, yz + zy],
         [yx - xy, xz + zx, yz + zy, zz - xx - yy]]
    )  # fmt: skip
    return np.linalg.eigh(form)[1][:, -1]


def _dataset_json(config: WorldConfig, directory: pathlib.Path) -> dict[str, Any]:
    """The file that names the scenes of each split."""
    scenes = range(config.train_scenes + config.val_scenes)
    files = [next((directory / f"{scene:06d}").glob("scene_*.json")) for scene in scenes]
    names = [str(path.relative_to(directory)) for path in files]
    splits = {"0": names[: config.train_scenes], "1": names[config.train_scenes :]}
    return {
        "metadata": {"name": "miniature_world", "version": str(_FORMAT), "origin": "PROCEDURAL",
                     "description": "Procedural streets in the DGP layout.",
                     "available_annotation_types": []},
        "scene_splits": {key: {"filenames": value} for key, value in splits.items()},
    }  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(content, indent=1))
