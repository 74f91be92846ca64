"""Frames of a film: images and their depths as one picture."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fsmde_jax.pictures.colours import depth_colours

FILM_WIDTH_PX = 1920


def stack_views(
    image: UInt8[np.ndarray, "n h w 3"], depth_m: Float[np.ndarray, "n h w"], max_depth_m: float
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A film's frame: one camera's image beside its depth, or a ring's images above their depths.

    Views are enlarged by the largest whole number with which the frame is no wider than
    `FILM_WIDTH_PX`.

    Args:
      max_depth_m: end of the colour range.
    """
    depth = np.rint(depth_colours(depth_m, max_depth_m) * 255).astype(np.uint8)
    columns = max(2, len(image))
    scale = max(1, FILM_WIDTH_PX // (columns * image.shape[2]))
    views = [np.concatenate([_enlarged(one, scale) for one in rows], axis=1)
             for rows in (image, depth)]  # fmt: skip
    return np.concatenate(views, axis=1 if len(image) == 1 else 0)


def _enlarged(image: UInt8[np.ndarray, "h w 3"], scale: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = image.shape[:2]
    size = (width * scale, height * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
