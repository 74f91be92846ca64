"""Reads nuScenes from its tables alone: key frames of six cameras and LIDAR_TOP.

The tables of the whole dataset hold millions of rows, so they are read once: `plan` writes a
small file a scene with all that its samples need, and workers read only that. What files taught
this reader:

- `sample` has no list of its data on disk: key-frame rows of `sample_data` point to it;
- a channel's name is two tables away: `calibrated_sensor` -> `sensor`;
- `calibrated_sensor` is vehicle_from_sensor, `ego_pose` world_from_vehicle at the row's own
  instant, rotations are (w, x, y, z), timestamps microseconds;
- `.pcd.bin` is float32, rows of x y z intensity ring in the sensor's frame;
- cuts by third parties lack tables and links: only what is needed here is asked for.
"""

import collections
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fsmde_jax.data import recording
from fsmde_jax.data.recording import Camera, Lidar, RecordingError, Sample

LIDAR = "LIDAR_TOP"
TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")


def _numbers(ranges: str) -> frozenset[int]:
    found = set()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


# The official splits by the scenes' numbers (nuscenes-devkit); all other scenes train.
_VAL = _numbers(
    "3,12-18,35,36,38,39,92-110,221,268-278,329-332,344-346,519-524,552-565,625-627,629,630,"
    "632-638,770,771,775,777,778,780-784,794-800,802,904-917,919-931,962,963,966-969,971,972,"
    "1059-1073"
)
_MINI_VAL = frozenset((103, 916))


def find(source: Path) -> Path:
    """The folder of tables: `source` itself or the one `v1.0-*` in it."""
    if (source / "sample_data.json").is_file():
        return source
    found = sorted(path for path in source.glob("v1.0-*") if path.is_dir())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise RecordingError(source, f"several versions ({names}); give the path of one as source")
    if not found:
        raise FileNotFoundError(f"{source}: no folder v1.0-* of tables")
    return found[0]


def split_of(scene_name: str, version: str) -> str:
    """ "train" or "val", by the official lists."""
    number = int(re.sub(r"\D", "", scene_name) or -1)
    return "val" if number in (_MINI_VAL if version == "v1.0-mini" else _VAL) else "train"


def plan(source: Path, splits: tuple[str, ...], folder: Path) -> dict[str, dict[str, Path]]:
    """Writes a description of each scene into `folder`; their paths by split and scene name.

    What is there already is not made again: the tables of the whole dataset take minutes.
    """
    finished = folder / "plan.json"
    if finished.is_file():
        names = json.loads(finished.read_text())
        return {split: {name: folder / f"{name}.json" for name in names[split]} for split in splits}
    version = find(source)
    tables = {name: _table(version / f"{name}.json") for name in TABLES}
    unknown = set(splits) - {"train", "val"}
    if unknown:
        raise RecordingError(
            version, f"has no split {', '.join(sorted(unknown))}; there are train, val"
        )
    sensors = _by_token(version, tables, "sensor")
    calibrations = _by_token(version, tables, "calibrated_sensor")
    poses = _by_token(version, tables, "ego_pose")
    of_sample = collections.defaultdict(list)
    for row in tables["sample_data"]:
        if row.get("is_key_frame"):
            of_sample[row.get("sample_token")].append(row)
    of_scene = collections.defaultdict(list)
    for row in tables["sample"]:
        of_scene[row.get("scene_token")].append(row)
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, dict[str, Path]] = {split: {} for split in splits}
    for scene in sorted(tables["scene"], key=lambda row: row["name"]):
        name = scene["name"]
        if (split := split_of(name, version.name)) not in splits:
            continue
        samples = sorted(of_scene[scene["token"]], key=lambda row: row["timestamp"])
        described = [
            [
                _datum(version, row, calibrations, sensors, poses)
                for row in of_sample[sample["token"]]
            ]
            for sample in samples
        ]
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"root": str(version.parent.resolve()), "samples": described}))
        paths[split][name] = path
    finished.write_text(json.dumps({split: list(scenes) for split, scenes in paths.items()}))
    return paths


def _table(path: Path) -> list[dict[str, Any]]:
    rows = recording.read_json(path)
    if not isinstance(rows, list):
        raise RecordingError(path, "a table must be a list of rows")
    return rows


def _by_token(version: Path, tables: dict[str, list], name: str) -> dict[str, dict]:
    path = version / f"{name}.json"
    return {recording.get_field(path, row, "token", str): row for row in tables[name]}


def _datum(version: Path, row: dict, calibrations: dict, sensors: dict, poses: dict) -> dict:
    """A key-frame row with what it points to."""
    path, where = version / "sample_data.json", f"row {row.get('token')}"

    def linked(rows: dict, table: str, of: dict) -> dict:
        token = of.get(f"{table}_token")
        if token not in rows:
            raise RecordingError(path, f"{where}: {table}_token {token!r} is not in {table}.json")
        return rows[token]

    calibration = linked(calibrations, "calibrated_sensor", row)
    sensor = linked(sensors, "sensor", calibration)
    return {
        "channel": sensor["channel"],
        "modality": sensor.get("modality"),
        "filename": row.get("filename"),
        "size": [row.get("height"), row.get("width")],
        "intrinsics": calibration.get("camera_intrinsic"),
        "vehicle_from_sensor": _motion(calibration),
        "world_from_vehicle": _motion(linked(poses, "ego_pose", row)),
    }


def _motion(row: dict) -> dict:
    return {"rotation": row.get("rotation"), "translation": row.get("translation")}


class Scene:
    """A scene's file as `plan` wrote it; samples are read one at a time."""

    def __init__(self, path: Path, scene_id: str | None = None):
        self.path, self.scene_id = path, scene_id or path.stem
        content = recording.read_json(path)
        self._root, self._samples = Path(content["root"]), content["samples"]

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        """The key frame at a place in the scene; `RecordingError` where it is broken."""
        cameras, lidars = [], []
        for datum in self._samples[index]:
            where = f"{self.scene_id}/{index:06d} {datum['channel']}"
            vehicle_from_sensor = self._rigid(datum["vehicle_from_sensor"], where)
            world_from_vehicle = self._rigid(datum["world_from_vehicle"], where)
            world_from_sensor = world_from_vehicle @ vehicle_from_sensor
            file = self._root / datum["filename"]
            if datum["channel"] == LIDAR:
                lidars.append(Lidar(LIDAR, file, world_from_sensor))
            elif datum["modality"] == "camera":
                intrinsics = np.array(datum["intrinsics"], np.float64)
                if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all():
                    raise RecordingError(self.path, f"{where}: camera_intrinsic is no 3x3 matrix")
                cameras.append(
                    Camera(datum["channel"], file, tuple(datum["size"]), intrinsics,
                           vehicle_from_sensor, world_from_sensor)
                )  # fmt: skip
        if not cameras or len(lidars) != 1:
            raise RecordingError(
                self.path,
                f"{self.scene_id}/{index:06d}: needs cameras and one {LIDAR}, found "
                f"{len(cameras)} and {len(lidars)}",
            )
        ordered = tuple(sorted(cameras, key=lambda camera: camera.name))
        return Sample(self.scene_id, index, ordered, lidars[0])

    def _rigid(self, motion: dict, where: str) -> Float[np.ndarray, "4 4"]:
        quaternion, translation = motion["rotation"] or (), motion["translation"] or ()
        if len(quaternion) != 4 or len(translation) != 3:
            raise RecordingError(self.path, f"{where}: rotation or translation is missing")
        return recording.rigid(self.path, quaternion, translation, where)


def read_points(lidar: Lidar) -> Float[np.ndarray, "p 3"]:
    """The sweep's x, y, z in metres in the LiDAR's frame."""
    try:
        values = np.fromfile(lidar.cloud_path, np.float32)
    except FileNotFoundError:
        raise RecordingError(lidar.cloud_path, "the sweep is missing") from None
    if len(values) % 5:
        raise RecordingError(
            lidar.cloud_path, f"{len(values)} numbers are no rows of five: truncated?"
        )
    return recording.finite_points(lidar.cloud_path, values.reshape(-1, 5))
