"""What every reader of raw recordings yields, and how it reads files: strictly, by name.

A reader gives `plan(source, splits, folder)`, the description file of every scene by split and
scene id, and `Scene(path, scene_id)`, whose samples are read one at a time. World coordinates
reach kilometres: everything is float64.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from fsmde_jax.errors import UserError

QUATERNION_TOLERANCE = 1e-3


class RecordingError(UserError):
    """A file of a recording is missing or broken; `path` names it."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path = Path(path)
        self.problem = problem

    def __reduce__(self):
        return RecordingError, (self.path, self.problem)


@dataclasses.dataclass(frozen=True)
class Frame:
    """An image of the same camera before or after one of a sample; nothing says the file exists."""

    filename: str  # relative to the recording's folder
    world_from_camera: Float[np.ndarray, "4 4"]


@dataclasses.dataclass(frozen=True)
class Camera:
    """One image of a sample; poses are at the camera's own instant.

    `previous` and `next` are the camera's frames at its own rate, where the recording links them.
    """

    name: str
    image_path: Path
    size: tuple[int, int]  # (height, width) as the recording states it
    intrinsics: Float[np.ndarray, "3 3"]
    vehicle_from_camera: Float[np.ndarray, "4 4"]
    world_from_camera: Float[np.ndarray, "4 4"]
    previous: Frame | None = None
    next: Frame | None = None


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
    lidar: Lidar | None
    calibration_path: Path | None = None  # where it is a file of its own


def read_image(camera: Camera) -> Image.Image:
    """The whole image, decoded, as RGB at the size its recording states."""
    try:
        with Image.open(camera.image_path) as image:
            rgb = image.convert("RGB")
    except FileNotFoundError:
        raise RecordingError(camera.image_path, "the image is missing") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of broken files raise errors of a dozen kinds
        raise RecordingError(
            camera.image_path, f"the image is truncated or broken ({error})"
        ) from error
    if rgb.size[::-1] != camera.size:
        (height, width), (stated_height, stated_width) = rgb.size[::-1], camera.size
        raise RecordingError(
            camera.image_path,
            f"the image is {height}x{width}, its recording says {stated_height}x{stated_width}",
        )
    return rgb


def finite_points(path: Path, points: np.ndarray) -> Float[np.ndarray, "p 3"]:
    """x, y, z in metres of a cloud's rows; one non-finite point condemns the cloud."""
    if not len(points):
        raise RecordingError(path, "the cloud holds no points")
    xyz_m = points[:, :3].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(xyz_m).all(axis=1))
    if len(bad):
        raise RecordingError(
            path,
            f"{len(bad)} of {len(points)} points are NaN or infinite, the first at row {bad[0]}",
        )
    return xyz_m


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RecordingError(path, "the file is missing") from None
    except OSError as error:
        raise RecordingError(path, f"the file cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RecordingError(path, f"not valid JSON, perhaps cut short ({error})") from error


def get_field(path: Path, content: Any, name: str, kind: type, where: str = "") -> Any:
    """A field by its dotted name, or an error that names it."""
    prefix = f"{where}: " if where else ""
    for part in name.split("."):
        if not isinstance(content, dict) or part not in content:
            raise RecordingError(path, f"{prefix}field `{name}` is missing")
        content = content[part]
    if not isinstance(content, kind):
        raise RecordingError(path, f"{prefix}field `{name}` should be a {kind.__name__}")
    return content


def list_field(path: Path, content: Any, name: str, where: str = "") -> Sequence[Any]:
    """A field that is a list."""
    return get_field(path, content, name, list, where)


def number_field(path: Path, content: Any, name: str, where: str) -> float:
    """A field that is a finite number."""
    return number(path, get_field(path, content, name, object, where), f"{where}: field `{name}`")


def number(path: Path, value: Any, what: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordingError(path, f"{what} is {value!r}, not a finite number")
    return float(value)


def size_field(path: Path, content: Any, name: str, where: str) -> int:
    """A field that is a side of an image in pixels."""
    value = get_field(path, content, name, int, where)
    if not 0 < value < 2**16:
        raise RecordingError(path, f"{where}: field `{name}` is {value}, not a size in pixels")
    return value


def rigid(
    path: Path, quaternion: Sequence[float], translation_m: Sequence[float], where: str
) -> Float[np.ndarray, "4 4"]:
    """a_from_b from a rotation quaternion (w, x, y, z; w of any sign) and a translation."""
    norm = math.sqrt(sum(value * value for value in quaternion))
    if abs(norm - 1.0) > QUATERNION_TOLERANCE:
        raise RecordingError(path, f"{where}: the rotation quaternion has norm {norm:.6g}, not 1")
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_from_quaternion(np.array(quaternion) / norm)
    matrix[:3, 3] = translation_m
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
