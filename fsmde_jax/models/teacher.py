"""The teacher: a frozen foundation model (DPT) with a way to bin probabilities.

`head`: the binning head, trained on LiDAR while the foundation model stays frozen.
`soft`: no training; the relative prediction, normalised per image, is assigned softly to fixed
bins. MiDaS-like models predict inverse depth, so bins run from large to small values: near to far.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from fsmde_jax.losses.depth import normalise_affine
from fsmde_jax.models.bins import BinningHead
from fsmde_jax.models.dpt import DPT, DPTConfig, normalise
from fsmde_jax.models.resize import resize_bilinear


class TeacherOutput(NamedTuple):
    """What distillation reads; no scale in it except in `depth_m`, which evaluation rescales."""

    logits: Float[Array, "b n h w k"]
    features: Float[Array, "b n h w c"]
    depth_m: Float[Array, "b n h2 w2"]


class Teacher(nnx.Module):
    """DPT and a binning.

    Args:
      config: the foundation model.
      binning: "head" or "soft".
      soft_range, soft_temperature: see `soft_bin_logits`.
      head_options: arguments of `BinningHead`, used by "head".
    """

    def __init__(
        self,
        config: DPTConfig,
        *,
        binning: str,
        num_bins: int,
        canonical_focal_px: float,
        soft_range: tuple[float, float],
        soft_temperature: float,
        head_options: dict,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.num_bins, self.canonical_focal_px = num_bins, canonical_focal_px
        self.soft_range, self.soft_temperature = tuple(soft_range), soft_temperature
        self.foundation = DPT(config, rngs=rngs, dtype=dtype)
        channels = config.fusion_hidden_size
        head_options = head_options | {"rngs": rngs, "dtype": dtype}
        self.head = nnx.data(
            BinningHead(channels, channels, num_bins, **head_options) if binning == "head" else None
        )

    def __call__(
        self,
        image: UInt8[Array, "b n h w 3"],
        intrinsics: Float[Array, "b n 3 3"],
        camera_mask: Bool[Array, "b n"],
    ) -> TeacherOutput:
        """Bin logits, near to far, at half the input's resolution."""
        b, n, h, w, _ = image.shape
        out = self.foundation(normalise(image.reshape(b * n, h, w, 3)))
        features = out.features.reshape(b, n, *out.features.shape[1:])
        if self.head is None:
            logits = self._soft_logits(out.inverse_depth, features.shape[2:4])
            logits = logits.reshape(b, n, *logits.shape[1:])
            depth = relative_depth(out.inverse_depth)
            return TeacherOutput(logits, features, depth.reshape(b, n, *depth.shape[1:]))
        ratio = jnp.where(camera_mask, intrinsics[..., 0, 0] / self.canonical_focal_px, 1.0)
        image_features = jnp.mean(features.astype(jnp.float32), axis=(2, 3))
        bins = self.head(features, image_features, ratio, camera_mask)
        return TeacherOutput(bins.logits, features, bins.depth_m)

    def _soft_logits(
        self, inverse_depth: Float[Array, "b h w"], size: tuple[int, int]
    ) -> Float[Array, "b h2 w2 k"]:
        inverse_depth = resize_bilinear(inverse_depth[..., None], size)[..., 0]
        return soft_bin_logits(inverse_depth, self.num_bins, self.soft_range, self.soft_temperature)


def soft_bin_logits(
    inverse_depth: Float[Array, "b h w"],
    num_bins: int,
    soft_range: tuple[float, float],
    temperature: float,
) -> Float[Array, "b h w k"]:
    """-|r - r_k| / temperature, with r the inverse depth normalised per image.

    Unchanged by an affine change (positive scale) of `inverse_depth`. r is median 0 and mean
    absolute deviation 1; r_k are `num_bins` values from the near to the far end of `soft_range`.
    """
    everywhere = jnp.ones(inverse_depth.shape, bool)
    relative = jax.vmap(normalise_affine)(inverse_depth, everywhere)
    bins = jnp.linspace(soft_range[0], soft_range[1], num_bins)
    return -jnp.abs(jnp.clip(relative, *sorted(soft_range))[..., None] - bins) / temperature


def relative_depth(inverse_depth: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Depth up to scale from a relative prediction; far is a hundredth of the nearest."""
    nearest = jnp.max(inverse_depth, axis=(1, 2), keepdims=True)
    return 1.0 / jnp.maximum(inverse_depth, jnp.maximum(0.01 * nearest, 1e-6))
