"""The parts of DPT between its backbone and its output: reassembly, fusion, depth head."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fsmde_jax.models.layers.convolution import convolve
from fsmde_jax.models.layers.resize import resize_bilinear

_conv = functools.partial(nnx.Conv, conv_general_dilated=convolve)
_kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_small = nnx.initializers.truncated_normal(0.02)
_pad1 = ((1, 1), (1, 1))  # explicit: with stride 2, "SAME" pads other sides than torch


class Upsample(nnx.Module):
    """Transposed convolution whose kernel is as large as its stride: no overlaps.

    Every input pixel yields its own block of outputs, so this is a matrix product and a reshape;
    the kernel [rows, columns, out, in] is not flipped.
    """

    def __init__(
        self, channels: int, factor: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        # Every output pixel sums over one input pixel: fan in and fan out are `channels`.
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0, 1))
        self.dtype = dtype
        self.kernel = nnx.Param(init(rngs.params(), (factor, factor, channels, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Enlarges by the factor in both directions."""
        b, height, width, c = x.shape
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        blocks = jnp.einsum("bhwi,uvoi->bhuwvo", x.astype(self.dtype), kernel)
        factor = kernel.shape[0]
        return blocks.reshape(b, height * factor, width * factor, c) + bias


def _resize_layer(channels: int, factor: float, **kwargs) -> nnx.Module | None:
    """Enlarges `factor` times, or shrinks 1 / factor times; None for 1."""
    if factor > 1:
        return Upsample(channels, int(factor), **kwargs)
    if factor == 1:
        return None
    stride = (round(1 / factor),) * 2
    return _conv(channels, channels, (3, 3), stride, padding=_pad1, kernel_init=_kaiming, **kwargs)


class Reassemble(nnx.Module):
    """Tokens of one layer to a feature map at `factor` times the patch grid's resolution."""

    def __init__(
        self,
        hidden_size: int,
        channels: int,
        factor: float,
        *,
        readout_type: str,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        d, kwargs = hidden_size, dict(dtype=dtype, rngs=rngs)
        self.readout_type = readout_type
        if self.readout_type == "project":
            self.readout = nnx.Linear(2 * d, d, kernel_init=_small, **kwargs)
        self.projection = _conv(d, channels, (1, 1), kernel_init=_kaiming, **kwargs)
        self.resize = _resize_layer(channels, factor, **kwargs)

    def __call__(
        self, tokens: Float[Array, "b t d"], grid: tuple[int, int]
    ) -> Float[Array, "b h w c"]:
        """Works the class token in, projects, resizes."""
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        if self.readout_type == "add":
            patches = patches + class_token
        elif self.readout_type == "project":
            both = jnp.concatenate([patches, jnp.broadcast_to(class_token, patches.shape)], axis=-1)
            patches = jax.nn.gelu(self.readout(both), approximate=False)
        x = self.projection(patches.reshape(patches.shape[0], *grid, -1))
        return x if self.resize is None else self.resize(x)


class ResidualUnit(nnx.Module):
    """Pre-activation residual unit of two 3x3 convolutions."""

    def __init__(
        self, channels: int, *, use_bias: bool, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        kwargs = dict(use_bias=use_bias, padding=_pad1, dtype=dtype, rngs=rngs)
        self.conv1 = _conv(channels, channels, (3, 3), kernel_init=_kaiming, **kwargs)
        self.conv2 = _conv(channels, channels, (3, 3), kernel_init=_kaiming, **kwargs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Adds the two convolutions' output to x."""
        return x + self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(x))))


class Fusion(nnx.Module):
    """Adds a finer map to the coarser fused one, refines, enlarges twice."""

    def __init__(
        self,
        channels: int,
        *,
        has_finer: bool,
        use_bias: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        kwargs = dict(dtype=dtype, rngs=rngs)
        # The coarsest stage has nothing to add, so it has no first unit (torch keeps an idle one).
        self.residual1 = ResidualUnit(channels, use_bias=use_bias, **kwargs) if has_finer else None
        self.residual2 = ResidualUnit(channels, use_bias=use_bias, **kwargs)
        self.projection = _conv(channels, channels, (1, 1), kernel_init=_kaiming, **kwargs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        finer: Float[Array, "b h2 w2 c"] | None,
        size: tuple[int, int] | None,
    ) -> Float[Array, "b h3 w3 c"]:
        """Fuses and enlarges to `size`, or twice; `finer` is resized where it differs from x."""
        if finer is not None:
            x = x + self.residual1(resize_bilinear(finer, x.shape[1:3]))
        x = self.residual2(x)
        size = size or (2 * x.shape[1], 2 * x.shape[2])
        # A 1x1 convolution and interpolation commute; before it there are fewer pixels.
        return resize_bilinear(self.projection(x), size, align_corners=True)


class DepthHead(nnx.Module):
    """Convolutions from the fused features to the prediction at a larger size.

    Args:
        channels: of the features.
        hidden: channels before the last convolution.
        add_projection: begins with one more convolution.
        max_depth_m: None ends with a ReLU (relative inverse depth), a number with a sigmoid
            times it (metres).
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        add_projection: bool,
        max_depth_m: float | None,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        c, kwargs = channels, dict(dtype=dtype, rngs=rngs)
        conv3x3 = functools.partial(_conv, kernel_size=(3, 3), padding=_pad1, **kwargs)
        self.max_depth_m = max_depth_m
        self.projection = conv3x3(c, c, kernel_init=_kaiming) if add_projection else None
        self.conv1 = conv3x3(c, c // 2, kernel_init=_kaiming)
        self.conv2 = conv3x3(c // 2, hidden, kernel_init=_kaiming)
        # Small weights under a positive bias: the last ReLU starts alive everywhere.
        ones = nnx.initializers.ones
        self.conv3 = _conv(hidden, 1, (1, 1), kernel_init=_small, bias_init=ones, **kwargs)

    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int]
    ) -> Float[Array, "b h2 w2"]:
        """The prediction at `size` (height, width)."""
        if self.projection is not None:
            x = jax.nn.relu(self.projection(x))
        x = resize_bilinear(self.conv1(x), size, align_corners=True)
        x = self.conv3(jax.nn.relu(self.conv2(x)))[..., 0].astype(jnp.float32)
        return jax.nn.relu(x) if self.max_depth_m is None else jax.nn.sigmoid(x) * self.max_depth_m
