"""Reads nuScenes from its tables alone: key frames of its cameras and of LIDAR_TOP.

The tables of the whole dataset hold millions of rows, so they are read only once
(`nuscenes_tables`). `plan` checks them and writes a small file for each scene with everything that
its samples need. Workers read only those files. A sweep (`.pcd.bin`) is float32, rows of x y z
intensity ring in the sensor's frame.

A scene's split follows from its name, never from the folder: a training scene stays one in a folder
called v1.0-test.
"""

import collections
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fsmde_jax import files
from fsmde_jax.data.readers import recording
from fsmde_jax.data.readers.nuscenes_tables import LIDAR, SampleTables, read_rows
from fsmde_jax.data.readers.recording import Camera, Frame, Lidar, RecordingError, Sample

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
    """ "train", "val" or "test" by the official lists; a name on neither list is for training."""
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
    """Writes a description of each scene into `folder`; returns their paths by split and scene.

    A finished plan in `folder` is used as it is, because reading the tables of the whole dataset
    takes minutes.

    Raises `RecordingError` where a table is missing or no sample can be read from it. A fault of a
    single sample is raised when that sample is read.
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
    tables = SampleTables(version, {token for tokens in samples.values() for token in tokens})
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
    # Written last, and whole or not at all: where it exists, all the others do.
    files.write_json(folder / _PLAN_FILE, files.sealed(planned))


def _read_scenes(version: Path, splits: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Tokens of the scenes by split and name."""
    path = version / "scene.json"
    of_split: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for where, row in read_rows(path):
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
    for where, row in read_rows(path):
        scene = recording.get_field(path, row, "scene_token", str, where)
        if scene in scenes:
            timestamp_us = recording.number_field(path, row, "timestamp", where)
            token = recording.get_field(path, row, "token", str, where)
            of_scene[scene].append((timestamp_us, token))
    return {scene: [token for _, token in sorted(found)] for scene, found in of_scene.items()}


def _described(tables: SampleTables, sample: str) -> dict[str, Any]:
    """The sample's description, or the fault that prevents one."""
    try:
        return tables.describe(sample)
    except RecordingError as error:
        return {"fault": [str(error.path), error.problem]}


class Scene:
    """A scene's file that `plan` wrote; `scene.sample(index)` reads one sample.

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
        """The key frame at a place in the scene; raises `RecordingError` if its rows are broken."""
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
    """The sweep's x, y, z in metres in the LiDAR's frame.

    Raises `RecordingError` for a file that is missing or cut, or has a point that is not finite.
    """
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
