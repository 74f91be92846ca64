"""Depth maps of any method, from files, to be evaluated: one file an image.

    DIR/<scene id>/<index, six digits>/<camera>.npy    or .npz (its only array, `depth` or
                                                      `depth_m`)
                                                      or .png (16 bit)

`<scene id>/<index>` is the `sample_id` of the prepared dataset. All maps have the same size, which
may be any. Values times a stated unit are metres of z-depth. Zeros, NaN and infinities are no
prediction and count as 0.
"""

import pathlib

import numpy as np
from jaxtyping import Float
from PIL import Image

from fsmde_jax.errors import UserError

SUFFIXES = (".npy", ".npz", ".png")


class PredictionError(UserError):
    """A depth map is missing or broken; the text names the file."""


class Predictions:
    """Reads the depth maps of a folder, sample by sample; can be read from many threads.

    Args:
      folder: DIR above.
      unit_m: metres of a value of 1 (0.001 for millimetres, 1/256 for KITTI's PNG). None is 1;
        a PNG needs a number.
      skip: leaves out missing and broken maps instead of raising `PredictionError`.
    """

    def __init__(self, folder: pathlib.Path, unit_m: float | None = None, skip: bool = False):
        self.folder, self.unit_m, self.skip = folder, unit_m, skip
        if not folder.is_dir():
            raise PredictionError(f"{folder}: there is no such folder of predictions")
        files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
        if not files:
            raise PredictionError(f"{folder}: holds no .npy, .npz or .png file")
        self.count, self.size = len(files), self._read(files[0]).shape
        self.skipped: list[str] = []  # problems of this process's maps

    def add(self, sample: dict) -> dict:
        """A prepared sample with `prediction` [n h w] in metres and `covered` [n].

        Images without a prediction lose their LiDAR points, so that they do not count.
        """
        images = len(sample["lidar_counts"])
        maps, covered = np.zeros((images, *self.size), np.float32), np.zeros(images, bool)
        for i, camera in enumerate(sample["camera_names"]):
            try:
                maps[i] = self._of_image(sample["sample_id"], camera)
                covered[i] = True
            except PredictionError as error:
                if not self.skip:
                    raise
                self.skipped.append(str(error))
        of_point = np.repeat(covered, sample["lidar_counts"])
        depth_m = np.where(of_point, sample["lidar_depth_m"], 0.0).astype(np.float32)
        return {**sample, "prediction": maps, "covered": covered, "lidar_depth_m": depth_m}

    def _of_image(self, sample_id: str, camera: str) -> Float[np.ndarray, "h w"]:
        stem = self.folder / sample_id / camera
        path = next((p for s in SUFFIXES if (p := stem.with_name(camera + s)).is_file()), None)
        if path is None:
            raise PredictionError(
                f"{stem}.npy (or .npz, .png): the prediction of sample {sample_id}, camera "
                f"{camera} is missing; {self.folder} holds {self.count:,} depth maps. "
                "--on_error=skip evaluates what there is"
            )
        values = self._read(path)
        if values.shape != self.size:
            raise PredictionError(
                f"{path}: is {_text(values.shape)}, the other predictions are {_text(self.size)}"
            )
        return values

    def _read(self, path: pathlib.Path) -> Float[np.ndarray, "h w"]:
        """A map in metres; values that are not finite or not positive are 0."""
        try:
            values = _load(path)
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise PredictionError(f"{path}: cannot be read ({error})") from error
        if path.suffix == ".png":
            if self.unit_m is None:
                raise PredictionError(
                    f"{path}: a PNG needs --unit_m, the metres of a value of 1 "
                    "(0.001 for millimetres, 0.00390625 for 256ths of a metre)"
                )
            if values.dtype.itemsize < 2:
                raise PredictionError(f"{path}: has 8 bits a pixel; depth needs 16")
        values = values.squeeze()
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise PredictionError(
                f"{path}: must hold one number a pixel, is {values.dtype} {values.shape}"
            )
        values = values.astype(np.float32) * (1.0 if self.unit_m is None else self.unit_m)
        return np.where(np.isfinite(values) & (values > 0), values, 0.0).astype(np.float32)


def _load(path: pathlib.Path) -> np.ndarray:
    if path.suffix == ".png":
        with Image.open(path) as image:
            return np.asarray(image)
    content = np.load(path, allow_pickle=False)
    if path.suffix == ".npy":
        return content
    with content:
        named = [name for name in ("depth", "depth_m") if name in content.files]
        only = content.files if len(content.files) == 1 else ["depth"]
        return content[(named or only)[0]]


def _text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
