"""Writes tiny recordings in the DGP layout, with the oddities of real ones, and breaks them."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

RING_YAW_DEG = {
    "CAMERA_01": 0.0,
    "CAMERA_05": 60.0,
    "CAMERA_07": 120.0,
    "CAMERA_09": 180.0,
    "CAMERA_08": -120.0,
    "CAMERA_06": -60.0,
}
HEIGHT, WIDTH = 30, 48
NUM_SAMPLES = 3
NUM_POINTS = 400
# Scene folder -> split key; the second scene has JPEG images, the others PNG.
SCENES = {"000000": "0", "000001": "0", "000002": "1"}


def write_recording(
    root: Path, cameras: tuple[str, ...] = tuple(RING_YAW_DEG), seed: int = 0
) -> Path:
    """Six cameras, two training scenes and one for validation, three samples each."""
    rng = np.random.default_rng(seed)
    splits: dict[str, dict] = {}
    for scene_id, split in SCENES.items():
        name = _write_scene(
            root / scene_id, cameras, rng, ".jpg" if scene_id[-1] == "1" else ".png"
        )
        splits.setdefault(split, {"filenames": []})["filenames"].append(f"{scene_id}/{name}")
    write_json(root / "tiny.json", {"metadata": {}, "scene_splits": splits})
    write_json(root / "notes.json", {"unrelated": True})
    return root


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def scene_json(root: Path, scene_id: str) -> Path:
    return next((root / scene_id).glob("scene_*.json"))


def _write_scene(folder: Path, cameras: tuple[str, ...], rng, suffix: str) -> str:
    data, samples = [], []
    for index in range(NUM_SAMPLES):
        entries = [_lidar_datum(folder, index, rng)]
        entries += [_image_datum(folder, camera, index, rng, suffix) for camera in cameras]
        data += entries
        samples.append({"calibration_key": "cal", "datum_keys": [e["key"] for e in entries]})
    rng.shuffle(data)  # their order means nothing
    write_json(folder / "calibration" / "cal.json", _calibration(cameras))
    write_json(folder / "scene_abc.json", {"name": folder.name, "data": data, "samples": samples})
    return "scene_abc.json"


def _calibration(cameras: tuple[str, ...]) -> dict:
    """Sensor names are in lower case here and in upper case in the scene files."""
    zero = {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0, "skew": 0.0}
    pinhole = {"fx": 25.0, "fy": 24.0, "cx": 23.7, "cy": 15.2, "skew": 0.0}
    return {
        "names": ["lidar", *(camera.lower() for camera in cameras)],
        "intrinsics": [zero, *(pinhole for _ in cameras)],
        "extrinsics": [pose(np.array([1.0, 0, 0, 0]), [0, 0, 0])]
        + [pose(camera_quaternion(RING_YAW_DEG[camera]), [1.5, 0.1, 1.4]) for camera in cameras],
    }


def _lidar_datum(folder: Path, index: int, rng) -> dict:
    points = rng.uniform(-30, 30, (NUM_POINTS, 4)) * [1, 1, 0.1, 1]
    name = f"point_cloud/LIDAR/{1000 + index}.npz"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, data=points)
    content = {"filename": name, "pose": vehicle_pose(index)}
    return _datum(f"l{index}", "LIDAR", {"point_cloud": content})


def _image_datum(folder: Path, camera: str, index: int, rng, suffix: str) -> dict:
    name = f"rgb/{camera}/{2000 + index}{suffix}"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    yaw_deg = VEHICLE_YAW_DEG + RING_YAW_DEG[camera]
    content = {
        "filename": name,
        "height": HEIGHT,
        "width": WIDTH,
        "pose": pose(-camera_quaternion(yaw_deg), camera_position(index)),
        "annotations": {"0": "bounding_box_2d/absent.json"},
    }
    return _datum(f"{camera}{index}", camera, {"image": content})


def _datum(key: str, sensor: str, content: dict) -> dict:
    """Links and time stamps are as useless as in real files."""
    identity = {"name": sensor, "timestamp": "2463-05-15T00:38:58.203752Z"}
    return {"key": key, "id": identity, "datum": content, "next_key": "elsewhere", "prev_key": ""}


VEHICLE_YAW_DEG = 30.0


def vehicle_position(index: int) -> list[float]:
    return [2000.0 + index, -1500.0, 12.0]


def camera_position(index: int) -> list[float]:
    """The mount at (1.5, 0.1, 1.4) of the vehicle, a little later than the LiDAR's instant."""
    cos, sin = math.cos(math.radians(VEHICLE_YAW_DEG)), math.sin(math.radians(VEHICLE_YAW_DEG))
    x, y, z = vehicle_position(index)
    return [x + cos * 1.5 - sin * 0.1 + 0.05, y + sin * 1.5 + cos * 0.1, z + 1.4]


def vehicle_pose(index: int) -> dict:
    half = math.radians(VEHICLE_YAW_DEG) / 2
    return pose(np.array([math.cos(half), 0, 0, math.sin(half)]), vehicle_position(index))


def camera_quaternion(yaw_deg: float) -> np.ndarray:
    """A camera that looks along the yaw: x right, y down, z forward."""
    half = math.radians(yaw_deg) / 2
    a, d = math.cos(half), math.sin(half)
    # The turn about z, times the fixed change of axes (0.5, -0.5, 0.5, -0.5).
    return 0.5 * np.array([a + d, -a - d, a - d, d - a])


def pose(quaternion: np.ndarray, translation) -> dict:
    names = ("qw", "qx", "qy", "qz")
    return {
        "rotation": dict(zip(names, map(float, quaternion), strict=True)),
        "translation": dict(zip("xyz", map(float, translation), strict=True)),
    }


# Ways to break one file of a recording


@dataclasses.dataclass(frozen=True)
class Break:
    """`apply` damages the recording and returns the file that an error must name.

    The rest: a word of the message, and what skipping costs in the training split.
    """

    apply: Callable[[Path], Path]
    says: str
    lost_samples: int = 1
    skipped_entries: int = 1


def _edit(path: Path, change: Callable[[dict], object]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def _edit_scene(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    return lambda root: _edit(scene_json(root, "000000"), change)


def _edit_calibration(change: Callable[[dict], object]) -> Callable[[Path], Path]:
    return lambda root: _edit(root / "000000/calibration/cal.json", change)


def _datum_of(scene: dict, key: str) -> dict:
    return next(datum for datum in scene["data"] if datum["key"] == key)


def _halve(name: str) -> Callable[[Path], Path]:
    def apply(root: Path) -> Path:
        path = root / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return apply


def _remove(name: str) -> Callable[[Path], Path]:
    def apply(root: Path) -> Path:
        (root / name).unlink()
        return root / name

    return apply


def _save_cloud(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def apply(root: Path) -> Path:
        np.savez(root / CLOUD, **arrays)
        return root / CLOUD

    return apply


def _save_image(height: int, width: int) -> Callable[[Path], Path]:
    def apply(root: Path) -> Path:
        Image.new("RGB", (width, height)).save(root / PNG)
        return root / PNG

    return apply


PNG = "000000/rgb/CAMERA_07/2001.png"
JPEG = "000001/rgb/CAMERA_09/2001.jpg"
CLOUD = "000000/point_cloud/LIDAR/1001.npz"
_POINTS = np.ones((5, 4))
_NAN = np.where(np.arange(20).reshape(5, 4) == 9, np.nan, _POINTS)
_SCENE = {"lost_samples": NUM_SAMPLES, "skipped_entries": 1}
_ALL = {"lost_samples": NUM_SAMPLES, "skipped_entries": NUM_SAMPLES}

BREAKS = {
    "png truncated": Break(_halve(PNG), "truncated"),
    "jpeg truncated": Break(_halve(JPEG), "truncated"),
    "image missing": Break(_remove(PNG), "missing"),
    "image of another size": Break(_save_image(20, 20), "20x20"),
    "cloud truncated": Break(_halve(CLOUD), "truncated"),
    "cloud missing": Break(_remove(CLOUD), "missing"),
    "cloud under another key": Break(_save_cloud(points=_POINTS), "`data`"),
    "cloud of wrong shape": Break(_save_cloud(data=np.ones(12)), "shape"),
    "cloud of two columns": Break(_save_cloud(data=np.ones((5, 2))), "shape"),
    "cloud of text": Break(_save_cloud(data=np.full((5, 4), "a")), "numbers"),
    "cloud of objects": Break(_save_cloud(data=np.array([[None] * 4])), "broken"),
    "cloud empty": Break(_save_cloud(data=np.ones((0, 4))), "no points"),
    "cloud with NaN": Break(_save_cloud(data=_NAN), "row 2"),
    "cloud with inf": Break(_save_cloud(data=_POINTS * np.inf), "infinite"),
    "calibration missing": Break(_remove("000000/calibration/cal.json"), "missing", **_ALL),
    "calibration truncated": Break(_halve("000000/calibration/cal.json"), "JSON", **_ALL),
    "sensor not calibrated": Break(
        _edit_calibration(lambda c: c["names"].__setitem__(3, "CAMERA_99")), "CAMERA_07", **_ALL
    ),
    "sensor calibrated twice": Break(
        _edit_calibration(lambda c: c["names"].__setitem__(3, "Camera_05")), "twice", **_ALL
    ),
    "calibration lists uneven": Break(
        _edit_calibration(lambda c: c["extrinsics"].pop()), "length", **_ALL
    ),
    "negative focal length": Break(
        _edit_calibration(lambda c: c["intrinsics"][2].update(fx=-25.0)), "fx=-25", **_ALL
    ),
    "extrinsics not a rotation": Break(
        _edit_calibration(lambda c: c["extrinsics"][2]["rotation"].update(qw=0.9)), "norm", **_ALL
    ),
    "intrinsics NaN": Break(
        _edit_calibration(lambda c: c["intrinsics"][2].update(cx=math.nan)), "`cx`", **_ALL
    ),
    "pose not a rotation": Break(
        _edit_scene(
            lambda s: _datum_of(s, "CAMERA_051")["datum"]["image"]["pose"]["rotation"].update(qx=2)
        ),
        "norm",
    ),
    "pose missing": Break(
        _edit_scene(lambda s: _datum_of(s, "l1")["datum"]["point_cloud"].pop("pose")), "`pose`"
    ),
    "datum missing": Break(
        _edit_scene(lambda s: s["data"].remove(_datum_of(s, "CAMERA_051"))), "CAMERA_051"
    ),
    "no cloud in the sample": Break(
        _edit_scene(lambda s: s["samples"][1]["datum_keys"].remove("l1")), "LIDAR"
    ),
    "no image in the sample": Break(
        _edit_scene(lambda s: s["samples"][1].update(datum_keys=["l1"])), "image"
    ),
    "a sensor twice in the sample": Break(
        _edit_scene(lambda s: s["samples"][1]["datum_keys"].append("CAMERA_050")), "second"
    ),
    "size is not a number": Break(
        _edit_scene(lambda s: _datum_of(s, "CAMERA_051")["datum"]["image"].update(width="48")),
        "`width`",
    ),
    "scene JSON cut in half": Break(_halve("000000/scene_abc.json"), "cut short", **_SCENE),
    "scene JSON missing": Break(_remove("000000/scene_abc.json"), "missing", **_SCENE),
    "scene JSON without data": Break(_edit_scene(lambda s: s.pop("data")), "`data`", **_SCENE),
    "scene JSON without samples": Break(
        _edit_scene(lambda s: s["samples"].clear()), "`samples`", **_SCENE
    ),
}
