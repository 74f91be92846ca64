"""BiT, a ResNet with group norm and standardised kernels (arXiv 1912.11370): DPT-Hybrid's stem.

The bottleneck form with TensorFlow's "SAME" padding, as transformers' `BitBackbone` has it there.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fsmde_jax.models.layers.pooling import max_pool_3x3


@dataclasses.dataclass(frozen=True)
class BiTConfig:
    """Sizes of a BiT; the defaults are those of DPT-Hybrid (a ResNet-50 without its last stage).

    Args:
        embedding_size: channels of the first convolution.
        hidden_sizes: channels of each stage; strides are 4, 8, 16, ...
        depths: blocks of each stage.
        num_groups: groups of every group norm.
    """

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[int, ...] = (3, 4, 9)
    num_groups: int = 32

    @property
    def stride(self) -> int:
        """Image pixels to a pixel of the last stage."""
        return 2 ** (len(self.depths) + 1)


class StandardisedConv(nnx.Module):
    """Convolution whose kernels have mean 0 and variance 1 per output channel; no bias."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        stride: int = 1,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        shape = (kernel_size, kernel_size, channels_in, channels_out)
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Standardises in float32, then convolves."""
        kernel = self.kernel[...]
        centred = kernel - kernel.mean(axis=(0, 1, 2))
        kernel = centred * jax.lax.rsqrt((centred**2).mean(axis=(0, 1, 2)) + 1e-8)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions on a shortcut, each followed by group norm."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        num_groups: int,
        *,
        is_first: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        kwargs = dict(dtype=dtype, rngs=rngs)
        middle = _multiple_of_eight(channels_out / 4)
        self.conv1 = StandardisedConv(channels_in, middle, 1, **kwargs)
        self.norm1 = _group_norm(middle, num_groups, **kwargs)
        self.conv2 = StandardisedConv(middle, middle, 3, stride, **kwargs)
        self.norm2 = _group_norm(middle, num_groups, **kwargs)
        self.conv3 = StandardisedConv(middle, channels_out, 1, **kwargs)
        self.norm3 = _group_norm(channels_out, num_groups, **kwargs)
        self.is_first = is_first
        if is_first:
            self.shortcut_conv = StandardisedConv(channels_in, channels_out, 1, stride, **kwargs)
            self.shortcut_norm = _group_norm(channels_out, num_groups, **kwargs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Adds the three convolutions' output to the shortcut."""
        shortcut = self.shortcut_norm(self.shortcut_conv(x)) if self.is_first else x
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = jax.nn.relu(self.norm2(self.conv2(x)))
        return jax.nn.relu(self.norm3(self.conv3(x)) + shortcut)


class BiT(nnx.Module):
    """Feature maps of every stage, finest first."""

    def __init__(self, config: BiTConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        kwargs = dict(dtype=dtype, rngs=rngs)
        groups, channels = config.num_groups, config.embedding_size
        self.conv = StandardisedConv(3, channels, 7, 2, **kwargs)
        self.norm = _group_norm(channels, groups, **kwargs)
        self.stages = nnx.List()
        for index, (size, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            blocks = nnx.List()
            for block in range(depth):
                stride = 2 if index > 0 and block == 0 else 1
                blocks.append(
                    Bottleneck(channels, size, stride, groups, is_first=block == 0, **kwargs)
                )
                channels = size
            self.stages.append(blocks)

    def __call__(self, image: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """The stages' outputs."""
        x = jax.nn.relu(self.norm(self.conv(image)))
        # TensorFlow's "SAME": even sizes are padded behind only.
        x = max_pool_3x3(x, *((size % 2, 1) for size in x.shape[1:3]))
        maps = []
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
            maps.append(x)
        return maps


def _group_norm(channels: int, groups: int, **kwargs) -> nnx.GroupNorm:
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=1e-5, use_fast_variance=False, **kwargs
    )


def _multiple_of_eight(channels: float) -> int:
    """The nearest multiple of eight that is at least 8 and nine tenths of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
