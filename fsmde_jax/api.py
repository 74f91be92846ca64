"""A trained student for programs: numpy images in, metric depth out.

    import fsmde_jax

    student = fsmde_jax.load("runs/demo")
    estimate = student(images, intrinsics)
    estimate.depth_m, estimate.confidence
    cloud = estimate.to_point_cloud(vehicle_from_camera)

What comes back has the size of the images that went in.
"""

import dataclasses
import os

import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from numpy.typing import ArrayLike
from PIL import Image

from fsmde_jax import config as config_lib
from fsmde_jax.errors import UserError
from fsmde_jax.export import load as exported
from fsmde_jax.pictures import point_cloud
from fsmde_jax.predict import forward, inputs
from fsmde_jax.run import checkpoints
from fsmde_jax.run.load import load_student


def load(source: str | os.PathLike[str]) -> "TrainedStudent":
    """The trained student that `source` names, ready to predict.

    Args:
      source: a run's folder; a folder that `fsmde_jax.export` wrote with `--format=hub` or `orbax`;
        the id of such a folder on the Hugging Face hub (`owner/name`; HF_HOME and HF_HUB_OFFLINE
        are honoured); or a student that comes with the package (`student-mini-world`).

    Raises `UserError` that names the folder or file and what to do.
    """
    folder = exported.find(os.fspath(source))
    if exported.is_export(folder):
        student, about = exported.load_export(folder)
        return TrainedStudent(student, about["run"], tuple(about["image_size"]))
    missing = [n for n in (config_lib.CONFIG_FILE, checkpoints.FOLDER) if not (folder / n).exists()]
    if missing:
        raise UserError(
            f"{source} is neither a run's folder (it has no {' and no '.join(missing)}) nor an "
            "export of one. Name the folder that fsmde_jax.main wrote (runs/NAME), or the one that "
            "fsmde_jax.export wrote with --format=hub"
        )
    config = config_lib.load_config(folder)
    student = load_student(config, folder)
    return TrainedStudent(student, config.name, inputs.network_size(config, folder))


class TrainedStudent:
    """A function of images; `load` makes it.

    Attributes:
      name: of the run that trained it.
      image_size: (height, width) that it was trained at.
    """

    def __init__(self, student: nnx.Module, name: str, image_size: tuple[int, int]):
        self.name, self.image_size = name, image_size
        self._run = forward.compiled(student)

    def __call__(self, images: ArrayLike, intrinsics: ArrayLike) -> "Estimate":
        """Depth of one image, or of a ring of images of one instant.

        The images are resized to `image_size`. If their aspect ratio is another one (by more than a
        tenth), they are resized to a size of their own shape with about as many pixels. The result
        is resized back. The function is compiled at the first call, and again for another number of
        images or another size of the network's input.

        Args:
          images: uint8 RGB [h w 3] or [n h w 3], undistorted, of any size.
          intrinsics: [3 3], of all images, or [n 3 3]; in pixels of these images, where pixel i
            covers [i, i + 1).

        Raises `UserError` that names the argument, its shape and what it must be.
        """
        images = _images(images)
        return self._estimate(images, _intrinsics(intrinsics, images))

    def predict(self, images: ArrayLike, *, focal_px: float | None = None) -> "Estimate":
        """The same for cameras with square pixels that look through the centre of their images.

        Args:
          images: as in `__call__`.
          focal_px: the focal length in pixels of these images. Depth is proportional to it.
        """
        images = _images(images)
        if focal_px is None or not 0 < focal_px < np.inf:
            raise UserError(
                f"focal_px is {focal_px}: give the focal length in pixels of the images, since "
                "depth is proportional to it. From the field of view across the width it is "
                "width / 2 / tan(fov / 2)"
            )
        return self._estimate(
            images, np.tile(forward.intrinsics_of(_size(images), focal_px), (*_n(images), 1, 1))
        )

    def _estimate(
        self, images: UInt8[np.ndarray, "*n h w 3"], intrinsics: Float[np.ndarray, "*n 3 3"]
    ) -> "Estimate":
        size = _size(images)
        pictures = [Image.fromarray(image) for image in images.reshape(-1, *size, 3)]
        image, of_image = forward.resized(
            pictures, intrinsics.reshape(-1, 3, 3), forward.size_like(self.image_size, size)
        )
        depth_m, confidence = (
            np.stack([_at(size, single) for single in maps]).reshape(*_n(images), *size)
            for maps in self._run(image, of_image)
        )
        return Estimate(depth_m, confidence, images, intrinsics)


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """What a student says of one image [h w 3] (then `*n` is nothing) or of n images [n h w 3].

    Attributes:
      depth_m: z-depth along the optical axis, in metres.
      confidence: exp(-s), s the standard deviation of log depth; 1 is certain, .5 is a factor of
        two.
      images: the ones that went in.
      intrinsics: in pixels of `images`.
    """

    depth_m: Float[np.ndarray, "*n h w"]
    confidence: Float[np.ndarray, "*n h w"]
    images: UInt8[np.ndarray, "*n h w 3"]
    intrinsics: Float[np.ndarray, "*n 3 3"]

    def to_point_cloud(
        self,
        vehicle_from_camera: ArrayLike | None = None,
        min_confidence: float = 0.0,
        max_depth_m: float = 80.0,
    ) -> point_cloud.PointCloud:
        """Points of the vehicle's frame (x forward, y left, z up), in colours, of all cameras.

        The smear between a near edge and what is behind it is left out.

        Args:
          vehicle_from_camera: [n 4 4] of a ring, [4 4] of one image: `[R t; 0 0 0 1]`, t in metres,
            of cameras with x right, y down, z forward. One image may do without: then the camera
            looks ahead from the origin.
          min_confidence: what has less is left out.
          max_depth_m: what is farther is left out.

        Raises `UserError` where a ring comes without `vehicle_from_camera`, or its shape is wrong.
        """
        n = _n(self.images)
        if vehicle_from_camera is None:
            if n:
                raise UserError(
                    f"vehicle_from_camera is missing: a ring of {n[0]} cameras needs the pose of "
                    f"each, [{n[0]}, 4, 4]"
                )
            vehicle_from_camera = forward.VEHICLE_FROM_PHOTO
        poses = _matrices("vehicle_from_camera", vehicle_from_camera, [(*n, 4, 4)])
        sample = {
            "image": self.images,
            "intrinsics": self.intrinsics,
            "vehicle_from_camera": poses,
        }
        depth_m, confidence = self.depth_m, self.confidence
        if not n:
            sample = {name: values[None] for name, values in sample.items()}
            depth_m, confidence = depth_m[None], confidence[None]
        return point_cloud.fuse_reliable(sample, depth_m, confidence, min_confidence, max_depth_m)


def _images(images: ArrayLike) -> UInt8[np.ndarray, "*n h w 3"]:
    images = np.asarray(images)
    shape = list(images.shape)
    if images.dtype != np.uint8:
        raise UserError(
            f"images are {images.dtype}{shape}: give uint8, 0 to 255 (of floats from 0 to 1: "
            "np.rint(images * 255).astype(np.uint8))"
        )
    if images.ndim not in (3, 4) or images.shape[-1] != 3 or 0 in images.shape:
        raise UserError(
            f"images have the shape {shape}: give RGB as [height, width, 3], or a ring of images "
            "of one size as [cameras, height, width, 3]"
        )
    return images


def _intrinsics(
    intrinsics: ArrayLike, images: UInt8[np.ndarray, "*n h w 3"]
) -> Float[np.ndarray, "*n 3 3"]:
    n = _n(images)
    matrices = _matrices("intrinsics", intrinsics, list(dict.fromkeys([(3, 3), (*n, 3, 3)])))
    if not (np.diagonal(matrices, axis1=-2, axis2=-1) > 0).all():
        raise UserError(
            "intrinsics are [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] in pixels of the images; "
            "here a focal length, or the last 1, is not above 0"
        )
    return np.broadcast_to(matrices, (*n, 3, 3))


def _matrices(
    name: str, values: ArrayLike, shapes: list[tuple[int, ...]]
) -> Float[np.ndarray, "*n s s"]:
    """Finite float32 matrices of one of these shapes."""
    try:
        matrices = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is no array of numbers ({error})") from error
    if matrices.shape not in shapes:
        allowed = " or ".join(str(list(shape)) for shape in shapes)
        raise UserError(f"{name} has the shape {list(matrices.shape)}; give {allowed}")
    if not np.isfinite(matrices).all():
        raise UserError(f"{name} has values that are not finite")
    return matrices


def _n(images: UInt8[np.ndarray, "*n h w 3"]) -> tuple[int, ...]:
    """() for one image, (n,) for n."""
    return images.shape[:-3]


def _size(images: UInt8[np.ndarray, "*n h w 3"]) -> tuple[int, int]:
    return images.shape[-3:-1]


def _at(size: tuple[int, int], values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h2 w2"]:
    """A map at another (height, width)."""
    if values.shape == size:
        return values
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR))
