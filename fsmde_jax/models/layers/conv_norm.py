"""A convolution with its batch norm, which all encoders are made of."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fsmde_jax.models.layers.batch_norm import BatchNorm
from fsmde_jax.models.layers.convolution import convolve

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
            conv_general_dilated=convolve,
            use_bias=False,
            kernel_init=_kaiming_depthwise if depthwise else _kaiming,
            dtype=dtype,
            rngs=rngs,
        )
        # Statistics stay float32 whatever the convolutions compute in. flax keeps the biased
        # running variance, torch the unbiased: n / (n - 1) apart, n = pixels of the batch.
        self.norm = BatchNorm(channels_out, momentum=0.9, epsilon=epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b 1 1 1"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Convolves and normalises; `mask` chooses the images that count in the statistics."""
        return self.norm(self.conv(x), mask)
