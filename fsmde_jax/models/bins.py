"""The depth binning head, one design for teacher and student.

Probabilities over bins ordered near to far say *where in the order of depths* a pixel lies and
nothing of metres; bin centers hold the metres. Depth is their product (hybrid regression of
AdaBins, arXiv 2011.14141), or its logarithm is that of log centers, or its inverse that of inverse
centers. Centers are predicted for a canonical camera and multiplied by
`focal_px / canonical_focal_px`, so that one network is metric on cameras of any focal length.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fsmde_jax.models.binned_depth import (
    DEPTH,
    MEANS,
    PixelWeights,
    depth_of_bins,
    expected_depth,
)
from fsmde_jax.models.layers.convolution import convolve
from fsmde_jax.precision import full_precision


class Bins(NamedTuple):
    """What the head says of each pixel and each camera."""

    logits: Float[Array, "b n h w k"]  # of probabilities over bins, near to far
    centers_m: Float[Array, "b n k"]  # strictly increasing
    depth_m: Float[Array, "b n h w"]  # z-depth

    @property
    def confidence(self) -> Float[Array, "b n h w"]:
        """exp(-s), s the standard deviation of log depth over the bins: 1 is certain.

        .9 means that depth is known to about a tenth, .5 to a factor of two.
        """
        probabilities = jax.nn.softmax(self.logits)
        log_centers = jnp.log(self.centers_m)
        mean = expected_depth(probabilities, log_centers)
        # The mean of squares less the square of the mean would lose all digits where bins are sure.
        distance = log_centers[:, :, None, None] - mean[..., None]
        spread = jnp.sum(probabilities * distance**2, axis=-1)
        return jnp.exp(-jnp.sqrt(jnp.maximum(spread, 1e-12)))


def soft_clip(
    value: Float[Array, "*s"], low: float, high: float, sharpness: float = 4.0
) -> Float[Array, "*s"]:
    """Strictly increasing map into (low, high) that is the identity away from the limits."""
    above_low = jax.nn.softplus(sharpness * (value - low)) / sharpness
    above_high = jax.nn.softplus(sharpness * (value - high)) / sharpness
    return low + above_low - above_high


class BinningHead(nnx.Module):
    """Bin probabilities from pixel features, bin centers from image features.

    Args:
      pixel_channels: channels of the feature map the probabilities are read from.
      image_channels: channels of the image feature the centers are read from.
      centers_of: "image", or "rig" for one set from the features pooled over the cameras.
      centers_kind: "widths" (AdaBins: a partition of the depth range) or "unbounded"
        (as in ZoeDepth, arXiv 2302.12288: free increments).
      mean_of: "depth", "log_depth" or "inverse_depth": what the probabilities weigh.
      relative_bins: whether pixels also come with probabilities of a relative prediction, over as
        many bins (conditioning on relative depth, as ZoeDepth does).
    """

    def __init__(
        self,
        pixel_channels: int,
        image_channels: int,
        num_bins: int,
        *,
        min_depth_m: float,
        max_depth_m: float,
        centers_of: str = "image",
        centers_kind: str = "widths",
        mean_of: str = DEPTH,
        relative_bins: bool = False,
        hidden: int = 128,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        if centers_of not in ("image", "rig"):
            raise ValueError(f'bins.centers_of is {centers_of!r}; use "image" or "rig"')
        if centers_kind not in ("widths", "unbounded"):
            raise ValueError(f'bins.centers_kind is {centers_kind!r}; use "widths" or "unbounded"')
        if mean_of not in MEANS:
            raise ValueError(f"student.mean_of is {mean_of!r}; use one of {MEANS}")
        self.log_range = (math.log(min_depth_m), math.log(max_depth_m))
        self.centers_of, self.centers_kind, self.mean_of = centers_of, centers_kind, mean_of
        # The features of a foundation model come in any size; softmax and GELU need a known one.
        self.pixel_norm = nnx.LayerNorm(pixel_channels, rngs=rngs, dtype=dtype)
        self.image_norm = nnx.LayerNorm(image_channels, rngs=rngs)
        self.classifier = nnx.Conv(
            pixel_channels,
            num_bins,
            (1, 1),
            conv_general_dilated=convolve,
            rngs=rngs,
            dtype=dtype,
        )
        self.relative = nnx.data(None)
        if relative_bins:
            options = {"use_bias": False, "kernel_init": _believe, "rngs": rngs, "dtype": dtype}
            self.relative = nnx.Linear(num_bins, num_bins, **options)
        self.hidden = nnx.Linear(image_channels, hidden, rngs=rngs)
        # Zeros: a fresh head starts from bins evenly spaced in log depth.
        zeros = nnx.initializers.zeros_init()
        self.widths = nnx.Linear(hidden, num_bins + 1, kernel_init=zeros, rngs=rngs)

    @full_precision
    def __call__(
        self,
        pixel_features: Float[Array, "b n h w c"],
        image_features: Float[Array, "b n d"],
        focal_ratio: Float[Array, "b n"],
        camera_mask: Bool[Array, "b n"],
        relative: Float[Array, "b n h w k"] | None = None,
    ) -> Bins:
        """Bins of each camera; `focal_ratio` is focal_px / canonical_focal_px.

        `relative` is given where the head was made with `relative_bins`.
        """
        logits = self.classifier(self.pixel_norm(pixel_features)).astype(jnp.float32)
        if self.relative is not None:
            logits += self.relative(relative).astype(jnp.float32)
        if self.centers_of == "rig":
            image_features = _mean_of_cameras(image_features, camera_mask)
        hidden = self.hidden(self.image_norm(image_features.astype(jnp.float32)))
        raw = self.widths(nnx.gelu(hidden))
        log_centers = self._log_canonical_centers(raw) + jnp.log(focal_ratio)[..., None]
        centers_m = jnp.exp(soft_clip(log_centers, *self.log_range))
        if self.relative is not None or self.classifier.dtype != jnp.float32:
            probabilities = jax.nn.softmax(logits)
            return Bins(logits, centers_m, expected_depth(probabilities, centers_m, self.mean_of))
        weights = PixelWeights(
            self.pixel_norm.scale[...],
            self.pixel_norm.bias[...],
            self.classifier.kernel[...][0, 0],
            self.classifier.bias[...],
        )
        depth_m = depth_of_bins(logits, centers_m, pixel_features, weights, self.mean_of)
        return Bins(logits, centers_m, depth_m)

    def _log_canonical_centers(self, raw: Float[Array, "b n k1"]) -> Float[Array, "b n k"]:
        low, high = self.log_range
        num_bins = raw.shape[-1] - 1
        if self.centers_kind == "widths":
            # num_bins + 1 gaps split the range, so that centers are inside it.
            gaps = jax.nn.softmax(raw) * (high - low)
            return low + jnp.cumsum(gaps, axis=-1)[..., :-1]
        even = (high - low) / (num_bins + 1)
        # softplus(0) = log 2: a zero output gives the even spacing.
        gaps = even * jax.nn.softplus(raw[..., 1:]) / jnp.log(2.0)
        return low + raw[..., :1] + jnp.cumsum(gaps, axis=-1)


def _believe(_, shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "k k"]:
    """A kernel with which a fresh head says what the relative prediction says."""
    return 8.0 * jnp.eye(*shape, dtype=dtype)


def _mean_of_cameras(
    features: Float[Array, "b n d"], camera_mask: Bool[Array, "b n"]
) -> Float[Array, "b n d"]:
    weight = camera_mask[..., None].astype(features.dtype)
    mean = jnp.sum(features * weight, 1) / jnp.maximum(jnp.sum(weight, 1), 1.0)
    return jnp.broadcast_to(mean[:, None], features.shape)
