"""An input of a run's student in the run's folder, so that it can be exported without its data.

`example.npz`: `image` and `intrinsics` as the student gets them, `vehicle_from_camera`, and the
names of the rig's `cameras`.
"""

import pathlib
import zipfile
import zlib

import numpy as np
from ml_collections import ConfigDict

from fsmde_jax import files
from fsmde_jax.data import pipeline, prepared
from fsmde_jax.errors import UserError

FILE = "example.npz"
_FIELDS = ("image", "intrinsics", "vehicle_from_camera")

Sample = dict[str, np.ndarray]


def write(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Stores the example of a student's run, unless it is there, or no sample has all cameras."""
    if config.task != "student" or (workdir / FILE).exists():
        return
    if found := _of_data(config):
        sample, cameras = found
        with files.replacing(workdir / FILE) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **sample, cameras=np.array(cameras))


def read(config: ConfigDict, workdir: pathlib.Path) -> tuple[Sample, tuple[str, ...]]:
    """(`image` [n h w 3], `intrinsics` [n 3 3], `vehicle_from_camera` [n 4 4]; the n cameras).

    Runs of before have no such file: theirs comes from the data. Raises `UserError` where the file
    is damaged, or neither is there.
    """
    file = workdir / FILE
    if file.is_file():
        try:
            with np.load(file) as arrays:
                return {name: arrays[name] for name in _FIELDS}, tuple(arrays["cameras"].tolist())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{file} is damaged ({error}). Move it away: then the run's data is read instead"
            ) from error
    try:
        found = _of_data(config)
    except prepared.PreparedDataError as error:
        raise UserError(
            f"{workdir} was made before a run kept an example of its input ({FILE}), so its data "
            f"is needed, and that is not there: {error}"
        ) from error
    if found is None:
        raise UserError(f"no scene of {config.data.data_dir} begins with all cameras of the rig")
    return found


def _of_data(config: ConfigDict) -> tuple[Sample, tuple[str, ...]] | None:
    """The first sample of the first scene that begins with all cameras."""
    source, cameras = pipeline.open_data(config.data, config.data.train_split)
    if config.data.eval_split in source.rig["splits"]:
        source, cameras = pipeline.open_data(config.data, config.data.eval_split)
    first = 0
    for samples in source.scenes.values():
        if samples:
            sample = pipeline.shrink(pipeline.read_sample(source, first), config.data.downscale)
            placed = pipeline.place_on_rig(sample, cameras, source.rig["max_points_per_image"])
            if placed["camera_mask"].all():
                return {name: placed[name] for name in _FIELDS}, cameras
        first += samples
    return None
