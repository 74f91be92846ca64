"""Reads the tables of nuScenes, which can hold millions of rows, one row at a time.

What the files taught this reader:

- `sample` has no list of its data on disk; the key-frame rows of `sample_data` point to it;
- a channel's name is two tables away: `calibrated_sensor` -> `sensor`;
- `calibrated_sensor` is vehicle_from_sensor; `ego_pose` is world_from_vehicle at the row's own
  instant; rotations are (w, x, y, z), timestamps microseconds;
- neighbours in time are rows of `sample_data`, 12 a second, linked by `prev` and `next`;
- cuts by third parties lack tables and links. So only what is needed here is required, and a
  neighbour whose rows are missing counts as none.
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

from fsmde_jax.data.readers import recording
from fsmde_jax.data.readers.recording import RecordingError

LIDAR = "LIDAR_TOP"
_DATA_FIELDS = (
    "token", "calibrated_sensor_token", "ego_pose_token", "filename", "height", "width", "prev",
    "next",
)  # fmt: skip
_CHUNK = 2**24  # characters; no row is longer
_SEPARATORS = re.compile(r"[\s,]*")
_LARGE_TABLE_BYTES = 10**8


class SampleTables:
    """What some samples need from the large tables; all other rows are dropped while reading.

    Args:
      version: the folder of tables.
      samples: tokens of the samples.

    Raises `RecordingError` where a table is missing or broken.
    """

    def __init__(self, version: Path, samples: set[str]):
        self._path = version / "sample_data.json"
        self._sensor_path = version / "sensor.json"
        self._calibration_path = version / "calibrated_sensor.json"
        self._pose_path = version / "ego_pose.json"
        self._sensors = _by_token(self._sensor_path)
        self._calibrations = _by_token(self._calibration_path)
        self._of_sample: dict[str, list[dict]] = collections.defaultdict(list)
        beside = set()
        for where, row in read_rows(self._path):
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
        """Whether the row is of a sensor that is read here, or of an unknown one."""
        calibration = self._calibrations.get(_token(row, "calibrated_sensor_token"), {})
        sensor = self._sensors.get(_token(calibration, "sensor_token"), {})
        return sensor.get("modality", "camera") == "camera" or sensor.get("channel") == LIDAR

    def describe(self, sample: str) -> dict[str, Any]:
        """The cameras and the LiDAR of a sample as JSON, with all poses.

        Raises `RecordingError` where a row of the sample is missing or broken.
        """
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


def _token(row: dict, field: str) -> str | None:
    """A link to another row that may be absent."""
    token = row.get(field)
    return token if isinstance(token, str) else None


def _pick(row: dict, *fields: str) -> dict:
    return {field: row[field] for field in fields if field in row}


def _by_token(path: Path, wanted: set | None = None, *fields: str) -> dict[str, dict]:
    """Rows of a table by token: all of them, or some fields of the wanted ones."""
    rows: dict[str, dict] = {}
    for where, row in read_rows(path):
        if wanted is not None and _token(row, "token") not in wanted:
            continue
        token = recording.get_field(path, row, "token", str, where)
        if token in rows:
            raise RecordingError(path, f"{where}: a second row of token {token}")
        rows[token] = row if wanted is None else _pick(row, "token", *fields)
    return rows


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a table one by one, each with its place in the file for error messages.

    Artificial tables of a quarter of the whole dataset's size take 1.5 GB as Python objects. A plan
    made row by row peaks at 0.35 GB.
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
