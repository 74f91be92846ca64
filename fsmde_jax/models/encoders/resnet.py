"""ResNet encoder of basic blocks (He et al., arXiv 1512.03385), features at five strides."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fsmde_jax.models.layers.conv_norm import ConvNorm
from fsmde_jax.models.layers.pooling import max_pool_3x3


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Channels of the stem and the four stages, and the stages' numbers of blocks.

    `image_mean` and `image_std` are of what pretrained weights were trained on, RGB from 0 to 1.
    """

    stem_channels: int
    stage_channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        stride: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        kwargs = dict(rngs=rngs, dtype=dtype)
        self.conv1 = ConvNorm(channels_in, channels_out, kernel=3, stride=stride, **kwargs)
        self.conv2 = ConvNorm(channels_out, channels_out, kernel=3, **kwargs)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = (
            None if same else ConvNorm(channels_in, channels_out, kernel=1, stride=stride, **kwargs)
        )

    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b 1 1 1"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """The residual sum after its ReLU."""
        residual = x if self.shortcut is None else self.shortcut(x, mask)
        x = self.conv2(jax.nn.relu(self.conv1(x, mask)), mask)
        return jax.nn.relu(x + residual)


class ResNet(nnx.Module):
    """Encoder; `train()` and `eval()` choose between batch and running statistics."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        kwargs = dict(rngs=rngs, dtype=dtype)
        self.config = config
        self.dtype = dtype
        self.stem = ConvNorm(3, config.stem_channels, kernel=7, stride=2, **kwargs)
        self.stages = nnx.List()
        channels_in = config.stem_channels
        for index, (channels, depth) in enumerate(
            zip(config.stage_channels, config.depths, strict=True)
        ):
            strides = (2 if index else 1, *(1,) * (depth - 1))
            blocks = nnx.List()
            for stride in strides:
                blocks.append(BasicBlock(channels_in, channels, stride=stride, **kwargs))
                channels_in = channels
            self.stages.append(blocks)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the features at strides 2, 4, 8, 16 and 32."""
        return (self.config.stem_channels, *self.config.stage_channels)

    def __call__(
        self, image: Float[Array, "b h w 3"], mask: Bool[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """Features at strides 2, 4, 8, 16 and 32.

        Args:
            image: normalised images.
            mask: images that count in the batch statistics (absent cameras do not); all if None.
        """
        mask = None if mask is None else mask[:, None, None, None]
        x = jax.nn.relu(self.stem(image, mask))
        features = [x]
        x = max_pool_3x3(x, (1, 1), (1, 1))
        for blocks in self.stages:
            for block in blocks:
                x = block(x, mask)
            features.append(x)
        return [feature.astype(self.dtype) for feature in features]


def resnet18(*, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> ResNet:
    """11.2 million parameters."""
    return ResNet(ResNetConfig(64, (64, 128, 256, 512), (2, 2, 2, 2)), rngs=rngs, dtype=dtype)


def resnet34(*, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> ResNet:
    """21.3 million parameters."""
    return ResNet(ResNetConfig(64, (64, 128, 256, 512), (3, 4, 6, 3)), rngs=rngs, dtype=dtype)


def resnet_tiny(*, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> ResNet:
    """The same design a quarter as wide, one block a stage, for the demo and tests."""
    return ResNet(ResNetConfig(16, (16, 32, 64, 128), (1, 1, 1, 1)), rngs=rngs, dtype=dtype)
