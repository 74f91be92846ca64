"""A world on disk, written again as the folder of an own rig (`data/readers/rig_folder.py`)."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np

from fsmde_jax import files
from fsmde_jax.data.readers import dgp
from fsmde_jax.data.readers.recording import Sample
from fsmde_jax.data.readers.rig_folder import LIDAR_DIR, POSES_FILE, RIG_FILE
from fsmde_jax.errors import UserError


def write_rig(world: pathlib.Path, out: pathlib.Path) -> None:
    """Copies a world in the DGP layout into a rig's folder.

    rig.json holds the first scene's calibration; the world mounts its cameras a little
    differently in every scene, so the others have a rig.json of their own.

    Args:
      world: the folder that `write_world` left.
      out: a folder without rig.json.

    Raises `UserError` where `out` is a rig's folder already.
    """
    if (out / RIG_FILE).exists():
        raise UserError(f"{out / RIG_FILE} exists: remove it, or choose another folder")
    dataset_json = dgp.find(world)
    scenes = {split: dgp.scene_paths(dataset_json, split) for split in ("train", "val")}
    out.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {}
    for paths in scenes.values():
        for scene_id, path in paths.items():
            calibration = _write_scene(dgp.Scene(path, scene_id), out / scene_id)
            common = common or calibration
            if calibration != common:
                _write_json(out / scene_id / RIG_FILE, calibration)
    splits = {split: list(paths) for split, paths in scenes.items() if paths}
    # Last: a folder with rig.json is whole.
    _write_json(out / RIG_FILE, {"splits": splits, **common})


def _write_scene(scene: dgp.Scene, folder: pathlib.Path) -> dict[str, Any]:
    """Images, sweeps and poses of a scene; returns its calibration."""
    poses, calibration = {}, {}
    for index in range(len(scene)):
        sample, frame = scene.sample(index), f"{index:06d}"
        for camera in sample.cameras:
            target = folder / camera.name / f"{frame}{camera.image_path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(camera.image_path, target)
        sweep = folder / LIDAR_DIR / f"{frame}.npy"
        sweep.parent.mkdir(exist_ok=True)
        np.save(sweep, dgp.read_array(sample.lidar.cloud_path).astype(np.float32))
        poses[frame] = _poses(sample)
        calibration = _calibration(sample)
    _write_json(folder / POSES_FILE, poses)
    return calibration


def _poses(sample: Sample) -> dict[str, Any]:
    """world_from_vehicle at each sensor's instant."""
    poses = {
        camera.name: camera.world_from_camera @ np.linalg.inv(camera.vehicle_from_camera)
        for camera in sample.cameras
    }
    # The world's sweeps are in the vehicle's frame.
    poses[LIDAR_DIR] = sample.lidar.world_from_lidar
    return {sensor: _rows(pose) for sensor, pose in poses.items()}


def _rows(motion: np.ndarray) -> list[list[float]]:
    """Rounding leaves the last row a little off."""
    return [*motion[:3].tolist(), [0.0, 0.0, 0.0, 1.0]]


def _calibration(sample: Sample) -> dict[str, Any]:
    return {
        "cameras": [
            {
                "name": camera.name,
                "width": camera.size[1],
                "height": camera.size[0],
                "intrinsics": camera.intrinsics.tolist(),
                "vehicle_from_camera": camera.vehicle_from_camera.tolist(),
            }
            for camera in sample.cameras
        ],
        "lidar": {"vehicle_from_lidar": np.eye(4).tolist()},
    }


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(content, indent=1))
