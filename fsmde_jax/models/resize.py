"""Image resizing that equals torch's `interpolate`, as two small matrix products or by slices."""

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


@functools.lru_cache(maxsize=256)
def _bicubic_matrix(size_in: int, size_out: int, offset: float) -> np.ndarray:
    """Weights [size_out, size_in] of one axis: Keys' kernel with a = -0.75, edges repeated."""
    position = (np.arange(size_out) + 0.5) * (size_in / (size_out + offset)) - 0.5
    matrix = np.zeros((size_out, size_in), np.float32)
    first = np.floor(position).astype(int) - 1
    for tap in range(4):
        distance = np.abs(position - (first + tap))
        index = np.clip(first + tap, 0, size_in - 1)
        np.add.at(matrix, (np.arange(size_out), index), keys_kernel(distance, -0.75))
    return matrix


def keys_kernel(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel at distances x >= 0 (IEEE TASSP 29(6), 1981)."""
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


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
    if tuple(size) == (2 * x.shape[1], 2 * x.shape[2]) and not align_corners:
        return _doubled(_doubled(x.astype(jnp.float32), 1), 2).astype(x.dtype)
    rows = _bilinear_matrix(x.shape[1], size[0], align_corners)
    return _resample(x, rows, _bilinear_matrix(x.shape[2], size[1], align_corners))


def resize_bicubic(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, offset: float = 0.0
) -> Float[Array, "b h2 w2 c"]:
    """Resizes to `size` (height, width) without antialiasing, as torch's bicubic does.

    Args:
        x: images or feature maps.
        size: height and width of the result.
        offset: the scale is (size + offset) / input size; see `ViTConfig.position_offset`.
    """
    if x.shape[1:3] == tuple(size):
        return x
    rows = _bicubic_matrix(x.shape[1], size[0], offset)
    return _resample(x, rows, _bicubic_matrix(x.shape[2], size[1], offset))


def _doubled(x: Float[Array, "b h w c"], axis: int) -> Float[Array, "b h2 w2 c"]:
    """Twice as long, in one pass over memory: pixels lie a quarter from one of the old ones."""
    size = x.shape[axis]
    cut = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
    before = jnp.concatenate([cut(0, 1), cut(0, size - 1)], axis)
    behind = jnp.concatenate([cut(1, size), cut(size - 1, size)], axis)
    pairs = jnp.concatenate(
        [jnp.expand_dims(0.75 * x + 0.25 * other, axis + 1) for other in (before, behind)], axis + 1
    )
    return pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _resample(
    x: Float[Array, "b h w c"], rows: np.ndarray, columns: np.ndarray
) -> Float[Array, "b h2 w2 c"]:
    """Applies a matrix to each axis of the image."""
    # Two dense products cost as much as jax.image.resize's and their gradient needs no scatter.
    # Full precision: TF32 or bf16 passes would round the interpolation weights.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    rows, columns = jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype)
    return product("pw,bhwc->bhpc", columns, product("oh,bhwc->bowc", rows, x))
