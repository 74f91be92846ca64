"""Ways in which the calibration of an own rig is wrong, planted into its folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fsmde_jax.world import WorldConfig, rig_layout, write_world

Rig = dict
Plant = Callable[[Path], object]


def write_rig(root: Path, **options) -> Path:
    """A miniature rig of two streets, two frames each."""
    config = {"seed": 1, "train_scenes": 1, "val_scenes": 1, "samples_per_scene": 2,
              "sample_stride": 10, "height": 96, "width": 160} | options  # fmt: skip
    write_world(WorldConfig(**config), root / "world", num_workers=1, progress=False)
    rig_layout.write_rig(root / "world", root / "rig")
    return root / "rig"


def edit(root: Path, change: Callable[[Rig], object]) -> None:
    """Changes every rig.json of a folder, the scenes' own included."""
    for path in root.rglob("rig.json"):
        rig = json.loads(path.read_text())
        change(rig)
        path.write_text(json.dumps(rig))


def camera_of(rig: Rig, name: str) -> Rig:
    return next(camera for camera in rig["cameras"] if camera["name"] == name)


def _of_camera(name: str, change: Callable[[Rig], object]) -> Plant:
    return lambda root: edit(root, lambda rig: change(camera_of(rig, name)))


def _of_pose(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    def apply(camera: Rig) -> None:
        camera["vehicle_from_camera"] = change(np.array(camera["vehicle_from_camera"])).tolist()

    return _of_camera(name, apply)


def _of_every_pose(change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    def apply(rig: Rig) -> None:
        for camera in rig["cameras"]:
            camera["vehicle_from_camera"] = change(np.array(camera["vehicle_from_camera"])).tolist()

    return lambda root: edit(root, apply)


def _times(diagonal: list[float]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pose: pose @ np.diag(diagonal)


def _moved(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(pose: np.ndarray) -> np.ndarray:
        pose[:3, 3] *= factor
        return pose

    return change


def _swap(first: str, second: str) -> Plant:
    """The calibrations of two cameras exchanged."""

    def apply(rig: Rig) -> None:
        a, b = camera_of(rig, first), camera_of(rig, second)
        a["name"], b["name"] = second, first

    return lambda root: edit(root, apply)


def _named_swap(root: Path) -> None:
    """Cameras whose names tell their side, with calibrations exchanged; no LiDAR to tell."""
    names = {"CAMERA_07": "back_left", "CAMERA_08": "back_right"}
    for old, new in names.items():
        for folder in root.glob(f"*/{old}"):
            folder.rename(folder.with_name(new))
        edit(root, lambda rig, old=old, new=new: camera_of(rig, old).update(name=new))
    for folder in root.glob("*/lidar"):
        shutil.rmtree(folder)
    for path in root.glob("*/poses.json"):
        path.unlink()
    _swap("back_left", "back_right")(root)


def _scale_intrinsics(name: str, factor: float) -> Plant:
    def change(camera: Rig) -> None:
        scaled = np.diag([factor, factor, 1.0]) @ np.array(camera["intrinsics"])
        camera["intrinsics"] = scaled.tolist()

    return _of_camera(name, change)


def _swap_centre(camera: Rig) -> None:
    rows = camera["intrinsics"]
    rows[0][2], rows[1][2] = rows[1][2], rows[0][2]


def _halve_fy(camera: Rig) -> None:
    camera["intrinsics"][1][1] /= 2


def _turn_about_z(degrees: float) -> np.ndarray:
    turn, angle = np.eye(4), np.radians(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def _turn_lidar(degrees: float) -> Plant:
    turn = _turn_about_z(degrees)
    return lambda root: edit(
        root, lambda rig: rig["lidar"].update(vehicle_from_lidar=turn.tolist())
    )


def _upside_down_lidar(root: Path) -> None:
    """Sweeps in the frame of a LiDAR on the roof, whose y and z axes have the wrong sign."""
    roof_m = 1.72
    for path in root.glob("*/lidar/*.npy"):
        np.save(path, np.load(path) - [0, 0, roof_m, 0])
    pose = np.diag([1.0, -1.0, -1.0, 1.0])
    pose[2, 3] = roof_m
    edit(root, lambda rig: rig["lidar"].update(vehicle_from_lidar=pose.tolist()))


def _lidar_far_below(root: Path) -> None:
    pose = np.eye(4)
    pose[2, 3] = -17.2
    edit(root, lambda rig: rig["lidar"].update(vehicle_from_lidar=pose.tolist()))


def _scale_sweeps(root: Path) -> None:
    for path in root.glob("*/lidar/*.npy"):
        np.save(path, np.load(path) * [1000, 1000, 1000, 1])


def _copy_calibration(rig: Rig) -> None:
    for field in ("intrinsics", "vehicle_from_camera"):
        camera_of(rig, "CAMERA_06")[field] = camera_of(rig, "CAMERA_05")[field]


def _copy_pictures(root: Path) -> None:
    for path in root.glob("*/CAMERA_05/*"):
        shutil.copyfile(path, path.parents[1] / "CAMERA_06" / path.name)


def _mirror(pose: np.ndarray) -> np.ndarray:
    return np.diag([1.0, -1.0, 1.0, 1.0]) @ pose


BODY_FROM_CAMERA = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])

# Name -> how it is planted, the lines' beginnings, and words that each of them must hold.
FAULTS: dict[str, tuple[Plant, set[str], str]] = {
    "a reflection for a rotation": (
        _of_pose("CAMERA_07", _mirror), {"rig.json"}, "CAMERA_07: field `vehicle_from_camera`: the"
        " upper left 3x3 is a reflection",
    ),
    "a rotation that is scaled": (
        _of_pose("CAMERA_05", _times([1.1, 1.1, 1.1, 1.0])), {"rig.json"},
        "CAMERA_05: field `vehicle_from_camera`: the upper left 3x3 is no rotation",
    ),
    "one camera inverted": (
        _of_pose("CAMERA_08", np.linalg.inv), {"CAMERA_08"}, "the wrong way round"
    ),
    "every camera inverted": (
        _of_every_pose(np.linalg.inv),
        {f"CAMERA_0{i}" for i in (1, 5, 6, 7, 8, 9)}, "the wrong way round",
    ),
    "front left and front right swapped": (
        _swap("CAMERA_05", "CAMERA_06"), {"CAMERA_05 and CAMERA_06"}, "look swapped",
    ),
    "front and back swapped": (
        _swap("CAMERA_01", "CAMERA_09"), {"CAMERA_01 and CAMERA_09"}, "look swapped",
    ),
    "left and right swapped, told by names": (
        _named_swap, {"back_left and back_right"}, "look swapped"
    ),
    "millimetres for metres": (
        _of_every_pose(_moved(1000)), {f"CAMERA_0{i}" for i in (1, 5, 6, 7, 8, 9)},
        "divide it by 1000",
    ),
    "centimetres for metres": (
        _of_pose("CAMERA_09", _moved(100)), {"CAMERA_09"}, "centimetres: divide it by 100"
    ),
    "a sweep in millimetres": (_scale_sweeps, {"LiDAR"}, "millimetres: divide them by 1000"),
    "intrinsics of twice the size": (
        _scale_intrinsics("CAMERA_06", 2.0), {"CAMERA_06"}, "belong to another resolution"
    ),
    "intrinsics of half the size": (
        _scale_intrinsics("CAMERA_01", 0.5), {"CAMERA_01"}, "belong to another resolution"
    ),
    "cx and cy swapped": (_of_camera("CAMERA_07", _swap_centre), {"CAMERA_07"}, "cx and cy look"),
    "only fx scaled": (_of_camera("CAMERA_05", _halve_fy), {"CAMERA_05"}, "a factor 2.0"),
    "frame with x forward": (
        _of_pose("CAMERA_06", lambda pose: pose @ np.linalg.inv(BODY_FROM_CAMERA)), {"CAMERA_06"},
        "x forward, y left, z up",
    ),
    "frame with y up": (
        _of_pose("CAMERA_05", _times([1.0, -1.0, -1.0, 1.0])), {"CAMERA_05"}, "y axis points up"
    ),
    "LiDAR turned by 90 degrees": (_turn_lidar(90), {"LiDAR"}, "90° to the right about z"),
    "LiDAR turned by 180 degrees": (_turn_lidar(180), {"LiDAR"}, "180° about z"),
    "LiDAR upside down": (_upside_down_lidar, {"LiDAR"}, "vehicle_from_lidar"),
    "LiDAR at a wrong height": (_lidar_far_below, {"LiDAR"}, "its height there wrong"),
    "one calibration copied": (
        lambda root: edit(root, _copy_calibration), {"CAMERA_05 and CAMERA_06"}, "same pose"
    ),
    "one folder of pictures copied": (
        _copy_pictures, {"CAMERA_05 and CAMERA_06"}, "same picture"
    ),
    "degrees where radians were meant": (
        _of_pose("CAMERA_07", lambda pose: _turn_about_z(np.degrees(117) - 117) @ pose),
        {"CAMERA_07"}, "does not fit the neighbours",
    ),
}  # fmt: skip
