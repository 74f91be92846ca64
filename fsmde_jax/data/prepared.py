"""The prepared dataset on disk: where it lies, and reading it sample by sample.

`<data_dir>/<dataset>/<config name>/<version>/` holds array_record shards, TFDS's metadata,
`rig.json` and `prepare.json`; while it is being made it is called `<version>.incomplete`.
"""

import functools
import io
import operator
import re
import shlex
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fsmde_jax import files
from fsmde_jax.errors import UserError

# Of the sample schema, for all of tfds_builders. New optional features need no other version.
VERSION = "2.0.0"
# Of its images and their order, which is all that a teacher sees of a sample.
IMAGES_VERSION = "1.0.0"
RIG_FILE = "rig.json"
RECORD_FILE = "prepare.json"
# Fields whose pictures are stored as files, each where the dataset has it (`optional_features` in
# tfds_builders/base.py).
_PICTURES = (
    "images",
    "previous_images",
    "next_images",
    "class_map",
    "mirror_strength",
    "images_without_mirrors",
)


class PreparedDataError(UserError):
    """A prepared dataset is missing, incomplete or has no such split; the text says what to do."""


class _KeepEncoded(tfds.decode.SkipDecoding):
    """Leaves image files encoded: TFDS asks for OpenCV, and decodes into separate arrays."""

    def decode_batch_example_np(self, example: np.ndarray) -> np.ndarray:
        """The files as they were stored."""
        return example


class PreparedSplit:
    """Random access to the samples of a split; can be pickled and read from many threads.

    `source[i]` is a dict of the features of the dataset's builder in `tfds_builders`: arrays as
    stored, pictures uint8 [n h w 3] or [n h w], text as `str`. `rig` is the content of `rig.json`.

    Raises `PreparedDataError` naming the file that is missing, damaged or cut short; whether the
    bytes of the shards are right is told by `prepare --verify`.
    """

    def __init__(self, directory: Path, split: str):
        self.directory = directory
        self.split = split
        self.rig = _opened(directory)
        builder = tfds.builder_from_directory(directory)
        self._pictures = [name for name in _PICTURES if name in builder.info.features]
        keep = {name: _KeepEncoded() for name in self._pictures}
        self._source = builder.as_data_source(split=split, decoders=keep)

    @property
    def scenes(self) -> dict[str, int]:
        """Samples of each scene, in the order of the samples."""
        return self.rig["scenes"][self.split]

    def __reduce__(self):
        return PreparedSplit, (self.directory, self.split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self.read(operator.index(index))

    def read(self, index: int, pictures: bool = True) -> dict[str, Any]:
        """A sample; without `pictures`, which take most of the time, all its other fields."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.directory}, {self.split}")
        sample = dict(self._source[index])
        for name in self._pictures:
            if pictures:
                sample[name] = decode_images(sample[name])
            else:
                del sample[name]
        for field in sample.keys() & {"camera_names", "previous_files", "next_files"}:
            sample[field] = [text.decode() for text in sample[field]]
        for field in ("sample_id", "scene_id"):
            sample[field] = sample[field].decode()
        return sample


def open_split(data_dir: Path, dataset: str, config_name: str, split: str) -> PreparedSplit:
    """A split of a prepared dataset; `PreparedDataError` says which command makes it."""
    directory = version_dir(data_dir, dataset, config_name)
    if not directory.is_dir():
        raise PreparedDataError(_how_to_prepare(directory, dataset, data_dir, config_name))
    available = _opened(directory)["splits"]
    if split not in available:
        raise PreparedDataError(
            f"{directory} has no split {split!r}; it has {', '.join(available)}"
        )
    return PreparedSplit(directory, split)


def _opened(directory: Path) -> dict[str, Any]:
    """The content of a dataset's rig.json, whose files are all there in their size."""
    rig = read_rig(directory)
    _check_files(directory, (directory / RIG_FILE).stat().st_mtime_ns)
    return rig


@functools.lru_cache  # once a process, as long as the dataset is not made anew
def _check_files(directory: Path, _changed_ns: int) -> None:
    for name, written in read_rig(directory)["files"].items():
        if problem := file_problem(directory / name, written, fully=name.endswith(".json")):
            raise PreparedDataError(f"{problem}. {again(directory)}")


def read_rig(directory: Path) -> dict[str, Any]:
    """The content of a finished dataset's rig.json."""
    what, keys = "the list of what is prepared", ("files", "splits", "scenes", "cameras")
    return files.read_json(directory / RIG_FILE, what, again(directory), keys)


def file_problem(path: Path, written: dict[str, Any], fully: bool) -> str | None:
    """In words, what is wrong with a file of a dataset; by its bytes, too, if `fully`.

    Args:
      written: what rig.json says of it: "bytes" and "sha256".
    """
    if not path.is_file():
        return f"{path} is missing"
    if (found := path.stat().st_size) != written["bytes"]:
        return f"{path} has {found} bytes of {written['bytes']}: it was cut or changed"
    if fully and files.sha256(path) != written["sha256"]:
        return f"{path} was changed: its checksum is not the one that was written down"
    return None


def again(directory: Path) -> str:
    """What a user can do about a file of a finished dataset that is missing or damaged."""
    return f"Make it again from the recording, all else stays{_command_there(directory)}"


def _command_there(directory: Path) -> str:
    """ ": " and the command that made a dataset, as far as its folder still says so."""
    try:
        record = files.read_json(directory / RECORD_FILE, "", "")
        return f": {prepare_command(record, directory.parents[2])}"
    except (UserError, KeyError, TypeError):
        return ""


def version_dir(data_dir: Path, dataset: str, config_name: str) -> Path:
    """Where the finished dataset lies."""
    return Path(data_dir) / dataset / config_name / VERSION


def incomplete_dir(data_dir: Path, dataset: str, config_name: str) -> Path:
    """Where it lies while it is being made."""
    return version_dir(data_dir, dataset, config_name).with_name(f"{VERSION}.incomplete")


def prepare_command(record: dict[str, Any], data_dir: Path) -> str:
    """The shell command that makes the dataset that `record` (of prepare.json) describes."""
    height, width = record["image_size"]
    arguments = [
        f"--dataset={record['dataset']}",
        f"--source={record['source']}",
        f"--data_dir={data_dir}",
        f"--image_size={height}x{width}",
        f"--image_format={record['image_format']}",
        f"--config_name={record['config_name']}",
        f"--splits={','.join(record['splits'])}",
        *(["--dense_depth"] if record["dense_depth"] else []),
        *(["--on_error=skip"] if record["on_error"] == "skip" else []),
    ]
    return f"python -m fsmde_jax.prepare {shlex.join(arguments)}"


def raw_data_help(dataset: str) -> str:
    """What to get, from where, for somebody who has no recording yet."""
    if dataset == "world":
        return (
            "The miniature world is written by `python -m fsmde_jax.main --config=configs/demo.py` "
            "or by `python -m fsmde_jax.world --out=RAW`."
        )
    if dataset == "nuscenes":
        return (
            "Download nuScenes v1.0-mini or v1.0-trainval (non-commercial licence) from "
            "nuscenes.org and unpack its archives into one folder, RAW, which then holds samples/, "
            "sweeps/ and v1.0-mini/ or v1.0-trainval/."
        )
    if dataset == "rig":
        return (
            "RAW is a folder with rig.json, as tfds_builders/rig/README.md describes it; for a "
            "miniature one: python -m fsmde_jax.world --out=RAW --layout=rig"
        )
    return (
        "Download the DDAD train+val archive (ddad_train_val, 257 GB, CC BY-NC-SA 4.0) from the "
        "project page of TRI-ML/DDAD on GitHub and unpack it; the folder that holds ddad.json is "
        "RAW."
    )


def _how_to_prepare(directory: Path, dataset: str, data_dir: Path, config_name: str) -> str:
    record_path = incomplete_dir(data_dir, dataset, config_name) / RECORD_FILE
    if record_path.is_file():
        command = _command_there(record_path.parent)
        return f"{directory} is not finished, its preparation was interrupted. Resume it{command}"
    versions = [path.parent for path in directory.parent.glob(f"*/{RECORD_FILE}")]
    for old in sorted(path for path in versions if re.fullmatch(r"[\d.]+", path.name)):
        return (
            f"{old} holds version {old.name} of the prepared data, this is for version {VERSION}. "
            "Prepare it anew, beside the old folder, which you may delete afterwards"
            f"{_command_there(old)}"
        )
    return (
        f"There is no prepared dataset in {directory}. {raw_data_help(dataset)} Then run: "
        f"python -m fsmde_jax.prepare --dataset={dataset} --source=RAW --data_dir={data_dir} "
        f"--config_name={config_name}"
    )


def decode_images(encoded: np.ndarray) -> np.ndarray:
    """JPEG or PNG files (objects) of one size to uint8 [n h w 3], or [n h w] where grey."""
    first = np.asarray(Image.open(io.BytesIO(encoded[0])))
    images = np.empty((len(encoded), *first.shape), np.uint8)
    images[0] = first
    for i, content in enumerate(encoded[1:], start=1):
        images[i] = np.asarray(Image.open(io.BytesIO(content)))
    return images
