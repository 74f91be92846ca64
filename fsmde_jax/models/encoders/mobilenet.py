"""Encoders of inverted residuals: MobileNetV2 (arXiv 1801.04381) and EfficientNet-Lite0.

The latter is EfficientNet-B0 without squeeze-and-excitation and with ReLU6 for swish (Google's
tensorflow/tpu, models/official/efficientnet/lite). Weights of both were trained in TensorFlow:
strided convolutions of even sizes pad only behind ("SAME"), batch norm adds 1e-3 to the variance.
transformers' MobileNetV2 does so (`tf_padding`, `layer_norm_eps`), and so does the torch code
that the weights of EfficientNet-Lite0 are published for (PyPI `efficientnet_lite_pytorch` 0.1.0).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fsmde_jax.models.layers.conv_norm import ConvNorm


class Stage(NamedTuple):
    """Blocks of the same width, of which the first has the stride."""

    channels: int
    depth: int
    stride: int
    kernel: int = 3
    expansion: int = 6


@dataclasses.dataclass(frozen=True)
class MobileNetConfig:
    """Stages behind a stem of 32 channels; the statistics as in `ResNetConfig`."""

    stages: tuple[Stage, ...]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    stem_channels: int = 32


MOBILENETV2 = MobileNetConfig(
    stages=(
        Stage(16, 1, 1, expansion=1),
        Stage(24, 2, 2),
        Stage(32, 3, 2),
        Stage(64, 4, 2),
        Stage(96, 3, 1),
        Stage(160, 3, 2),
        Stage(320, 1, 1),
    ),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)

EFFICIENTNET_LITE0 = MobileNetConfig(
    stages=(
        Stage(16, 1, 1, expansion=1),
        Stage(24, 2, 2),
        Stage(40, 2, 2, kernel=5),
        Stage(80, 3, 2),
        Stage(112, 3, 1, kernel=5),
        Stage(192, 4, 2, kernel=5),
        Stage(320, 1, 1),
    ),
    image_mean=(127 / 255, 127 / 255, 127 / 255),
    image_std=(128 / 255, 128 / 255, 128 / 255),
)


class InvertedResidual(nnx.Module):
    """Widens (1x1), filters each channel by itself, narrows (1x1); adds its input if it can."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int,
        stride: int,
        expansion: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        wide = expansion * channels_in
        options = dict(padding="SAME", epsilon=1e-3, rngs=rngs, dtype=dtype)
        self.stride = stride
        self.adds = stride == 1 and channels_in == channels_out
        narrow = expansion == 1
        self.expand = None if narrow else ConvNorm(channels_in, wide, kernel=1, **options)
        self.depthwise = ConvNorm(
            wide, wide, kernel=kernel, stride=stride, depthwise=True, **options
        )
        self.project = ConvNorm(wide, channels_out, kernel=1, **options)

    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b 1 1 1"] | None = None
    ) -> Float[Array, "b h2 w2 c2"]:
        """No activation behind the narrow end."""
        wide = x if self.expand is None else jax.nn.relu6(self.expand(x, mask))
        narrow = self.project(jax.nn.relu6(self.depthwise(wide, mask)), mask)
        return x + narrow if self.adds else narrow


class MobileNet(nnx.Module):
    """Encoder; `train()` and `eval()` choose between batch and running statistics."""

    def __init__(self, config: MobileNetConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        self.dtype = dtype
        channels = config.stem_channels
        self.stem = ConvNorm(
            3, channels, kernel=3, stride=2, padding="SAME", epsilon=1e-3, rngs=rngs, dtype=dtype
        )
        self.blocks = nnx.List()
        for stage in config.stages:
            for stride in (stage.stride, *(1,) * (stage.depth - 1)):
                self.blocks.append(
                    InvertedResidual(
                        channels,
                        stage.channels,
                        kernel=stage.kernel,
                        stride=stride,
                        expansion=stage.expansion,
                        rngs=rngs,
                        dtype=dtype,
                    )
                )
                channels = stage.channels

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the features at strides 2, 4, 8, 16 and 32."""
        stages = self.config.stages
        ends = [i for i, stage in enumerate(stages[1:]) if stage.stride == 2]
        return tuple(stages[end].channels for end in (*ends, -1))

    def __call__(
        self, image: Float[Array, "b h w 3"], mask: Bool[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """What the last block of strides 2, 4, 8, 16 and 32 gives; `mask` as in `ResNet`."""
        mask = None if mask is None else mask[:, None, None, None]
        x = jax.nn.relu6(self.stem(image, mask))
        features = []
        for block in self.blocks:
            if block.stride == 2:
                features.append(x)
            x = block(x, mask)
        return [feature.astype(self.dtype) for feature in (*features, x)]


def mobilenetv2(*, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> MobileNet:
    """1.8 million parameters."""
    return MobileNet(MOBILENETV2, rngs=rngs, dtype=dtype)


def efficientnet_lite0(*, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> MobileNet:
    """3.0 million parameters."""
    return MobileNet(EFFICIENTNET_LITE0, rngs=rngs, dtype=dtype)
