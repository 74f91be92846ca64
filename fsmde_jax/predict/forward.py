"""Images of any size through a student: brought to the size it runs at, compiled once a shape.

An image of nearly the aspect ratio that the student was trained at is resized to that size. One
that is off by more than `ASPECT_TOLERANCE` is not squeezed, cropped or padded, since the network is
fully convolutional: it runs at the size of its own shape with about as many pixels.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from PIL import Image

from fsmde_jax import rig
from fsmde_jax.export import formats
from fsmde_jax.models.layers import compiler

ASPECT_TOLERANCE = 0.1
STRIDE = 32  # of the student's coarsest features
# A camera alone looks ahead from the vehicle's origin.
VEHICLE_FROM_PHOTO = np.array(
    [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float32
)


def compiled(
    student: nnx.Module,
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The function of one ring: (image uint8 [n h w 3], intrinsics [n 3 3] in pixels of that size)
    to (depth in metres, confidence), float32 [n h w].

    It compiles at the first call, and again for another number or size of images.
    """
    program = compiler.Program(formats.inference(student), compiler.inference_options())

    def run(image: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        depth_m, confidence = program(image[None], intrinsics[None])
        return np.asarray(depth_m[0], np.float32), np.asarray(confidence[0], np.float32)

    return run


def size_like(size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which an image of another size is run.

    `size`, or where the aspect ratio differs by more than `ASPECT_TOLERANCE`, the multiples of
    `STRIDE` that have nearly the image's and about as many pixels.
    """
    aspect, area = image_size[1] / image_size[0], size[0] * size[1]
    if abs(math.log(aspect * size[0] / size[1])) < ASPECT_TOLERANCE:
        return size

    def badness(candidate: tuple[int, int]) -> float:
        height, width = candidate
        return abs(math.log(width / height / aspect)) + 0.3 * abs(math.log(height * width / area))

    sides = range(STRIDE, 4 * max(size) + STRIDE, STRIDE)
    return min(((height, width) for height in sides for width in sides), key=badness)


def resized(
    images: Sequence[Image.Image],
    intrinsics: Float[np.ndarray, "n 3 3"],
    size: tuple[int, int],
) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, "n 3 3"]]:
    """RGB images of one size, and their intrinsics, at another (height, width)."""
    native = images[0].size[::-1]
    # As `prepare` does. PIL widens Lanczos' support when it shrinks an image: nothing aliases.
    arrays = [np.asarray(i.resize(size[::-1], Image.Resampling.LANCZOS)) for i in images]
    return np.stack(arrays), rig.scale_intrinsics(intrinsics, native, size)


def intrinsics_of(size: tuple[int, int], focal_px: float) -> Float[np.ndarray, "3 3"]:
    """Of a camera with square pixels that looks through the centre of an image (height, width)."""
    height, width = size
    rows = [[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]]
    return np.array(rows, np.float32)
