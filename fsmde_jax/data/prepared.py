"""The prepared dataset on disk: where it lies, and reading it sample by sample.

`<data_dir>/<dataset>/<config name>/<version>/` holds array_record shards, TFDS's metadata,
`rig.json` and `prepare.json`; while it is being made it is called `<version>.incomplete`.
"""

import io
import json
import operator
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fsmde_jax.errors import UserError

VERSION = "1.0.0"  # of the sample schema; raised together with tfds_builders/ddad
RIG_FILE = "rig.json"
RECORD_FILE = "prepare.json"


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
    stored, images uint8 [n h w 3], text as `str`. `rig` is the content of `rig.json`.
    """

    def __init__(self, directory: Path, split: str):
        self.directory = directory
        self.split = split
        self.rig: dict[str, Any] = json.loads((directory / RIG_FILE).read_text())
        builder = tfds.builder_from_directory(directory)
        self._source = builder.as_data_source(split=split, decoders={"images": _KeepEncoded()})

    @property
    def scenes(self) -> dict[str, int]:
        """Samples of each scene, in the order of the samples."""
        if "scenes" not in self.rig:
            raise PreparedDataError(
                f"{self.directory / RIG_FILE} names no scenes: an older version made it; "
                "delete the folder and prepare it again"
            )
        return self.rig["scenes"][self.split]

    def __reduce__(self):
        return PreparedSplit, (self.directory, self.split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.directory}, {self.split}")
        sample = dict(self._source[index])
        sample["images"] = decode_images(sample["images"])
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
    available = json.loads((directory / RIG_FILE).read_text())["splits"]
    if split not in available:
        raise PreparedDataError(
            f"{directory} has no split {split!r}; it has {', '.join(available)}"
        )
    return PreparedSplit(directory, split)


def version_dir(data_dir: Path, dataset: str, config_name: str) -> Path:
    """Where the finished dataset lies."""
    return Path(data_dir) / dataset / config_name / VERSION


def incomplete_dir(data_dir: Path, dataset: str, config_name: str) -> Path:
    """Where it lies while it is being made."""
    return version_dir(data_dir, dataset, config_name).with_name(f"{VERSION}.incomplete")


def prepare_command(record: dict[str, Any], data_dir: Path) -> str:
    """The shell command that makes the dataset that `record` (of prepare.json) describes."""
    height, width = record["image_size"]
    parts = [
        "python -m fsmde_jax.prepare",
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
    return " ".join(parts)


def raw_data_help(dataset: str) -> str:
    """What to get, from where, for somebody who has no recording yet."""
    if dataset == "world":
        return (
            "The miniature world is written by `python -m fsmde_jax.main --config=configs/demo.py` "
            "or by `python -m fsmde_jax.data.world --out=RAW`."
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
            "miniature one: python -m fsmde_jax.data.world --out=RAW --layout=rig"
        )
    return (
        "Download the DDAD train+val archive (ddad_train_val, 257 GB, CC BY-NC-SA 4.0) from the "
        "project page of TRI-ML/DDAD on GitHub and unpack it; the folder that holds ddad.json is "
        "RAW."
    )


def _how_to_prepare(directory: Path, dataset: str, data_dir: Path, config_name: str) -> str:
    record_path = incomplete_dir(data_dir, dataset, config_name) / RECORD_FILE
    if record_path.is_file():
        command = prepare_command(json.loads(record_path.read_text()), data_dir)
        return f"{directory} is not finished, its preparation was interrupted. Resume it: {command}"
    return (
        f"There is no prepared dataset in {directory}. {raw_data_help(dataset)} Then run: "
        f"python -m fsmde_jax.prepare --dataset={dataset} --source=RAW --data_dir={data_dir} "
        f"--config_name={config_name}"
    )


def decode_images(encoded: np.ndarray) -> np.ndarray:
    """JPEG or PNG files (objects) of one size to uint8 [n h w 3]."""
    first = np.asarray(Image.open(io.BytesIO(encoded[0])))
    images = np.empty((len(encoded), *first.shape), np.uint8)
    images[0] = first
    for i, content in enumerate(encoded[1:], start=1):
        images[i] = np.asarray(Image.open(io.BytesIO(content)))
    return images
