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

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fsmde_jax.errors import UserError

SPLITS = {"train": "0", "val": "1", "test": "2"}
QUATERNION_TOLERANCE = 1e-3


class DgpError(UserError):
    """A file of a recording is missing or broken; `path` names it."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path = Path(path)
        self.problem = problem

    def __reduce__(self):
        return DgpError, (self.path, self.problem)


@dataclasses.dataclass(frozen=True)
class Camera:
    """One image of a sample; poses are at the camera's own instant."""

    name: str
    image_path: Path
    size: tuple[int, int]  # (height, width) as the datum states it
    intrinsics: Float[np.ndarray, "3 3"]
    vehicle_from_camera: Float[np.ndarray, "4 4"]
    world_from_camera: Float[np.ndarray, "4 4"]


@dataclasses.dataclass(frozen=True)
class Lidar:
    """The cloud of a sample; the pose is at the LiDAR's own instant."""

    name: str
    cloud_path: Path
    world_from_lidar: Float[np.ndarray, "4 4"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One instant of the rig; `index` is its place in the scene."""

    scene_id: str
    index: int
    cameras: tuple[Camera, ...]  # sorted by name
    lidar: Lidar


class Scene:
    """A scene file; samples are read one at a time by `scene.sample(index)`."""

    def __init__(self, path: Path, scene_id: str | None = None):
        self.path = path
        self.scene_id = scene_id or path.parent.name
        content = _read_json(path)
        self._samples = _list(path, content, "samples")
        if not self._samples:
            raise DgpError(path, "field `samples` is empty")
        data = _list(path, content, "data")
        self._data = {_field(path, datum, "key", str): datum for datum in data}
        self._calibration = functools.lru_cache(maxsize=8)(self._read_calibration)

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        """The sample at a place in the scene; raises `DgpError` where its description is broken."""
        where = f"samples[{index}]"
        entry = self._samples[index]
        key = _field(self.path, entry, "calibration_key", str, where)
        cameras: dict[str, Camera] = {}
        lidars: dict[str, Lidar] = {}
        for datum_key in _list(self.path, entry, "datum_keys", where):
            self._read_datum(datum_key, where, key, cameras, lidars)
        if not cameras:
            raise DgpError(self.path, f"{where}: none of its datum_keys is an image")
        ordered = tuple(cameras[name] for name in sorted(cameras))
        return Sample(self.scene_id, index, ordered, self._main_lidar(lidars, where))

    def _read_datum(self, key: Any, where: str, calibration_key: str, cameras, lidars) -> None:
        """Sorts one datum into `cameras` or `lidars`; other kinds of sensor are left out."""
        if key not in self._data:
            raise DgpError(self.path, f"{where}: datum key {key!r} is not in `data`")
        datum = self._data[key]
        where = f"data[key={key}]"
        name = _field(self.path, datum, "id.name", str, where).upper()
        content = _field(self.path, datum, "datum", dict, where)
        if name in cameras or name in lidars:
            raise DgpError(self.path, f"{where}: a second datum of sensor {name} in one sample")
        if "image" in content:
            cameras[name] = self._camera(name, content["image"], calibration_key, where)
        elif "point_cloud" in content:
            cloud = content["point_cloud"]
            path = self.path.parent / _field(self.path, cloud, "filename", str, where)
            lidars[name] = Lidar(name, path, _pose(self.path, cloud, "pose", where))

    def _camera(self, name: str, image: Any, calibration_key: str, where: str) -> Camera:
        calibration_path, calibration = self._calibration(calibration_key)
        if name not in calibration:
            raise DgpError(calibration_path, f"names: sensor {name} is missing")
        intrinsics, vehicle_from_camera = calibration[name]
        if intrinsics[0, 0] <= 0 or intrinsics[1, 1] <= 0:
            raise DgpError(
                calibration_path,
                f"intrinsics of {name}: focal lengths must be positive pixels, found "
                f"fx={intrinsics[0, 0]:g} fy={intrinsics[1, 1]:g}",
            )
        size = tuple(_size(self.path, image, field, where) for field in ("height", "width"))
        return Camera(
            name,
            self.path.parent / _field(self.path, image, "filename", str, where),
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
        raise DgpError(self.path, f"{where}: needs one point cloud named LIDAR, found {found}")

    def _read_calibration(self, key: str) -> tuple[Path, dict[str, tuple[Any, Any]]]:
        """Intrinsics and vehicle_from_sensor by upper-case sensor name."""
        path = self.path.parent / "calibration" / f"{key}.json"
        content = _read_json(path)
        names = _list(path, content, "names")
        columns = [_list(path, content, field) for field in ("intrinsics", "extrinsics")]
        if len({len(names), *map(len, columns)}) > 1:
            raise DgpError(path, "names, intrinsics and extrinsics differ in length")
        calibration = {}
        for name, intrinsics, extrinsics in zip(names, *columns, strict=True):
            canonical = str(name).upper()
            if canonical in calibration:
                raise DgpError(path, f"names: sensor {canonical} appears twice")
            calibration[canonical] = (
                _intrinsics(path, intrinsics, f"intrinsics of {canonical}"),
                _rigid(path, extrinsics, f"extrinsics of {canonical}"),
            )
        return path, calibration


def find_dataset_json(source: Path) -> Path:
    """The dataset file of a recording: `source` itself or the one JSON with `scene_splits` in it.

    Raises `FileNotFoundError` when there is none, `DgpError` when it is ambiguous or broken.
    """
    if source.is_file():
        return source
    found, broken = [], []
    for path in sorted(source.glob("*.json")):
        try:
            content = _read_json(path)
        except DgpError as error:
            broken.append(error)
            continue
        if isinstance(content, dict) and "scene_splits" in content:
            found.append(path)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DgpError(source, f"several dataset files ({names}); give the path of one as source")
    if not found and broken:
        raise broken[0]
    if not found:
        raise FileNotFoundError(f"{source}: no JSON file with `scene_splits`")
    return found[0]


def scene_paths(dataset_json: Path, split: str) -> dict[str, Path]:
    """Scene files of a split by scene id (the scene's folder), in the file's order."""
    splits = _field(dataset_json, _read_json(dataset_json), "scene_splits", dict)
    if split not in SPLITS or SPLITS[split] not in splits:
        present = [name for name, key in SPLITS.items() if key in splits]
        raise DgpError(
            dataset_json, f"scene_splits: no split {split!r}, there are {', '.join(present)}"
        )
    filenames = splits[SPLITS[split]].get("filenames", [])
    scenes: dict[str, Path] = {}
    for filename in filenames:
        scene_id = Path(filename).parent.as_posix()
        if scene_id in scenes:
            raise DgpError(dataset_json, f"scene_splits: two files of scene {scene_id} in {split}")
        scenes[scene_id] = dataset_json.parent / filename
    return scenes


def read_image(camera: Camera) -> Image.Image:
    """The whole image, decoded, as RGB at the size its datum states."""
    try:
        with Image.open(camera.image_path) as image:
            rgb = image.convert("RGB")
    except FileNotFoundError:
        raise DgpError(camera.image_path, "the image is missing") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of broken files raise errors of a dozen kinds
        raise DgpError(camera.image_path, f"the image is truncated or broken ({error})") from error
    if rgb.size[::-1] != camera.size:
        (height, width), (stated_height, stated_width) = rgb.size[::-1], camera.size
        raise DgpError(
            camera.image_path,
            f"the image is {height}x{width}, its datum says {stated_height}x{stated_width}",
        )
    return rgb


def read_points(lidar: Lidar) -> Float[np.ndarray, "p 3"]:
    """The cloud's x, y, z in metres in the LiDAR's frame; one non-finite point condemns it."""
    points = read_array(lidar.cloud_path)
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise DgpError(
            lidar.cloud_path,
            f"`data` must be numbers of shape (points, 3 or more), is {points.dtype}"
            f"{list(points.shape)}",
        )
    if not len(points):
        raise DgpError(lidar.cloud_path, "the cloud holds no points")
    xyz_m = points[:, :3].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(xyz_m).all(axis=1))
    if len(bad):
        raise DgpError(
            lidar.cloud_path,
            f"{len(bad)} of {len(points)} points are NaN or infinite, the first at row {bad[0]}",
        )
    return xyz_m


def read_array(path: Path) -> np.ndarray:
    """The array `data` of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return content["data"]
    except FileNotFoundError:
        raise DgpError(path, "the npz file is missing") from None
    except KeyError:
        raise DgpError(path, "the npz file has no array `data`") from None
    except MemoryError:
        raise
    except Exception as error:  # numpy's header parser passes on even errors of `tokenize`
        raise DgpError(path, f"the npz file is truncated or broken ({error})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DgpError(path, "the file is missing") from None
    except OSError as error:
        raise DgpError(path, f"the file cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DgpError(path, f"not valid JSON, perhaps cut short ({error})") from error


def _field(path: Path, content: Any, field: str, kind: type, where: str = "") -> Any:
    """A field by its dotted name, or an error that names it."""
    prefix = f"{where}: " if where else ""
    for name in field.split("."):
        if not isinstance(content, dict) or name not in content:
            raise DgpError(path, f"{prefix}field `{field}` is missing")
        content = content[name]
    if not isinstance(content, kind):
        raise DgpError(path, f"{prefix}field `{field}` should be a {kind.__name__}")
    return content


def _list(path: Path, content: Any, field: str, where: str = "") -> Sequence[Any]:
    return _field(path, content, field, list, where)


def _number(path: Path, content: Any, field: str, where: str) -> float:
    value = _field(path, content, field, object, where)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DgpError(path, f"{where}: field `{field}` is {value!r}, not a finite number")
    return float(value)


def _size(path: Path, image: Any, field: str, where: str) -> int:
    value = _field(path, image, field, int, where)
    if not 0 < value < 2**16:
        raise DgpError(path, f"{where}: field `{field}` is {value}, not a size in pixels")
    return value


def _intrinsics(path: Path, content: Any, where: str) -> Float[np.ndarray, "3 3"]:
    fx, fy, cx, cy = (_number(path, content, field, where) for field in ("fx", "fy", "cx", "cy"))
    skew = _number(path, content, "skew", where) if "skew" in content else 0.0
    return np.array([[fx, skew, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _pose(path: Path, content: Any, field: str, where: str) -> Float[np.ndarray, "4 4"]:
    return _rigid(path, _field(path, content, field, dict, where), f"{where}: {field}")


def _rigid(path: Path, content: Any, where: str) -> Float[np.ndarray, "4 4"]:
    """a_from_b from a rotation quaternion (scalar `qw`, of any sign) and a translation."""
    quaternion = [_number(path, content, f"rotation.q{axis}", where) for axis in "wxyz"]
    norm = math.sqrt(sum(value * value for value in quaternion))
    if abs(norm - 1.0) > QUATERNION_TOLERANCE:
        raise DgpError(path, f"{where}: the rotation quaternion has norm {norm:.6g}, not 1")
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_quaternion(np.array(quaternion) / norm)
    matrix[:3, 3] = [_number(path, content, f"translation.{axis}", where) for axis in "xyz"]
    return matrix


def rotation_from_quaternion(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of a unit quaternion (w, x, y, z)."""
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
