"""A small recording for the protocols, made from a seed in DDAD's and in nuScenes' layout.

`record_protocols.py` lets the public code loose on it, `test_protocols.py` this package. Two
cameras, three scenes for validation of three samples each. The first scene drives along the axes
with round numbers, so that points lie exactly on borders, on halves and on each other in single
precision, too; the others turn, and the car moves between the instants of LiDAR and cameras.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

NATIVE, NETWORK = (60, 100), (24, 40)  # (height, width)
MIN_DEPTH_M = 0.1
MAX_DEPTH_M = {"ddad": 200.0, "nuscenes": 80.0}
CAMERAS = {"ddad": ("CAMERA_01", "CAMERA_09"), "nuscenes": ("CAM_FRONT", "CAM_BACK")}
VAL_SCENES = {
    "ddad": ("000001", "000002", "000003"),
    "nuscenes": ("scene-0003", "scene-0012", "scene-0013"),
}
TRAIN_SCENE = {"ddad": "000000", "nuscenes": "scene-0001"}
SAMPLES = 3  # of a scene
INTRINSICS = [[64.0, 0.0, 50.0], [0.0, 64.0, 30.0], [0.0, 0.0, 1.0]]
# Forward and backward, x right, y down, z along the optical axis; (w, x, y, z).
_QUATERNIONS = ([0.5, -0.5, 0.5, -0.5], [0.5, -0.5, -0.5, 0.5])
_POSITIONS_M = ([1.5, 0.25, 1.5], [-1.0, 0.0, 1.25])
_LIDAR_POSITION_M = [0.5, 0.0, 2.0]
# Column, row and depth: beside every border, on halves, twice in a pixel, out of range.
_EXACT = [
    (-1.0, 10, 8), (-0.75, 11, 8), (-0.5, 12, 8), (-0.25, 13, 8), (0, 14, 8), (0, 0, 4),
    (20, -1.0, 8), (21, -0.75, 8), (22, -0.5, 8), (23, -0.25, 8), (24, 0, 8),
    (98.5, 20, 16), (99, 21, 16), (99.25, 22, 16), (99.5, 23, 16), (99.75, 24, 16), (100, 25, 16),
    (30, 58.5, 16), (31, 59, 16), (32, 59.25, 16), (33, 59.5, 16), (34, 59.75, 16), (35, 60, 16),
    (50.5, 30.5, 2), (51.5, 31.5, 2), (99, 59, 4),
    (0.25, 40, 4), (-0.25, 40, 16), (99, 41, 4), (99.25, 41, 32), (40, 0.25, 2), (40, -0.5, 64),
    (60, 40, 8), (60.25, 40.25, 32), (61, 40, 32), (60.75, 40, 8), (62, 50, 64), (62, 50, 4),
    (70, 30, 0.5), (71, 30, 0.75), (72, 30, 0.0625), (73, 30, 0.125), (74, 30, -4), (75, 30, 80),
    (76, 30, 128), (77, 30, 200), (78, 30, 256),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sweep in the LiDAR's frame (float32) and where the car was; quaternions are wxyz.

    `vehicle` is (quaternion, position) at the LiDAR's instant, then at each camera's.
    """

    points_m: np.ndarray
    vehicle: tuple[tuple[np.ndarray, np.ndarray], ...]

    def world_from_lidar(self) -> np.ndarray:
        """4x4."""
        return matrix(*self.vehicle[0]) @ matrix(np.array([1.0, 0, 0, 0]), _LIDAR_POSITION_M)

    def world_from_camera(self, camera: int) -> np.ndarray:
        """4x4."""
        return matrix(*self.vehicle[1 + camera]) @ vehicle_from_camera(camera)


def vehicle_from_camera(camera: int) -> np.ndarray:
    """4x4."""
    return matrix(np.array(_QUATERNIONS[camera]), _POSITIONS_M[camera])


def matrix(quaternion: np.ndarray, position) -> np.ndarray:
    """4x4 of a rotation (wxyz) and a translation."""
    found = np.eye(4)
    found[:3, :3] = Rotation.from_quat(np.roll(quaternion, -1)).as_matrix()
    found[:3, 3] = position
    return found


def make_scenes() -> list[list[Sample]]:
    """The validation scenes; always the same ones."""
    rng = np.random.default_rng(31)
    return [[_make_sample(scene, index, rng) for index in range(SAMPLES)] for scene in range(3)]


def _make_sample(scene: int, index: int, rng: np.random.Generator) -> Sample:
    vehicle = []
    for instant in range(3):
        position = np.array([64.0 + 2 * index, -32.0, 1.0])
        quaternion = np.array([1.0, 0, 0, 0])
        if scene:
            turn = [0.02 * scene, 0.01 * index, 0.7 * scene + 0.05 * index + 0.01 * instant]
            quaternion = np.roll(Rotation.from_euler("xyz", turn).as_quat(), 1)
            position += [0.3 * instant, 0.1 * index, 0.02 * scene]
        vehicle.append((quaternion, position))
    sample = Sample(np.zeros((0, 3), np.float32), tuple(vehicle))
    clouds = []
    for camera in range(2):
        image = np.stack(
            [
                rng.uniform(-6, NATIVE[1] + 6, 300),
                rng.uniform(-4, NATIVE[0] + 4, 300),
                np.exp(rng.uniform(np.log(0.3), np.log(250), 300)),
            ],
            axis=1,
        )
        if scene == 0:
            image = np.concatenate([image, np.array(_EXACT, float)])
        depth_m = image[:, 2:]
        in_camera = np.concatenate([(image[:, :2] - [50, 30]) / 64 * depth_m, depth_m], axis=1)
        to_lidar = np.linalg.inv(sample.world_from_lidar()) @ sample.world_from_camera(camera)
        clouds.append(in_camera @ to_lidar[:3, :3].T + to_lidar[:3, 3])
    return dataclasses.replace(sample, points_m=np.concatenate(clouds).astype(np.float32))


def make_predictions() -> tuple[np.ndarray, np.ndarray]:
    """Depth in metres [samples, cameras, h, w] of the images, and of the mirrored images."""
    rng = np.random.default_rng(32)
    shape = (3 * SAMPLES, 2, *NETWORK)
    direct = np.exp(rng.normal(2.2, 0.8, shape)).astype(np.float32)
    mirrored = np.flip(direct, axis=-1) * np.exp(rng.normal(0, 0.3, shape))
    return direct, mirrored.astype(np.float32)


def write_masks(folder: Path, dataset: str) -> None:
    """White above, black below a slanting edge, grey between, at the native size."""
    folder.mkdir(parents=True)
    row, column = np.mgrid[: NATIVE[0], : NATIVE[1]]
    for camera, name in enumerate(CAMERAS[dataset]):
        below = row - (44 + 8 * camera) - column / 20
        grey = np.clip(255 - 64 * below, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{name}_mask.png")


def write(dataset: str, root: Path) -> None:
    """The recording in a dataset's layout; one training scene beside those for validation."""
    scenes = dict(zip(VAL_SCENES[dataset], make_scenes(), strict=True))
    scenes = {TRAIN_SCENE[dataset]: [_make_sample(1, 0, np.random.default_rng(33))], **scenes}
    {"ddad": _write_dgp, "nuscenes": _write_nuscenes}[dataset](scenes, root)


def _write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", NATIVE[::-1], (90, 120, 60)).save(path)


def _write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# DGP


def _write_dgp(scenes: dict[str, list[Sample]], root: Path) -> None:
    names = CAMERAS["ddad"]
    zero = {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0, "skew": 0.0}
    pinhole = {"fx": 64.0, "fy": 64.0, "cx": 50.0, "cy": 30.0, "skew": 0.0}
    splits: dict[str, dict] = {"0": {"filenames": []}, "1": {"filenames": []}}
    for scene, samples in scenes.items():
        data, described = [], []
        for index, sample in enumerate(samples):
            cloud = root / scene / f"point_cloud/LIDAR/{index}.npz"
            cloud.parent.mkdir(parents=True, exist_ok=True)
            points = np.concatenate([sample.points_m, np.zeros((len(sample.points_m), 1))], axis=1)
            np.savez(cloud, data=points.astype(np.float64))
            content = {
                "filename": f"point_cloud/LIDAR/{index}.npz",
                "pose": _dgp_pose(sample.world_from_lidar()),
            }
            entries = [_datum(f"l{index}", "LIDAR", {"point_cloud": content})]
            for camera, name in enumerate(names):
                _write_image(root / scene / f"rgb/{name}/{index}.png")
                content = {
                    "filename": f"rgb/{name}/{index}.png",
                    "height": NATIVE[0],
                    "width": NATIVE[1],
                    "pose": _dgp_pose(sample.world_from_camera(camera)),
                }
                entries.append(_datum(f"{name}{index}", name, {"image": content}))
            data += entries
            keys = [entry["key"] for entry in entries]
            described.append({"calibration_key": "cal", "datum_keys": keys})
        calibration = {
            "names": ["LIDAR", *names],
            "intrinsics": [zero, pinhole, pinhole],
            "extrinsics": [
                _dgp_pose(matrix(np.array([1.0, 0, 0, 0]), _LIDAR_POSITION_M)),
                *(_dgp_pose(vehicle_from_camera(camera)) for camera in range(2)),
            ],
        }
        _write_json(root / scene / "calibration" / "cal.json", calibration)
        content = {"name": scene, "data": data, "samples": described}
        _write_json(root / scene / "scene_a.json", content)
        split = "0" if scene == TRAIN_SCENE["ddad"] else "1"
        splits[split]["filenames"].append(f"{scene}/scene_a.json")
    _write_json(root / "small.json", {"metadata": {}, "scene_splits": splits})


def _datum(key: str, sensor: str, content: dict) -> dict:
    return {"key": key, "id": {"name": sensor, "timestamp": ""}, "datum": content}


def _dgp_pose(a_from_b: np.ndarray) -> dict:
    quaternion = np.roll(Rotation.from_matrix(a_from_b[:3, :3]).as_quat(), 1)
    return {
        "rotation": dict(zip(("qw", "qx", "qy", "qz"), quaternion.tolist(), strict=True)),
        "translation": dict(zip("xyz", a_from_b[:3, 3].tolist(), strict=True)),
    }


# nuScenes


def _write_nuscenes(scenes: dict[str, list[Sample]], root: Path) -> None:
    channels = ("LIDAR_TOP", *CAMERAS["nuscenes"])
    mounts = [([1.0, 0, 0, 0], _LIDAR_POSITION_M)]
    mounts += list(zip(_QUATERNIONS, _POSITIONS_M, strict=True))
    tables: dict[str, list[dict]] = {
        name: [] for name in ("scene", "sample", "sample_data", "ego_pose")
    }
    tables["sensor"] = [
        {"token": f"sensor{i}", "channel": name, "modality": "camera" if i else "lidar"}
        for i, name in enumerate(channels)
    ]
    tables["calibrated_sensor"] = [
        {
            "token": f"calibrated{i}",
            "sensor_token": f"sensor{i}",
            "rotation": list(rotation),
            "translation": list(position),
            "camera_intrinsic": INTRINSICS if i else [],
        }
        for i, (rotation, position) in enumerate(mounts)
    ]
    time_us = itertools.count(1_000_000, 500_000)
    for scene, samples in scenes.items():
        tables["scene"].append({"token": scene, "name": scene})
        for index, sample in enumerate(samples):
            token = f"{scene}-{index}"
            now = next(time_us)
            tables["sample"].append({"token": token, "scene_token": scene, "timestamp": now})
            for i, (channel, (rotation, position)) in enumerate(
                zip(channels, sample.vehicle, strict=True)
            ):
                suffix = "png" if i else "pcd.bin"
                filename = f"samples/{channel}/{token}.{suffix}"
                pose = {"rotation": rotation.tolist(), "translation": position.tolist()}
                tables["ego_pose"].append({"token": f"{token}-{channel}", **pose})
                row = {
                    "token": f"{token}-{channel}",
                    "sample_token": token,
                    "ego_pose_token": f"{token}-{channel}",
                    "calibrated_sensor_token": f"calibrated{i}",
                    "filename": filename,
                    "is_key_frame": True,
                    "timestamp": now,
                    "prev": "",
                    "next": "",
                }
                if i:
                    _write_image(root / filename)
                    row |= {"height": NATIVE[0], "width": NATIVE[1]}
                else:
                    points = np.zeros((len(sample.points_m), 5), np.float32)
                    points[:, :3] = sample.points_m
                    (root / filename).parent.mkdir(parents=True, exist_ok=True)
                    points.tofile(root / filename)
                tables["sample_data"].append(row)
    for name, rows in tables.items():
        _write_json(root / "v1.0-trainval" / f"{name}.json", rows)
