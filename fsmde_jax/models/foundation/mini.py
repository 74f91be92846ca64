"""A small convolutional encoder and decoder for relative depth: what the shipped teacher is.

A DPT's finest map has a quarter of the image's size, and on images of 96x160 that blurs every edge.
This one reads and writes blocks of 2x2 pixels: no pixel is lost on the way in, and edges come out
sharp.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fsmde_jax.models.foundation.dpt import DPTOutput
from fsmde_jax.models.layers.resize import resize_bilinear

_kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_LOG_RANGE = (-9.0, 5.0)  # of the prediction: more than any depth needs


@dataclasses.dataclass(frozen=True)
class MiniConfig:
    """Sizes.

    Args:
        image_size: (height, width) in pixels that it is trained on.
        encoder_channels: of the maps at strides 2, 4, 8, ...
        encoder_blocks: residual blocks that make each map but the first.
        decoder_channels: on the way back, coarsest first, to stride 2.
        num_groups: groups of every group norm.
    """

    image_size: tuple[int, int] = (96, 160)
    encoder_channels: tuple[int, ...] = (32, 64, 96, 160, 256)
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    decoder_channels: tuple[int, ...] = (128, 96, 64, 32)
    num_groups: int = 8

    def __post_init__(self):
        for name in ("encoder_blocks", "decoder_channels"):
            if len(getattr(self, name)) != len(self.encoder_channels) - 1:
                raise ValueError(
                    f"{name} must be one less than encoder_channels: "
                    f"{getattr(self, name)}, {self.encoder_channels}"
                )

    @property
    def patch_size(self) -> int:
        """What the sides of an image must be multiples of."""
        return 2 ** len(self.encoder_channels)

    @property
    def predicts_metres(self) -> bool:
        """Never: relative inverse depth."""
        return False

    @property
    def feature_channels(self) -> int:
        """Channels of `DPTOutput.features`."""
        return sum(self.decoder_channels[-2:])

    def build(self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> "Mini":
        """A fresh model."""
        return Mini(self, rngs=rngs, dtype=dtype)


class ConvGroupNorm(nnx.Module):
    """Convolution without bias, then group norm (arXiv 1803.08494)."""

    def __init__(self, channels_in, channels_out, kernel, stride, num_groups, **kwargs):
        self.conv = nnx.Conv(
            channels_in,
            channels_out,
            (kernel, kernel),
            stride,
            padding=((kernel // 2, kernel // 2),) * 2,
            use_bias=False,
            kernel_init=_kaiming,
            **kwargs,
        )
        self.norm = nnx.GroupNorm(channels_out, num_groups=num_groups, **kwargs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Convolves and normalises."""
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Residual block of two 3x3 convolutions; of stride 2 it halves both sides."""

    def __init__(self, channels_in, channels_out, stride, **kwargs):
        self.conv1 = ConvGroupNorm(channels_in, channels_out, 3, stride, **kwargs)
        self.conv2 = ConvGroupNorm(channels_out, channels_out, 3, 1, **kwargs)
        self.shortcut = nnx.data(None)
        if stride > 1:
            self.shortcut = ConvGroupNorm(channels_in, channels_out, 1, stride, **kwargs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """The residual sum after its ReLU."""
        kept = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))) + kept)


class Mini(nnx.Module):
    """Relative inverse depth from one image."""

    def __init__(self, config: MiniConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config, self.dtype = config, dtype
        kwargs = dict(num_groups=config.num_groups, rngs=rngs, dtype=dtype)
        first, *others = config.encoder_channels
        self.stem = ConvGroupNorm(12, first, 3, 1, **kwargs)
        self.stages = nnx.List()
        channels = first
        for out, count in zip(others, config.encoder_blocks, strict=True):
            first_block = Block(channels, out, 2, **kwargs)
            others_too = [Block(out, out, 1, **kwargs) for _ in range(count - 1)]
            self.stages.append(nnx.Sequential(first_block, *others_too))
            channels = out
        self.decoder = nnx.List()
        for skip, out in zip(config.encoder_channels[-2::-1], config.decoder_channels, strict=True):
            self.decoder.append(ConvGroupNorm(channels + skip, out, 3, 1, **kwargs))
            channels = out
        self.out = nnx.Conv(channels, 4, (3, 3), rngs=rngs, dtype=dtype)

    def __call__(self, image: Float[Array, "b h w 3"]) -> DPTOutput:
        """Predicts from a normalised image whose sides are multiples of the patch size."""
        x = _into_blocks(image).astype(self.dtype)
        maps = [jax.nn.relu(self.stem(x))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        decoded = [maps[-1]]
        for layer, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = resize_bilinear(decoded[-1], skip.shape[1:3])
            decoded.append(jax.nn.relu(layer(jnp.concatenate([x, skip], axis=-1))))
        log_inverse = _out_of_blocks(self.out(decoded[-1]).astype(jnp.float32))[..., 0]
        coarser = resize_bilinear(decoded[-2], decoded[-1].shape[1:3])
        features = jnp.concatenate([coarser, decoded[-1]], axis=-1)
        return DPTOutput(jnp.exp(jnp.clip(log_inverse, *_LOG_RANGE)), features, maps[-1])


def _into_blocks(image: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """Every block of 2x2 pixels becomes one pixel of four times the channels."""
    b, h, w, c = image.shape
    blocks = image.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(b, h // 2, w // 2, 4 * c)


def _out_of_blocks(blocks: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
    """The inverse of `_into_blocks`."""
    b, h, w, d = blocks.shape
    pixels = blocks.reshape(b, h, w, 2, 2, d // 4).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(b, 2 * h, 2 * w, d // 4)
