"""A convolution with its batch norm, which all encoders are made of; depthwise convolution."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

_kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# jax counts all channels as what one channel's kernel feeds; what it reads is counted right.
_kaiming_depthwise = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class ConvNorm(nnx.Module):
    """Convolution without bias, then batch norm.

    Args:
        channels_in, channels_out, kernel, stride: of the convolution.
        depthwise: every channel by itself.
        padding: None, or "SAME", which is TensorFlow's: with stride 2 it pads other sides.
        epsilon: of the batch norm.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        padding: str | None = None,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        pad = (kernel // 2, kernel // 2)
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            (kernel, kernel),
            strides=stride,
            padding=padding or (pad, pad),
            feature_group_count=channels_in if depthwise else 1,
            conv_general_dilated=depthwise_conv if depthwise else jax.lax.conv_general_dilated,
            use_bias=False,
            kernel_init=_kaiming_depthwise if depthwise else _kaiming,
            dtype=dtype,
            rngs=rngs,
        )
        # Statistics stay float32 whatever the convolutions compute in. flax keeps the biased
        # running variance, torch the unbiased: n / (n - 1) apart, n = pixels of the batch.
        self.norm = nnx.BatchNorm(channels_out, momentum=0.9, epsilon=epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b 1 1 1"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Convolves and normalises; `mask` chooses the images that count in the statistics."""
        return self.norm(self.conv(x), mask=mask)


def depthwise_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k 1 c"],
    strides: tuple[int, int],
    padding: Any,
    **options: Any,
) -> Float[Array, "b h2 w2 c"]:
    """`lax.conv_general_dilated` of as many groups as channels, otherwise computed on CPUs.

    XLA's own takes 3 to 18 times as long there, its gradient 2.5 to 14 times (six images, eight
    shapes of the networks in `mobilenet.py` at 384x640, two cores). Accelerators and the export
    to ONNX, whose runtime is fast at it, keep the convolution.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_sum_of_shifted, strides=strides, padding=padding),
        default=functools.partial(
            jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
        ),
    )


def _sum_of_shifted(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k 1 c"],
    strides: tuple[int, int],
    padding: Any,
) -> Float[Array, "b h2 w2 c"]:
    """Slices of the padded maps, each times a weight a channel; one loop after XLA's fusion."""
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
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
