"""Reads recordings of an own rig: a folder of images, calibration and, if there is one, LiDAR.

    RIG/rig.json                      cameras, LiDAR, splits; the schema is rig_schema.json
    RIG/<scene>/<camera>/<frame>.jpg  or .jpeg, .png
    RIG/<scene>/lidar/<frame>.npy     or .npz, .pcd, .bin, .pcd.bin; optional, see `read_points`
    RIG/<scene>/poses.json            world_from_vehicle by frame; optional
    RIG/<scene>/rig.json              another calibration for this scene; optional
    RIG/masks/<camera>.png            255 the road scene, 0 the own car; optional

The frames of a scene are those of its images, in the order of the numbers in their names. Where
a scene has a folder `lidar`, every frame needs a sweep. Without poses.json the rig is taken as
standing still between the sensors' instants of a frame.

Units are metres and pixels. Vehicle: x forward, y left, z up; cameras: x right, y down, z forward.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from jaxtyping import Float
from PIL import Image

from fsmde_jax import files
from fsmde_jax.data.readers.recording import (
    Camera,
    Lidar,
    RecordingError,
    Sample,
    finite_points,
    read_json,
)

RIG_FILE, POSES_FILE = "rig.json", "poses.json"
LIDAR_DIR, MASKS_DIR = "lidar", "masks"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SWEEP_SUFFIXES = (".npy", ".npz", ".pcd", ".pcd.bin", ".bin")
SCHEMA = json.loads(Path(__file__).with_name("rig_schema.json").read_text())
ROTATION_TOLERANCE = 1e-3


def find(source: Path) -> Path:
    """The rig's file: `source` itself or rig.json in it; `FileNotFoundError` if there is none."""
    path = source if source.is_file() else source / RIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no {RIG_FILE}")
    return path


def plan(rig_json: Path, splits: tuple[str, ...], folder: Path) -> dict[str, dict[str, Path]]:
    """Writes a list of each scene's files into `folder`; their paths by split and scene name."""
    root, rig = rig_json.parent, read_rig(rig_json)
    _check_masks(root / MASKS_DIR, rig)
    scenes_of = _splits(rig_json, rig)
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, dict[str, Path]] = {}
    for split in splits:
        if split not in scenes_of:
            raise RecordingError(
                rig_json, f"splits: no split {split!r}, there are {', '.join(scenes_of)}"
            )
        paths[split] = {scene: folder / f"{scene}.json" for scene in scenes_of[split]}
        for scene, path in paths[split].items():
            if not (root / scene).is_dir():
                raise RecordingError(
                    rig_json, f"splits.{split}: there is no folder {scene!r} beside this file"
                )
            content = json.dumps(_files_of(root.resolve() / scene, rig_json.resolve()))
            if not path.is_file() or path.read_text(errors="replace") != content:
                files.write_text(path, content)
    return paths


def _splits(rig_json: Path, rig: dict[str, Any]) -> dict[str, list[str]]:
    """Scenes by split; what is measured must not be trained on."""
    if "splits" not in rig:
        meaning = SCHEMA["properties"]["splits"]["description"]
        raise RecordingError(rig_json, f"field `splits` is missing. {meaning}")
    seen: dict[str, str] = {}
    for split, scenes in rig["splits"].items():
        for scene in scenes:
            if scene in seen:
                raise RecordingError(
                    rig_json, f"splits: scene {scene!r} is in {seen[scene]} and in {split}"
                )
            seen[scene] = split
    return rig["splits"]


def _files_of(scene: Path, rig_json: Path) -> dict[str, Any]:
    """Where a scene's calibration is, and its images and sweeps by frame."""
    own = scene / RIG_FILE
    calibration = own if own.is_file() else rig_json
    read = [path for path in (calibration, scene / POSES_FILE) if path.is_file()]
    folders = sorted(path for path in scene.iterdir() if path.is_dir())
    images: dict[str, dict[str, list[str]]] = {}
    for folder in folders:
        if folder.name != LIDAR_DIR:
            for frame, name in _frames(folder, IMAGE_SUFFIXES):
                images.setdefault(frame, {}).setdefault(folder.name, []).append(name)
    sweeps: dict[str, list[str]] = {}
    for frame, name in _frames(scene / LIDAR_DIR, SWEEP_SUFFIXES):
        sweeps.setdefault(frame, []).append(name)
    order = sorted(images, key=lambda frame: [int(n) for n in re.findall(r"\d+", frame)] + [frame])
    return {
        "scene": str(scene),
        "calibration": str(calibration),
        # The plan of a scene changes with every file that its samples are made from.
        "sha256": hashlib.sha256(b"".join(path.read_bytes() for path in read)).hexdigest(),
        "has_lidar": (scene / LIDAR_DIR).is_dir(),
        "frames": [
            {"frame": frame, "images": images[frame], "sweeps": sweeps.get(frame, [])}
            for frame in order
        ],
    }


def _frames(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Frame and file name of the files of a kind; the longest suffix counts."""
    for path in sorted(folder.glob("*")):
        found = [suffix for suffix in suffixes if path.name.lower().endswith(suffix)]
        if found:
            yield path.name[: -len(max(found, key=len))], path.name


class Scene:
    """A scene as `plan` listed it; samples are read one at a time."""

    def __init__(self, path: Path, scene_id: str | None = None):
        self.path, self.scene_id = path, scene_id or path.stem
        listed = read_json(path)
        self._folder, self._frames = Path(listed["scene"]), listed["frames"]
        self._calibration, self._has_lidar = Path(listed["calibration"]), listed["has_lidar"]
        if not self._frames:
            raise RecordingError(
                self._folder, "no images: they belong into <scene>/<camera>/<frame>.jpg or .png"
            )

    def __len__(self) -> int:
        return len(self._frames)

    @functools.cached_property
    def _rig(self) -> dict[str, Any]:
        rig = read_rig(self._calibration)
        if self._has_lidar and "lidar" not in rig:
            raise RecordingError(
                self._calibration,
                f"field `lidar` is missing, but there are sweeps in {self._folder / LIDAR_DIR}",
            )
        return rig

    @functools.cached_property
    def _poses(self) -> dict[str, Any] | None:
        path = self._folder / POSES_FILE
        if not path.is_file():
            return None
        poses = read_json(path)
        _check_schema(path, poses, {**SCHEMA["$defs"]["poses"], "$defs": SCHEMA["$defs"]})
        return poses

    def sample(self, index: int) -> Sample:
        """The frame at a place in the scene; `RecordingError` where it is broken."""
        files = self._frames[index]
        cameras = [self._camera(camera, files) for camera in self._rig["cameras"]]
        ordered = tuple(sorted(cameras, key=lambda camera: camera.name))
        lidar = self._lidar(files) if self._has_lidar else None
        return Sample(self.scene_id, index, ordered, lidar)

    def _camera(self, camera: dict[str, Any], files: dict[str, Any]) -> Camera:
        name, frame = camera["name"], files["frame"]
        found = files["images"].get(name, [])
        folder = self._folder / name
        vehicle_from_camera = np.array(camera["vehicle_from_camera"], np.float64)
        return Camera(
            name,
            _the_one(folder, found, f"frame {frame}", "image", IMAGE_SUFFIXES),
            (camera["height"], camera["width"]),
            np.array(camera["intrinsics"], np.float64),
            vehicle_from_camera,
            self._world_from_vehicle(frame, name) @ vehicle_from_camera,
        )

    def _lidar(self, files: dict[str, Any]) -> Lidar:
        frame, folder = files["frame"], self._folder / LIDAR_DIR
        path = _the_one(folder, files["sweeps"], f"frame {frame}", "sweep", SWEEP_SUFFIXES)
        vehicle_from_lidar = np.array(self._rig["lidar"]["vehicle_from_lidar"], np.float64)
        world_from_vehicle = self._world_from_vehicle(frame, LIDAR_DIR)
        return Lidar(LIDAR_DIR, path, world_from_vehicle @ vehicle_from_lidar)

    def _world_from_vehicle(self, frame: str, sensor: str) -> Float[np.ndarray, "4 4"]:
        """At the sensor's instant of a frame."""
        if self._poses is None:
            return np.eye(4)
        path, where = self._folder / POSES_FILE, f"frame {frame!r}"
        if frame not in self._poses:
            raise RecordingError(path, f"{where} is missing")
        pose = self._poses[frame]
        if isinstance(pose, dict):
            if sensor not in pose:
                raise RecordingError(path, f"{where}: sensor {sensor!r} is missing")
            where, pose = f"{where}, {sensor}", pose[sensor]
        if problem := rigid_problem(pose):
            raise RecordingError(path, f"{where}: {problem}")
        return np.array(pose, np.float64)


def _the_one(
    folder: Path, found: list[str], where: str, kind: str, suffixes: tuple[str, ...]
) -> Path:
    """The only file of a sensor and frame."""
    if len(found) == 1:
        return folder / found[0]
    problem = f"{len(found)} files ({', '.join(found)})" if found else f"the {kind} is missing"
    raise RecordingError(folder, f"{where}: {problem}; needs one of {', '.join(suffixes)}")


def read_rig(path: Path) -> dict[str, Any]:
    """The content of a rig.json, checked; one `RecordingError` names all that is wrong in it."""
    rig = read_json(path)
    _check_schema(path, rig, SCHEMA)
    problems = []
    names = [camera["name"] for camera in rig["cameras"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"cameras: {name} appears twice")
    if {LIDAR_DIR, MASKS_DIR} & set(names):
        problems.append(f"cameras: {LIDAR_DIR!r} and {MASKS_DIR!r} are taken as folder names")
    for camera in rig["cameras"]:
        for field, find_problem in (
            ("intrinsics", _intrinsics_problem),
            ("vehicle_from_camera", rigid_problem),
        ):
            if problem := find_problem(camera[field]):
                problems.append(f"cameras: {camera['name']}: field `{field}`: {problem}")
    if "lidar" in rig and (problem := rigid_problem(rig["lidar"]["vehicle_from_lidar"])):
        problems.append(f"lidar: field `vehicle_from_lidar`: {problem}")
    if problems:
        raise RecordingError(path, "; ".join(problems))
    return rig


def _check_schema(path: Path, content: Any, schema: dict[str, Any]) -> None:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(content)
    if error := jsonschema.exceptions.best_match(errors):
        field = error.json_path.removeprefix("$").removeprefix(".") or "the file"
        message = error.message if len(error.message) < 200 else error.message[-200:]
        meaning = error.schema.get("description")
        raise RecordingError(path, f"field `{field}`: {message}" + f" ({meaning})" * bool(meaning))


def _intrinsics_problem(rows: list[list[int | float]]) -> str:
    """What makes a matrix no pinhole's, in words; "" where nothing does."""
    matrix = np.array(rows, np.float64)
    if not np.isfinite(matrix).all():
        return "a number is not finite"
    if matrix[1, 0] or matrix[2].tolist() != [0, 0, 1]:
        return "must read [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]; is it transposed?"
    if min(matrix[0, 0], matrix[1, 1]) <= 0:
        return f"focal lengths must be positive pixels, found fx={rows[0][0]:g} fy={rows[1][1]:g}"
    return ""


def rigid_problem(rows: list[list[int | float]]) -> str:
    """What makes a matrix no rigid motion, in words; "" where nothing does."""
    matrix = np.array(rows, np.float64)
    if not np.isfinite(matrix).all():
        return "a number is not finite"
    if matrix[3].tolist() != [0, 0, 0, 1]:
        return "the last row must be 0 0 0 1; is the matrix transposed?"
    turn = matrix[:3, :3]
    off = np.abs(turn @ turn.T - np.eye(3)).max()
    if off > ROTATION_TOLERANCE:
        return (
            f"the upper left 3x3 is no rotation: R times its transpose differs from 1 by {off:.2g}"
        )
    if np.linalg.det(turn) < 0:
        return "the upper left 3x3 is a reflection (determinant -1): an axis has the wrong sign"
    return ""


def _check_masks(folder: Path, rig: dict[str, Any]) -> None:
    """Each mask belongs to a camera and has the size of its images."""
    sizes = {camera["name"]: (camera["width"], camera["height"]) for camera in rig["cameras"]}
    for path in sorted(folder.glob("*.png")):
        if path.stem not in sizes:
            raise RecordingError(path, f"not the mask of a camera; there are {', '.join(sizes)}")
        try:
            with Image.open(path) as image:
                size = image.size
        except OSError as error:
            raise RecordingError(path, f"the mask cannot be read ({error})") from error
        if size != sizes[path.stem]:
            width, height = sizes[path.stem]
            raise RecordingError(
                path, f"the mask is {size[1]}x{size[0]}, the camera's images are {height}x{width}"
            )


# Sweeps


def read_points(lidar: Lidar) -> Float[np.ndarray, "p 3"]:
    """A sweep's x, y, z in metres in the LiDAR's frame; one non-finite point condemns it.

    .npy: numbers [points, 3 or more]; .npz: one such array; .bin: float32, four a point (x y z
    intensity, as KITTI has it); .pcd.bin: five (as nuScenes has it); .pcd: fields x y z, ascii or
    binary, where rows of NaN stand for rays that did not return and are left out.
    """
    path = lidar.cloud_path
    name = path.name.lower()
    try:
        if name.endswith(".bin"):
            points = _rows(path, 5 if name.endswith(".pcd.bin") else 4)
        elif name.endswith(".pcd"):
            points = _read_pcd(path)
        else:
            points = _read_numpy(path)
    except FileNotFoundError:
        raise RecordingError(path, "the sweep is missing") from None
    except (RecordingError, MemoryError):
        raise
    except Exception as error:  # numpy's parsers raise errors of several kinds
        raise RecordingError(path, f"the sweep is truncated or broken ({error})") from error
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise RecordingError(
            path,
            f"must hold numbers of shape (points, 3 or more), has {points.dtype}"
            f"{list(points.shape)}",
        )
    return finite_points(path, points)


def _rows(path: Path, columns: int) -> np.ndarray:
    values = np.fromfile(path, np.float32)
    if len(values) % columns or path.stat().st_size % 4:
        raise RecordingError(
            path, f"{path.stat().st_size} bytes are no rows of {columns} float32: truncated?"
        )
    return values.reshape(-1, columns)


def _read_numpy(path: Path) -> np.ndarray:
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    with content:
        if len(content.files) != 1:
            names = ", ".join(content.files) or "none"
            raise RecordingError(path, f"must hold one array, has {names}")
        return content[content.files[0]]


def _read_pcd(path: Path) -> np.ndarray:
    """x y z of a Point Cloud Library file, version 0.7."""
    head, _, rest = path.read_bytes().partition(b"\nDATA ")
    kind, _, body = rest.partition(b"\n")
    lines = [line.split() for line in head.decode("ascii").splitlines() if line[:1] != "#"]
    header = {line[0]: line[1:] for line in lines if line}
    fields, count = header["FIELDS"], int(header["POINTS"][0])
    repeats = [int(value) for value in header.get("COUNT", ["1"] * len(fields))]
    if missing := {"x", "y", "z"} - set(fields):
        raise RecordingError(path, f"FIELDS lacks {', '.join(sorted(missing))}")
    if kind.strip() == b"ascii":
        starts = np.cumsum([0, *repeats])
        columns = [starts[fields.index(axis)] for axis in "xyz"]
        points = np.array([line.split() for line in body.splitlines() if line], np.float64)
        points = points.reshape(len(points), -1)[:, columns]
    elif kind.strip() == b"binary":
        types = [
            f"<{kind.lower()}{size}"
            for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)
        ]
        # Several padding fields may all be called `_`, so fields go by their place.
        row = np.dtype(
            [(f"{i}", t, (r,)) for i, (t, r) in enumerate(zip(types, repeats, strict=True))]
        )
        table = np.frombuffer(body, row, count)
        points = np.stack([table[f"{fields.index(axis)}"][:, 0] for axis in "xyz"], axis=1)
    else:
        raise RecordingError(
            path, f"DATA {kind.decode()!r} is not read; save it as ascii or binary"
        )
    if len(points) != count:
        raise RecordingError(path, f"holds {len(points)} points, its header says {count}")
    return points[~np.isnan(points).all(axis=1)]
