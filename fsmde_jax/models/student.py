"""The student: a convolutional encoder, a light decoder and the binning head; metres out.

The network works for a canonical camera: bin centers are multiplied by
`focal_px / canonical_focal_px`, so narrow and wide cameras of one rig share the weights.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from fsmde_jax.errors import UserError
from fsmde_jax.models.binned_depth import DEPTH
from fsmde_jax.models.bins import BinningHead, Bins
from fsmde_jax.models.encoders import mobilenet, resnet
from fsmde_jax.models.layers.batch_norm import BatchNorm
from fsmde_jax.models.layers.convolution import convolve
from fsmde_jax.models.layers.resize import resize_bilinear

# All give features at strides 2, 4, 8, 16 and 32, and know the images of their weights.
ENCODERS = {
    "resnet_tiny": resnet.resnet_tiny,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "mobilenetv2": mobilenet.mobilenetv2,
    "efficientnet_lite0": mobilenet.efficientnet_lite0,
}


class StudentOutput(NamedTuple):
    """What the losses and users read."""

    depth_m: Float[Array, "b n h w"]  # z-depth at the input's resolution
    confidence: Float[Array, "b n h w"]  # 0 to 1, see `Bins`
    bins: Bins  # at the decoder's resolution
    features: Float[Array, "b n h2 w2 c"]  # the decoder's last map, for relations between views


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """Encoder, of `ENCODERS`, and the decoder's channels at strides 16, 8, 4 and so on.

    The head works at the stride where the decoder ends.
    """

    encoder: str
    decoder_channels: tuple[int, ...]

    @classmethod
    def tiny(cls) -> "StudentConfig":
        """For the demo and tests."""
        return cls("resnet_tiny", (64, 48, 32))

    @classmethod
    def small(cls) -> "StudentConfig":
        """The tiny one with a decoder that goes on to stride 2: finer edges, twice the time."""
        return cls("resnet_tiny", (64, 48, 32, 24))

    @classmethod
    def resnet18(cls) -> "StudentConfig":
        """The light student of the paper's setting: ResNet-18."""
        return cls("resnet18", (256, 128, 64, 64))

    @classmethod
    def resnet34(cls) -> "StudentConfig":
        """The encoder the surround-depth literature uses."""
        return cls("resnet34", (256, 128, 64, 64))

    @classmethod
    def mobilenetv2(cls) -> "StudentConfig":
        """The lightest encoder with ImageNet weights of the hub."""
        return cls("mobilenetv2", (96, 48, 32))

    @classmethod
    def efficientnet_lite0(cls) -> "StudentConfig":
        """About as light; its ImageNet weights come from PyPI."""
        return cls("efficientnet_lite0", (96, 48, 32))

    @classmethod
    def named(cls, size: str) -> "StudentConfig":
        """The constructor called `size`."""
        sizes = {
            "tiny": cls.tiny,
            "small": cls.small,
            "resnet18": cls.resnet18,
            "resnet34": cls.resnet34,
            "mobilenetv2": cls.mobilenetv2,
            "efficientnet_lite0": cls.efficientnet_lite0,
        }
        if size not in sizes:
            raise UserError(f"config.student.size is {size!r}; use one of {sorted(sizes)}")
        return sizes[size]()


class DecoderBlock(nnx.Module):
    """Upsample to the skip's size, concatenate, 3x3 convolution, batch norm, ReLU."""

    def __init__(
        self, channels: int, skip_channels: int, out_channels: int, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        self.conv = nnx.Conv(
            channels + skip_channels,
            out_channels,
            (3, 3),
            use_bias=False,
            conv_general_dilated=convolve,
            rngs=rngs,
            dtype=dtype,
        )
        self.norm = BatchNorm(out_channels, momentum=0.9, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], skip: Float[Array, "b h2 w2 d"], mask: Bool[Array, "b"]
    ) -> Float[Array, "b h2 w2 e"]:
        """Features at the skip's resolution."""
        x = jnp.concatenate([resize_bilinear(x, skip.shape[1:3]), skip], axis=-1)
        return nnx.relu(self.norm(self.conv(x), mask[:, None, None, None]))


class Student(nnx.Module):
    """Images of a rig to metric depth.

    Args:
      config: sizes.
      num_bins, min_depth_m, max_depth_m, centers_of, centers_kind, mean_of: see `BinningHead`.
      canonical_focal_px: focal length, at the input's resolution, for which ratio 1 holds.
    """

    def __init__(
        self,
        config: StudentConfig,
        *,
        num_bins: int,
        min_depth_m: float,
        max_depth_m: float,
        canonical_focal_px: float,
        centers_of: str,
        centers_kind: str,
        mean_of: str = DEPTH,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.canonical_focal_px = canonical_focal_px
        self.dtype = dtype
        self.encoder = ENCODERS[config.encoder](rngs=rngs, dtype=dtype)
        *skips, channels = self.encoder.channels
        image_channels = channels
        self.decoder = nnx.List()
        for skip, out in zip(reversed(skips), config.decoder_channels, strict=False):
            self.decoder.append(DecoderBlock(channels, skip, out, rngs, dtype))
            channels = out
        self.head = BinningHead(
            channels,
            image_channels,
            num_bins,
            min_depth_m=min_depth_m,
            max_depth_m=max_depth_m,
            centers_of=centers_of,
            centers_kind=centers_kind,
            mean_of=mean_of,
            rngs=rngs,
            dtype=dtype,
        )

    def __call__(
        self,
        image: UInt8[Array, "b n h w 3"],
        intrinsics: Float[Array, "b n 3 3"],
        camera_mask: Bool[Array, "b n"],
    ) -> StudentOutput:
        """Depth of each camera; `intrinsics` in pixels of `image`."""
        b, n, h, w, _ = image.shape
        mask = camera_mask.reshape(b * n)
        x = self.normalise(image).reshape(b * n, h, w, 3).astype(self.dtype)
        *skips, x = self.encoder(x, mask=mask)
        image_features = jnp.mean(x.astype(jnp.float32), axis=(1, 2)).reshape(b, n, -1)
        for block, skip in zip(self.decoder, reversed(skips), strict=False):
            x = block(x, skip, mask)
        features = x.reshape(b, n, *x.shape[1:])
        focal_ratio = intrinsics[..., 0, 0] / self.canonical_focal_px
        # Absent cameras have no focal length; 1 keeps their unused depth finite.
        focal_ratio = jnp.where(camera_mask, focal_ratio, 1.0)
        bins = self.head(features, image_features, focal_ratio, camera_mask)

        def enlarge(coarse: Float[Array, "b n h2 w2"]) -> Float[Array, "b n h w"]:
            maps = coarse.reshape(b * n, *coarse.shape[2:], 1)
            return resize_bilinear(maps, (h, w)).reshape(b, n, h, w)

        return StudentOutput(enlarge(bins.depth_m), enlarge(bins.confidence), bins, features)

    def normalise(self, image: UInt8[Array, "*s 3"]) -> Float[Array, "*s 3"]:
        """uint8 RGB as the encoder's pretrained weights know it."""
        mean, std = self.encoder.config.image_mean, self.encoder.config.image_std
        return (image.astype(jnp.float32) / 255.0 - jnp.array(mean)) / jnp.array(std)
