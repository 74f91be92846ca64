"""Reads recordings in the DGP layout (DDAD and the miniature world), lazily and strictly.

`<source>/<dataset>.json` lists scene files per split; a scene file lists samples and data;
calibration, images and clouds lie beside it. What real files taught this reader:

- samples are ordered by the list `samples`; `next_key` and `prev_key` cross sensors and leave
  the file, and timestamps have no reliable unit, so neither is read;
- the sensors of a sample are paired by `datum_keys`, never by file name;
- sensor names differ in case between files and become upper case here;
- the number of cameras varies, annotations may be absent, images may be JPEG or PNG.

A datum's `pose` is world_from_sensor with the extrinsics included; a calibration's extrinsics
are vehicle_from_sensor. World coordinates reach kilometres: everything is float64.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fsmde_jax.data.readers.recording import (
    Camera,
    Lidar,
    RecordingError,
    Sample,
    finite_points,
    get_field,
    list_field,
    number_field,
    read_json,
    rigid,
    size_field,
)

SPLITS = {"train": "0", "val": "1", "test": "2"}


class Scene:
    """A scene file; samples are read one at a time by `scene.sample(index)`."""

    def __init__(self, path: Path, scene_id: str | None = None):
        self.path = path
        self.scene_id = scene_id or path.parent.name
        content = read_json(path)
        self._samples = list_field(path, content, "samples")
        if not self._samples:
            raise RecordingError(path, "field `samples` is empty")
        data = list_field(path, content, "data")
        self._data = {get_field(path, datum, "key", str): datum for datum in data}
        self._calibration = functools.lru_cache(maxsize=8)(self._read_calibration)

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        """The sample at a place in the scene; `RecordingError` where its description is broken."""
        where = f"samples[{index}]"
        entry = self._samples[index]
        key = get_field(self.path, entry, "calibration_key", str, where)
        cameras: dict[str, Camera] = {}
        lidars: dict[str, Lidar] = {}
        for datum_key in list_field(self.path, entry, "datum_keys", where):
            self._read_datum(datum_key, where, key, cameras, lidars)
        if not cameras:
            raise RecordingError(self.path, f"{where}: none of its datum_keys is an image")
        ordered = tuple(cameras[name] for name in sorted(cameras))
        lidar, calibration_path = self._main_lidar(lidars, where), self._calibration(key)[0]
        return Sample(self.scene_id, index, ordered, lidar, calibration_path)

    def _read_datum(self, key: Any, where: str, calibration_key: str, cameras, lidars) -> None:
        """Sorts one datum into `cameras` or `lidars`; other kinds of sensor are left out."""
        if key not in self._data:
            raise RecordingError(self.path, f"{where}: datum key {key!r} is not in `data`")
        datum = self._data[key]
        where = f"data[key={key}]"
        name = get_field(self.path, datum, "id.name", str, where).upper()
        content = get_field(self.path, datum, "datum", dict, where)
        if name in cameras or name in lidars:
            raise RecordingError(
                self.path, f"{where}: a second datum of sensor {name} in one sample"
            )
        if "image" in content:
            cameras[name] = self._camera(name, content["image"], calibration_key, where)
        elif "point_cloud" in content:
            cloud = content["point_cloud"]
            path = self.path.parent / get_field(self.path, cloud, "filename", str, where)
            lidars[name] = Lidar(name, path, _pose(self.path, cloud, "pose", where))

    def _camera(self, name: str, image: Any, calibration_key: str, where: str) -> Camera:
        calibration_path, calibration = self._calibration(calibration_key)
        if name not in calibration:
            raise RecordingError(calibration_path, f"names: sensor {name} is missing")
        intrinsics, vehicle_from_camera = calibration[name]
        if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
            raise RecordingError(
                calibration_path,
                f"intrinsics of {name}: focal lengths must be positive pixels, found "
                f"fx={intrinsics[0, 0]:g} fy={intrinsics[1, 1]:g}",
            )
        size = tuple(size_field(self.path, image, field, where) for field in ("height", "width"))
        return Camera(
            name,
            self.path.parent / get_field(self.path, image, "filename", str, where),
            size,
            intrinsics,
            vehicle_from_camera,
            _pose(self.path, image, "pose", where),
        )

    def _main_lidar(self, lidars: dict[str, Lidar], where: str) -> Lidar:
        if "LIDAR" in lidars:
            return lidars["LIDAR"]
        if len(lidars) == 1:
            return next(iter(lidars.values()))
        found = ", ".join(sorted(lidars)) or "none"
        raise RecordingError(
            self.path, f"{where}: needs one point cloud named LIDAR, found {found}"
        )

    def _read_calibration(self, key: str) -> tuple[Path, dict[str, tuple[Any, Any]]]:
        """Intrinsics and vehicle_from_sensor by upper-case sensor name."""
        path = self.path.parent / "calibration" / f"{key}.json"
        content = read_json(path)
        names = list_field(path, content, "names")
        columns = [list_field(path, content, field) for field in ("intrinsics", "extrinsics")]
        if len({len(names), *map(len, columns)}) > 1:
            raise RecordingError(path, "names, intrinsics and extrinsics differ in length")
        calibration = {}
        for name, intrinsics, extrinsics in zip(names, *columns, strict=True):
            canonical = str(name).upper()
            if canonical in calibration:
                raise RecordingError(path, f"names: sensor {canonical} appears twice")
            calibration[canonical] = (
                _intrinsics(path, intrinsics, f"intrinsics of {canonical}"),
                _rigid(path, extrinsics, f"extrinsics of {canonical}"),
            )
        return path, calibration


def plan(dataset_json: Path, splits: tuple[str, ...], folder: Path) -> dict[str, dict[str, Path]]:
    """The recording's own scene files, by split and scene id; nothing is written to `folder`."""
    return {split: scene_paths(dataset_json, split) for split in splits}


def find(source: Path) -> Path:
    """The dataset file of a recording: `source` itself or the one JSON with `scene_splits` in it.

    Raises `FileNotFoundError` when there is none, `RecordingError` when it is ambiguous or broken.
    """
    if source.is_file():
        return source
    found, broken = [], []
    for path in sorted(source.glob("*.json")):
        try:
            content = read_json(path)
        except RecordingError as error:
            broken.append(error)
            continue
        if isinstance(content, dict) and "scene_splits" in content:
            found.append(path)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise RecordingError(
            source, f"several dataset files ({names}); give the path of one as source"
        )
    if not found and broken:
        raise broken[0]
    if not found:
        raise FileNotFoundError(f"{source}: no JSON file with `scene_splits`")
    return found[0]


def scene_paths(dataset_json: Path, split: str) -> dict[str, Path]:
    """Scene files of a split by scene id (the scene's folder), in the file's order."""
    splits = get_field(dataset_json, read_json(dataset_json), "scene_splits", dict)
    if split not in SPLITS or SPLITS[split] not in splits:
        present = [name for name, key in SPLITS.items() if key in splits]
        raise RecordingError(
            dataset_json, f"scene_splits: no split {split!r}, there are {', '.join(present)}"
        )
    filenames = splits[SPLITS[split]].get("filenames", [])
    scenes: dict[str, Path] = {}
    for filename in filenames:
        scene_id = Path(filename).parent.as_posix()
        if scene_id in scenes:
            raise RecordingError(
                dataset_json, f"scene_splits: two files of scene {scene_id} in {split}"
            )
        scenes[scene_id] = dataset_json.parent / filename
    return scenes


def read_points(lidar: Lidar) -> Float[np.ndarray, "p 3"]:
    """The cloud's x, y, z in metres in the LiDAR's frame; one non-finite point condemns it."""
    points = read_array(lidar.cloud_path)
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise RecordingError(
            lidar.cloud_path,
            f"`data` must be numbers of shape (points, 3 or more), is {points.dtype}"
            f"{list(points.shape)}",
        )
    return finite_points(lidar.cloud_path, points)


def read_array(path: Path) -> np.ndarray:
    """The array `data` of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return content["data"]
    except FileNotFoundError:
        raise RecordingError(path, "the npz file is missing") from None
    except KeyError:
        raise RecordingError(path, "the npz file has no array `data`") from None
    except MemoryError:
        raise
    except Exception as error:  # numpy's header parser passes on even errors of `tokenize`
        raise RecordingError(path, f"the npz file is truncated or broken ({error})") from error


def _intrinsics(path: Path, content: Any, where: str) -> Float[np.ndarray, "3 3"]:
    fx, fy, cx, cy = (number_field(path, content, n, where) for n in ("fx", "fy", "cx", "cy"))
    skew = number_field(path, content, "skew", where) if "skew" in content else 0.0
    return np.array([[fx, skew, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _pose(path: Path, content: Any, field: str, where: str) -> Float[np.ndarray, "4 4"]:
    return _rigid(path, get_field(path, content, field, dict, where), f"{where}: {field}")


def _rigid(path: Path, content: Any, where: str) -> Float[np.ndarray, "4 4"]:
    """A pose as the layout writes it."""
    quaternion = [number_field(path, content, f"rotation.q{axis}", where) for axis in "wxyz"]
    translation_m = [number_field(path, content, f"translation.{axis}", where) for axis in "xyz"]
    return rigid(path, quaternion, translation_m, where)
