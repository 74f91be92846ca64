"""The gradient of a 3x3 convolution's kernel by Winograd's algorithm, for CPUs.

Lavin and Gray, arXiv 1509.09308, F(4x4, 3x3): in tiles of 4x4 outputs it takes a quarter of the
multiplications. The convolution of a tile is `to_output (to_kernel k to_kernel^T * to_input x
to_input^T) to_output^T`, with * by element; what follows is that line's gradient by k. In float32
it differs from the direct sum by about 1e-5 of the largest value.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

OUT, IN = 4, 6  # sides of a tile of outputs and of the inputs it sees
_TO_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_FROM_OUTPUT = (
    (1, 0, 0, 0),
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (1, 2, 4, 8),
    (1, -2, 4, -8),
    (0, 0, 0, 1),
)
_TO_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float32,
)
# Transformed numbers of a strip, inputs and outputs together, that stay in the caches (8 MB).
_STRIP_NUMBERS = 2_000_000
_WORTH_FLOP = 2e9  # of the direct sum


def applies(
    kernel_shape: tuple[int, ...], strides: tuple[int, ...], padding: Sequence[tuple[int, int]]
) -> bool:
    """Whether it is a convolution of the kind that `kernel_gradient_3x3` knows."""
    by_one = all(stride == 1 for stride in strides) and all(tuple(p) == (1, 1) for p in padding)
    return by_one and kernel_shape[:2] == (3, 3)


def pays(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
    """Whether it saves time: enough tiles for what the kernel's transforms take, and enough work.

    On two cores with jax 0.12 it takes .2 to .9 times as long as XLA's where this holds. Smaller
    ones gain as well, but not what compiling takes longer: 7 s more for all of the demo's step.
    """
    b, height, width, _ = x_shape
    channels = kernel_shape[2] * kernel_shape[3]
    tiles = b * -(-height // OUT) * -(-width // OUT)
    return 18 * b * height * width * channels >= _WORTH_FLOP and 2 * tiles**2 >= channels


def kernel_gradient_3x3(
    x: Float[Array, "b h w c"], out_grad: Float[Array, "b h w d"]
) -> Float[Array, "3 3 c d"]:
    """What a 3x3 kernel gets of `out_grad` where `x` was convolved with one pixel of padding.

    In float32 whatever the maps are; in horizontal strips of all maps, small enough for the caches.
    """
    b, height, width, _ = x.shape
    across, down = -(-width // OUT), -(-height // OUT)
    tiles_that_fit = _STRIP_NUMBERS / (IN * IN * (x.shape[-1] + out_grad.shape[-1]))
    rows = min(down, max(1, round(tiles_that_fit / (b * across))))
    strips = -(-down // rows)
    # Tiles overlap by two pixels; a whole tile behind them makes all cuts even.
    tall, wide = OUT * rows * strips, OUT * across
    x, out_grad = x.astype(jnp.float32), out_grad.astype(jnp.float32)
    x = jnp.pad(x, ((0, 0), (1, tall + OUT - height - 1), (1, wide + OUT - width - 1), (0, 0)))
    out_grad = jnp.pad(out_grad, ((0, 0), (0, tall - height), (0, wide - width), (0, 0)))

    def add_strip(index, total):
        cut = OUT * rows * index
        seen = jax.lax.dynamic_slice_in_dim(x, cut, OUT * (rows + 1), axis=1)
        made = jax.lax.dynamic_slice_in_dim(out_grad, cut, OUT * rows, axis=1)
        pairs = zip(
            _transformed(seen, _TO_INPUT, overlap=True),
            _transformed(made, _FROM_OUTPUT, overlap=False),
            strict=True,
        )
        return total + jnp.stack([i.T @ o for i, o in pairs])

    zeros = jnp.zeros((IN * IN, x.shape[-1], out_grad.shape[-1]), jnp.float32)
    total = jax.lax.fori_loop(0, strips, add_strip, zeros).reshape(IN, IN, *zeros.shape[1:])
    return jnp.einsum("iu,ijcd,jv->uvcd", _TO_KERNEL, total, _TO_KERNEL)


def _transformed(
    maps: Float[Array, "b h w c"], matrix: tuple[tuple[int, ...], ...], *, overlap: bool
) -> list[Float[Array, "t c"]]:
    """`matrix tile matrix^T` of all tiles: a list over its elements."""
    rows = [_combined(row, _lines(maps, 1, overlap)) for row in matrix]
    # One pass for rows, one for columns: fused, XLA would do the first one anew for each column.
    rows = jax.lax.optimization_barrier(rows)
    columns = [_combined(column, _lines(row, 2, overlap)) for row in rows for column in matrix]
    return [column.reshape(-1, maps.shape[-1]) for column in columns]


def _lines(
    maps: Float[Array, "b h w c"], axis: int, overlap: bool
) -> list[Float[Array, "b _ _ c"]]:
    """The first line of every tile along an axis, the second one and so on."""
    shape = maps.shape
    tiles = maps.reshape(*shape[:axis], shape[axis] // OUT, OUT, *shape[axis + 1 :])
    lines = [jax.lax.index_in_dim(tiles, line, axis + 1, keepdims=False) for line in range(OUT)]
    if not overlap:
        return lines
    last = tiles.shape[axis]
    here = [jax.lax.slice_in_dim(line, 0, last - 1, axis=axis) for line in lines]
    return here + [jax.lax.slice_in_dim(line, 1, last, axis=axis) for line in lines[: IN - OUT]]


def _combined(weights: tuple[int, ...], lines: list[Array]) -> Array:
    return sum(weight * line for weight, line in zip(weights, lines, strict=True) if weight)
