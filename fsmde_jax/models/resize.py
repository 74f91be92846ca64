"""Image resizing that equals torch's `interpolate`, as two small matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.lru_cache(maxsize=256)
def _bilinear_matrix(size_in: int, size_out: int, align_corners: bool) -> np.ndarray:
    """Weights [size_out, size_in] of one axis: two neighbours a row, edges repeated."""
    index = np.arange(size_out)
    if align_corners:
        position = index * ((size_in - 1) / max(size_out - 1, 1))
    else:
        position = np.clip((index + 0.5) * (size_in / size_out) - 0.5, 0, size_in - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, size_in - 1)
    matrix = np.zeros((size_out, size_in), np.float32)
    np.add.at(matrix, (index, low), 1 - (position - low))
    np.add.at(matrix, (index, high), position - low)
    return matrix


def resize_bilinear(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Resizes to `size` (height, width) without antialiasing, as torch does.

    Args:
        x: images or feature maps.
        size: height and width of the result.
        align_corners: True puts the corner pixels' centres on each other (DPT's upsampling);
            False scales the pixel areas (half-pixel centres).
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows = jnp.asarray(_bilinear_matrix(x.shape[1], size[0], align_corners), x.dtype)
    columns = jnp.asarray(_bilinear_matrix(x.shape[2], size[1], align_corners), x.dtype)
    # Two dense products cost as much as jax.image.resize's and their gradient needs no scatter.
    # Full precision: TF32 or bf16 passes would round the interpolation weights.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("pw,bhwc->bhpc", columns, product("oh,bhwc->bowc", rows, x))
