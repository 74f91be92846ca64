"""Reads nuScenes from its tables alone: key frames of its cameras and of LIDAR_TOP.

The tables of the whole dataset hold millions of rows, so they are read once: `plan` checks them
and writes a small file a scene with all that its samples need, and workers read only that. What
files taught this reader:

- `sample` has no list of its data on disk: key-frame rows of `sample_data` point to it;
- a channel's name is two tables away: `calibrated_sensor` -> `sensor`;
- `calibrated_sensor` is vehicle_from_sensor, `ego_pose` world_from_vehicle at the row's own
  instant, rotations are (w, x, y, z), timestamps microseconds;
- neighbours in time are rows of `sample_data`, 12 a second, linked by `prev` and `next`;
- `.pcd.bin` is float32, rows of x y z intensity ring in the sensor's frame;
- cuts by third parties lack tables and links: only what is needed here is asked for, and a
  neighbour whose rows are missing is none.

A scene's split follows from its name, never from the folder: a training scene in a folder called
v1.0-test is still one to train on.
"""

import collections
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from fsmde_jax import files
from fsmde_jax.data.readers import recording
from fsmde_jax.data.readers.recording import Camera, Frame, Lidar, RecordingError, Sample

LIDAR = "LIDAR_TOP"
# Ring order, counter-clockwise from the front.
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_LEFT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
    "CAM_FRONT_RIGHT",
)
TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")
POINT_FIELDS = 5  # float32 x y z intensity ring
_PLAN_FILE = "plan.json"
_CHUNK = 2**24  # characters; no row is longer
_SEPARATORS = re.compile(r"[\s,]*")
_LARGE_TABLE_BYTES = 10**8


def _numbers(ranges: str) -> frozenset[int]:
    found = set()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


# The official splits by the numbers of scenes (nuscenes-devkit, utils/splits.py).
_VAL = _numbers(
    "3,12-18,35,36,38,39,92-110,221,268-278,329-332,344-346,519-524,552-565,625-627,629,630,"
    "632-638,770,771,775,777,778,780-784,794-800,802,904-917,919-931,962,963,966-969,971,972,"
    "1059-1073"
)
_TEST = _numbers(
    "77-91,111-119,140,142-148,265,266,279-282,307-314,333-343,481-498,547-551,601-604,606-624,"
    "827-831,833-842,844-846,932,933,935-943,1026-1043"
)
_MINI_VAL = frozenset((103, 916))


def split_of(scene_name: str, version: str) -> str:
    """ "train", "val" or "test" by the official lists; a name on none of them is for training."""
    found = re.fullmatch(r"scene-(\d{4})", scene_name)
    number = int(found[1]) if found else 0
    if version == "v1.0-mini":
        return "val" if number in _MINI_VAL else "train"
    return "val" if number in _VAL else "test" if number in _TEST else "train"


def find(source: Path) -> Path:
    """The folder of tables: `source` itself or the one `v1.0-*` in it.

    Raises `FileNotFoundError` when there is none, `RecordingError` when there are several.
    """
    if any((source / f"{table}.json").is_file() for table in TABLES):
        return source
    found = sorted(path for path in source.glob("v1.0-*") if path.is_dir())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise RecordingError(source, f"several versions ({names}); give the path of one as source")
    if not found:
        raise FileNotFoundError(f"{source}: no folder v1.0-* of tables")
    return found[0]


def plan(version: Path, splits: tuple[str, ...], folder: Path) -> dict[str, dict[str, Path]]:
    """Writes a description of each scene into `folder`; their paths by split and scene name.

    A plan that is there already is taken as it is: the tables of the whole dataset take minutes.

    Raises `RecordingError` where a table is missing or no sample could be told from it. What
    concerns a single sample is raised when that sample is asked for.
    """
    finished = folder / _PLAN_FILE
    if not finished.is_file():
        _write_plan(version, splits, folder)
    again = "Remove the folder it is in; the same command makes it again."
    planned = files.read_json(finished, "the list of planned scenes", again)
    for name, digest in planned["sha256"].items():
        if not (folder / name).is_file() or files.sha256(folder / name) != digest:
            raise RecordingError(folder / name, f"the plan of a scene is damaged. {again}")
    return {
        split: {scene: folder / name for scene, name in planned[split].items()} for split in splits
    }


def _write_plan(version: Path, splits: tuple[str, ...], folder: Path) -> None:
    scenes = _read_scenes(version, splits)
    samples = _read_samples(
        version, {token for names in scenes.values() for token in names.values()}
    )
    tables = _Tables(version, {token for tokens in samples.values() for token in tokens})
    folder.mkdir(parents=True, exist_ok=True)
    root, planned = str(version.parent.resolve()), collections.defaultdict(dict)
    for split, names in scenes.items():
        for number, (name, token) in enumerate(names.items()):
            planned[split][name] = f"{split}-{number:05d}.json"
            path = folder / planned[split][name]
            described = [_described(tables, sample) for sample in samples[token]]
            content = {
                "scene": name,
                "root": root,
                "table": str(version / "sample.json"),
                "samples": described,
            }
            path.write_text(json.dumps(content))
            planned["sha256"][path.name] = files.sha256(path)
    # Last, and whole or not at all: its presence says that all the others are there.
    files.write_json(folder / _PLAN_FILE, files.sealed(planned))


def _read_scenes(version: Path, splits: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Tokens of the scenes by split and name."""
    path = version / "scene.json"
    of_split: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for where, row in _rows(path):
        name = recording.get_field(path, row, "name", str, where)
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise RecordingError(path, f"{where}: field `name` is {name!r}, not a plain name")
        scenes = of_split[split_of(name, version.name)]
        if name in scenes:
            raise RecordingError(path, f"{where}: a second scene {name}")
        scenes[name] = recording.get_field(path, row, "token", str, where)
    if unknown := sorted(set(splits) - set(of_split)):
        there = ", ".join(sorted(of_split)) or "none"
        raise RecordingError(
            path, f"no scene is of split {', '.join(unknown)}; splits in {version.name}: {there}"
        )
    return {split: dict(sorted(of_split[split].items())) for split in splits}


def _read_samples(version: Path, scenes: set[str]) -> dict[str, list[str]]:
    """Tokens of each scene's samples in order of time."""
    path = version / "sample.json"
    of_scene: dict[str, list[tuple[float, str]]] = {token: [] for token in scenes}
    for where, row in _rows(path):
        scene = recording.get_field(path, row, "scene_token", str, where)
        if scene in scenes:
            timestamp_us = recording.number_field(path, row, "timestamp", where)
            token = recording.get_field(path, row, "token", str, where)
            of_scene[scene].append((timestamp_us, token))
    return {scene: [token for _, token in sorted(found)] for scene, found in of_scene.items()}


def _described(tables: "_Tables", sample: str) -> dict[str, Any]:
    """What the sample needs, or the fault that keeps it from being read."""
    try:
        return tables.describe(sample)
    except RecordingError as error:
        return {"fault": [str(error.path), error.problem]}


class _Tables:
    """What some samples need of the large tables; all other rows are dropped while reading."""

    def __init__(self, version: Path, samples: set[str]):
        self._path = version / "sample_data.json"
        self._sensor_path = version / "sensor.json"
        self._calibration_path = version / "calibrated_sensor.json"
        self._pose_path = version / "ego_pose.json"
        self._sensors = _by_token(self._sensor_path)
        self._calibrations = _by_token(self._calibration_path)
        self._of_sample: dict[str, list[dict]] = collections.defaultdict(list)
        beside = set()
        for where, row in _rows(self._path):
            if not recording.get_field(self._path, row, "is_key_frame", bool, where):
                continue
            sample = recording.get_field(self._path, row, "sample_token", str, where)
            if sample in samples and self._is_used(row):
                self._of_sample[sample].append(_pick(row, *_DATA_FIELDS))
                beside.update((_token(row, "prev"), _token(row, "next")))
        # Neighbours and poses are known only now, so `sample_data` is read once more.
        self._beside = _by_token(
            self._path, beside - {None}, "calibrated_sensor_token", "ego_pose_token", "filename"
        )
        rows = [row for of_sample in self._of_sample.values() for row in of_sample]
        wanted = {_token(row, "ego_pose_token") for row in [*rows, *self._beside.values()]}
        self._poses = _by_token(self._pose_path, wanted - {None}, "rotation", "translation")

    def _is_used(self, row: dict) -> bool:
        """Whether the sensor is one we read, or cannot be told."""
        calibration = self._calibrations.get(_token(row, "calibrated_sensor_token"), {})
        sensor = self._sensors.get(_token(calibration, "sensor_token"), {})
        return sensor.get("modality", "camera") == "camera" or sensor.get("channel") == LIDAR

    def describe(self, sample: str) -> dict[str, Any]:
        """The cameras and the LiDAR of a sample as JSON, every pose resolved."""
        found: dict[str, dict[str, Any]] = {}
        for row in self._of_sample[sample]:
            token = recording.get_field(self._path, row, "token", str, f"sample {sample}")
            channel, described = self._datum(row, f"row {token}")
            if channel in found:
                raise RecordingError(
                    self._path, f"row {token}: a second row of {channel} in sample {sample}"
                )
            found[channel] = described
        lidar = found.pop(LIDAR, None)
        if lidar is None or not found:
            there = ", ".join(sorted(found)) or "none"
            raise RecordingError(
                self._path,
                f"sample {sample}: needs key frames of {LIDAR} and of cameras, found "
                f"{'no ' * (lidar is None)}{LIDAR} and cameras {there}",
            )
        return {"lidar": lidar, "cameras": found}

    def _datum(self, row: dict, where: str) -> tuple[str, dict[str, Any]]:
        """Channel and description of a row of `sample_data`."""
        path = self._path
        calibration = self._linked(row, "calibrated_sensor", self._calibrations, path, where)
        calibrated = f"row {calibration['token']}"
        sensor = self._linked(
            calibration, "sensor", self._sensors, self._calibration_path, calibrated
        )
        channel = recording.get_field(
            self._sensor_path, sensor, "channel", str, f"row {sensor['token']}"
        )
        pose = self._linked(row, "ego_pose", self._poses, path, where)
        vehicle_from_sensor = _motion(self._calibration_path, calibration)
        described = {
            "filename": recording.get_field(path, row, "filename", str, where),
            "world_from_sensor": _motion(self._pose_path, pose) @ vehicle_from_sensor,
        }
        if channel != LIDAR:
            described |= {
                "size": [recording.size_field(path, row, f, where) for f in ("height", "width")],
                "intrinsics": _intrinsics(self._calibration_path, calibration),
                "vehicle_from_sensor": vehicle_from_sensor,
                "previous": self._frame(row, "prev", vehicle_from_sensor),
                "next": self._frame(row, "next", vehicle_from_sensor),
            }
        return channel, {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in described.items()
        }

    def _frame(
        self, of: dict, link: str, vehicle_from_sensor: Float[np.ndarray, "4 4"]
    ) -> dict[str, Any] | None:
        """A neighbour in time; None where it or its pose has no row."""
        row = self._beside.get(_token(of, link))
        pose = self._poses.get(_token(row, "ego_pose_token")) if row else None
        if pose is None:
            return None
        where = f"row {row['token']}"
        calibration = recording.get_field(self._path, row, "calibrated_sensor_token", str, where)
        if calibration != of["calibrated_sensor_token"]:
            raise RecordingError(
                self._path, f"row {of['token']}: field `{link}` leads to a row of another sensor"
            )
        return {
            "filename": recording.get_field(self._path, row, "filename", str, where),
            "world_from_sensor": (_motion(self._pose_path, pose) @ vehicle_from_sensor).tolist(),
        }

    def _linked(self, row: dict, table: str, rows: dict[str, dict], path: Path, where: str) -> dict:
        token = recording.get_field(path, row, f"{table}_token", str, where)
        if token not in rows:
            raise RecordingError(path, f"{where}: {table}_token {token!r} is not in {table}.json")
        return rows[token]


_DATA_FIELDS = (
    "token", "calibrated_sensor_token", "ego_pose_token", "filename", "height", "width", "prev",
    "next",
)  # fmt: skip


def _token(row: dict, field: str) -> str | None:
    """A link to another row that may be absent."""
    token = row.get(field)
    return token if isinstance(token, str) else None


def _pick(row: dict, *fields: str) -> dict:
    return {field: row[field] for field in fields if field in row}


def _by_token(path: Path, wanted: set | None = None, *fields: str) -> dict[str, dict]:
    """Rows of a table by token: all, or some fields of those wanted."""
    rows: dict[str, dict] = {}
    for where, row in _rows(path):
        if wanted is not None and _token(row, "token") not in wanted:
            continue
        token = recording.get_field(path, row, "token", str, where)
        if token in rows:
            raise RecordingError(path, f"{where}: a second row of token {token}")
        rows[token] = row if wanted is None else _pick(row, "token", *fields)
    return rows


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a table one by one, each with its place for messages.

    Made-up tables of a quarter of the whole dataset's size take 1.5 GB as Python objects; planning
    them this way peaks at 0.35 GB.
    """
    try:
        size = path.stat().st_size
        with (
            path.open(encoding="utf-8") as file,
            tqdm(total=size, unit="B", unit_scale=True, desc=path.name,
                 disable=size < _LARGE_TABLE_BYTES) as bar,
        ):  # fmt: skip
            yield from _parse_rows(path, file, bar)
    except FileNotFoundError:
        raise RecordingError(path, "the table is missing") from None
    except UnicodeDecodeError as error:
        raise RecordingError(path, f"not valid JSON ({error})") from error
    except OSError as error:
        raise RecordingError(path, f"the table cannot be read ({error.strerror})") from error


def _parse_rows(path: Path, file: TextIO, bar: tqdm) -> Iterator[tuple[str, dict]]:
    decoder, text = json.JSONDecoder(), file.read(_CHUNK)
    bar.update(len(text))
    place = len(text) - len(text.lstrip())
    if text[place : place + 1] != "[":
        raise RecordingError(path, "not a list of rows")
    place += 1
    for number in itertools.count():
        where = f"rows[{number}]"
        while True:
            place = _SEPARATORS.match(text, place).end()
            if text[place : place + 1] == "]":
                return
            try:
                row, place = decoder.raw_decode(text, place)
                break
            except json.JSONDecodeError as error:  # broken, or it goes on in the next chunk
                more = file.read(_CHUNK) if len(text) - place < _CHUNK else ""
                if not more:
                    problem = f"{where}: not valid JSON, perhaps cut short ({error.msg})"
                    raise RecordingError(path, problem) from error
                text, place = text[place:] + more, 0
                bar.update(len(more))
        if not isinstance(row, dict):
            raise RecordingError(path, f"{where}: not an object with fields")
        yield where, row


def _motion(path: Path, row: dict) -> Float[np.ndarray, "4 4"]:
    """The pose of a row of `calibrated_sensor` or `ego_pose`."""
    where = f"row {row['token']}"
    rotation = _vector(path, row, "rotation", 4, where)
    return recording.rigid(path, rotation, _vector(path, row, "translation", 3, where), where)


def _vector(path: Path, row: dict, field: str, length: int, where: str) -> list[float]:
    values = recording.list_field(path, row, field, where)
    if len(values) != length:
        raise RecordingError(
            path, f"{where}: field `{field}` has {len(values)} numbers of {length}"
        )
    return [recording.number(path, value, f"{where}: field `{field}`") for value in values]


def _intrinsics(path: Path, row: dict) -> Float[np.ndarray, "3 3"]:
    where = f"row {row['token']}"
    lines = recording.list_field(path, row, "camera_intrinsic", where)
    if [len(line) if isinstance(line, list) else 0 for line in lines] != [3, 3, 3]:
        raise RecordingError(path, f"{where}: field `camera_intrinsic` is not a 3x3 matrix")
    what = f"{where}: field `camera_intrinsic`"
    matrix = np.array([[recording.number(path, value, what) for value in line] for line in lines])
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or matrix[2].tolist() != [0, 0, 1] or matrix[1, 0]:
        raise RecordingError(
            path,
            f"{what} is not [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths",
        )
    return matrix


class Scene:
    """A scene's file as `plan` wrote it; samples are read one at a time by `scene.sample(index)`.

    Raises `RecordingError` for a scene without samples, or without any of its sweeps on disk.
    """

    def __init__(self, path: Path, scene_id: str | None = None):
        content = recording.read_json(path)
        self.scene_id = scene_id or content["scene"]
        self._root, self._samples = Path(content["root"]), content["samples"]
        if not self._samples:
            raise RecordingError(
                Path(content["table"]), f"no row is of {self.scene_id}, which scene.json lists"
            )
        sweeps = [
            self._root / sample["lidar"]["filename"]
            for sample in self._samples
            if "lidar" in sample
        ]
        if sweeps and not any(sweep.is_file() for sweep in sweeps):
            raise RecordingError(
                sweeps[0],
                f"the sweep is missing, as are all of {self.scene_id}: is the download partial? "
                "--on_error=skip leaves such scenes out",
            )

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        """The key frame at a place in the scene; `RecordingError` where its rows are broken."""
        described = self._samples[index]
        if "fault" in described:
            path, problem = described["fault"]
            raise RecordingError(Path(path), problem)
        lidar = described["lidar"]
        cameras = described["cameras"]
        return Sample(
            self.scene_id,
            index,
            tuple(self._camera(name, cameras[name]) for name in sorted(cameras)),
            Lidar(LIDAR, self._root / lidar["filename"], np.array(lidar["world_from_sensor"])),
        )

    def _camera(self, name: str, described: dict[str, Any]) -> Camera:
        previous, following = (
            beside and Frame(beside["filename"], np.array(beside["world_from_sensor"]))
            for beside in (described["previous"], described["next"])
        )
        return Camera(
            name,
            self._root / described["filename"],
            tuple(described["size"]),
            np.array(described["intrinsics"]),
            np.array(described["vehicle_from_sensor"]),
            np.array(described["world_from_sensor"]),
            previous,
            following,
        )


def read_points(lidar: Lidar) -> Float[np.ndarray, "p 3"]:
    """The sweep's x, y, z in metres in the LiDAR's frame; one non-finite point condemns it."""
    path = lidar.cloud_path
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RecordingError(path, "the sweep is missing") from None
    except OSError as error:
        raise RecordingError(path, f"the sweep cannot be read ({error.strerror})") from error
    if len(content) % (4 * POINT_FIELDS):
        raise RecordingError(
            path,
            f"{len(content)} bytes are no rows of {POINT_FIELDS} float32 numbers: truncated?",
        )
    return recording.finite_points(path, np.frombuffer(content, "<f4").reshape(-1, POINT_FIELDS))
