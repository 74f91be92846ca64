"""Convolutions as `nnx.Conv` computes them (`conv_general_dilated=`), with other ways on CPUs.

XLA's CPU backend is slow at depthwise convolutions, at the gradients of 1x1 convolutions, of a 3x3
kernel over large maps, and of 3x3 convolutions of stride 2. `fsmde_jax/reports/training_speed.md`
has the figures. Accelerators and the export keep XLA's own; results differ by rounding alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsmde_jax.models.layers import winograd


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k i d"],
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> Float[Array, "b h2 w2 d"]:
    """`lax.conv_general_dilated` of maps [b h w c] and kernels [k k c/groups d].

    Args:
        x, kernel: maps and kernel.
        strides: vertical and horizontal.
        padding: pixels before and behind in both directions, "SAME" or "VALID".
        options: what `nnx.Conv` passes besides; no dilation, one group or as many as channels.
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    xlas = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    if options.get("feature_group_count", 1) > 1:
        on_cpu = functools.partial(_sum_of_shifted, strides=strides, padding=padding)
    elif kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        on_cpu = functools.partial(_matrix_product, strides=strides)
    elif winograd.applies(kernel.shape, strides, padding):
        on_cpu = functools.partial(_with_gradients, xlas, _by_winograd)
    elif _halves(x.shape[1:3], kernel.shape[:2], strides, padding):
        on_cpu = functools.partial(_with_gradients, xlas, _of_halving)
    else:
        return xlas(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=xlas)


def _matrix_product(
    x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c d"], strides: tuple[int, int]
) -> Float[Array, "b h2 w2 d"]:
    """A 1x1 convolution without padding."""
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _sum_of_shifted(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k 1 c"],
    strides: tuple[int, int],
    padding: Any,
) -> Float[Array, "b h2 w2 c"]:
    """A depthwise convolution: slices of the padded maps, each times a weight a channel.

    One loop after XLA's fusion. XLA's own convolution takes 3 to 18 times as long on CPUs, its
    gradient 2.5 to 14 times (six images, eight shapes of the networks in `mobilenet.py` at
    384x640, two cores).
    """
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), *padding, (0, 0)))
    height, width = (
        (size - k) // stride + 1
        for size, k, stride in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)
    )
    total = jnp.zeros((), jnp.float32)
    for row in range(kernel.shape[0]):
        rows = padded[:, row : row + strides[0] * (height - 1) + 1 : strides[0]]
        for column in range(kernel.shape[1]):
            shifted = rows[:, :, column : column + strides[1] * (width - 1) + 1 : strides[1]]
            total = total + shifted * kernel[row, column, 0].astype(jnp.float32)
    return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradients(
    xlas: Callable[[Array, Array], Array],
    gradients: Callable[..., tuple[Array, Array]],
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c d"],
) -> Float[Array, "b h2 w2 d"]:
    """XLA's convolution; `gradients(xlas, x, kernel, out_grad)` are those of maps and kernel."""
    return xlas(x, kernel)


def _save_inputs(xlas, _, x, kernel):
    return xlas(x, kernel), (x, kernel)


def _call(xlas, gradients, saved, out_grad):
    return gradients(xlas, *saved, out_grad)


_with_gradients.defvjp(_save_inputs, _call)


def _by_winograd(xlas, x, kernel, out_grad):
    """XLA's; that of the kernel is `winograd.py`'s where it pays."""
    x_grad, kernel_grad = jax.vjp(xlas, x, kernel)[1](out_grad)
    if winograd.pays(x.shape, kernel.shape):
        kernel_grad = winograd.kernel_gradient_3x3(x, out_grad).astype(kernel.dtype)
    return x_grad, kernel_grad


def _of_halving(_, x, kernel, out_grad):
    """Dense convolutions, and products of what the kernel saw."""
    return _by_phases(out_grad, kernel), _by_taps(x, out_grad).astype(kernel.dtype)


def _halves(
    size: tuple[int, int], kernel_size: tuple[int, int], strides: tuple[int, int], padding: Any
) -> bool:
    """Whether it is a 3x3 convolution of stride 2 that halves even sides, padded evenly."""
    even = not any(side % 2 for side in size)
    padded = all(tuple(p) == (1, 1) for p in padding)
    return even and padded and kernel_size == (3, 3) and tuple(strides) == (2, 2)


def _by_phases(
    out_grad: Float[Array, "b h w d"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h2 w2 c"]:
    """The gradient of maps that a 3x3 convolution halved.

    A pixel with even coordinates was seen by the middle of the kernel alone, others by both sides
    of it: four dense convolutions, side by side, where XLA puts zeros between `out_grad`.
    """
    taps = ((1,), (2, 0))  # of the kernel, onto even and odd rows or columns

    def phase(rows, columns):
        seen = kernel[jnp.array(rows)][:, jnp.array(columns)]
        return jax.lax.conv_general_dilated(
            out_grad,
            seen,
            (1, 1),
            [(0, len(rows) - 1), (0, len(columns) - 1)],
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
        )

    phases = jnp.stack([jnp.stack([phase(r, c) for c in taps], 3) for r in taps], 2)
    b, height, width, _ = out_grad.shape
    return phases.reshape(b, 2 * height, 2 * width, -1)


def _by_taps(
    x: Float[Array, "b h w c"], out_grad: Float[Array, "b h2 w2 d"]
) -> Float[Array, "3 3 c d"]:
    """The gradient of a 3x3 kernel that halved maps: a matrix product for each of its taps."""
    _, height, width, channels = out_grad.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out_grad = out_grad.reshape(-1, channels)

    def tap(row, column):
        seen = padded[:, row : row + 2 * height : 2, column : column + 2 * width : 2]
        return jnp.einsum(
            "pc,pd->cd",
            seen.reshape(len(out_grad), -1),
            out_grad,
            preferred_element_type=jnp.float32,
        )

    return jnp.stack([jnp.stack([tap(row, column) for column in range(3)]) for row in range(3)])
