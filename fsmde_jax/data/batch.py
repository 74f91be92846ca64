"""The one schema of a batch: what the pipeline yields, and losses, evaluation and dry run read.

Dimensions: b samples, n cameras of the rig in ring order, p LiDAR points of an image, h w the size
of the student's image, hp wp the prepared image's, hd wd the size of depth maps from files.
"""

from collections.abc import Iterable, Mapping
from typing import NotRequired, TypedDict

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8


class Batch(TypedDict):
    """Arrays by field; a sample has the same fields without b.

    Attributes:
      image: RGB; 0 where the sample lacks the camera.
      camera_mask: whether the sample has the camera.
      intrinsics: in pixels of `image`, half-pixel centres.
      lidar_xy: pixels (x, y) of `image`.
      lidar_depth_m: z-depth; 0 pads.
      neighbour, neighbour_mask: `rig.ring_neighbours`.
      sample_index: of the split; -1 pads an evaluation's batch.
      flipped: training only: whether it is the sample's mirror image.
      lidar_uv, native_size: evaluation only: native pixels (column, row), and (height, width).
      dense_depth_m: where the task asks for it; 0 is unknown.
      teacher_image: as prepared, neither shrunk nor jittered; `config.teacher.image`.
      teacher_roots, teacher_tokens, teacher_log_depth: of `teacher_cache`, where the config's
        teacher is stored. Their shapes are the teacher's.
      prediction, covered: evaluation of depth maps from files; whether a camera has one.
    """

    image: UInt8[Array, "b n h w 3"]
    camera_mask: Bool[Array, "b n"]
    intrinsics: Float32[Array, "b n 3 3"]
    vehicle_from_camera: Float32[Array, "b n 4 4"]
    lidar_xy: Float32[Array, "b n p 2"]
    lidar_depth_m: Float32[Array, "b n p"]
    neighbour: Int32[Array, "b n"]
    neighbour_mask: Bool[Array, "b n"]
    sample_index: Int32[Array, "b"]
    flipped: NotRequired[Bool[Array, "b"]]
    lidar_uv: NotRequired[Int32[Array, "b n p 2"]]
    native_size: NotRequired[Int32[Array, "b n 2"]]
    dense_depth_m: NotRequired[Float32[Array, "b n h w"]]
    teacher_image: NotRequired[UInt8[Array, "b n hp wp 3"]]
    teacher_roots: NotRequired[Array]
    teacher_tokens: NotRequired[Array]
    teacher_log_depth: NotRequired[Array]
    prediction: NotRequired[Float32[Array, "b n hd wd"]]
    covered: NotRequired[Bool[Array, "b n"]]


ALWAYS = tuple(sorted(Batch.__required_keys__))
TRAINING = (*ALWAYS, "flipped")
EVALUATION = (*ALWAYS, "lidar_uv", "native_size")


def shapes(names: Iterable[str], sizes: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of fields, for the sizes of the schema's dimensions by name."""
    found = {}
    for name in names:
        array = Batch.__annotations__[name]
        array = getattr(array, "__args__", (array,))[0]  # of NotRequired
        dimensions = array.dim_str.split()
        shape = tuple(int(d) if d.isdigit() else sizes[d] for d in dimensions)
        found[name] = jax.ShapeDtypeStruct(shape, np.dtype(array.dtypes[0]))
    return found
