"""The teacher: a frozen foundation model with a way to bin probabilities.

`head`: the binning head, trained on LiDAR while the foundation model stays frozen. It reads the
features and the model's own prediction in soft bins (ZoeDepth's conditioning on relative depth).
`soft`: no training; the prediction, normalised per image, is assigned softly to fixed bins.
MiDaS-like models predict inverse depth, metric ones depth; bins always run from near to far.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from fsmde_jax.models.bins import BinningHead
from fsmde_jax.models.foundation.dpt import DPTConfig, DPTOutput
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing
from fsmde_jax.models.layers.resize import resize_bilinear


class TeacherOutput(NamedTuple):
    """What distillation reads; no scale in it except in `depth_m`, which evaluation rescales."""

    logits: Float[Array, "b n h w k"]
    features: Float[Array, "b n h w c"]
    depth_m: Float[Array, "b n h2 w2"]
    centers_m: Float[Array, "b n k"] | None = None  # of a trained head


class Teacher(nnx.Module):
    """A foundation model and a binning.

    Args:
      config: the foundation model.
      preprocessing: its image processor.
      resize: size of its input: "patch" (the image's, up to the next multiple of the patch) or
        "processor" (the one its image processor gives).
      binning: "head" or "soft".
      soft_range, soft_temperature: see `soft_bin_logits`; "head" starts from these bins.
      head_options: arguments of `BinningHead`, used by "head".
    """

    def __init__(
        self,
        config: DPTConfig | MiniConfig,
        preprocessing: Preprocessing,
        *,
        resize: str,
        binning: str,
        num_bins: int,
        canonical_focal_px: float,
        soft_range: tuple[float, float],
        soft_temperature: float,
        head_options: dict,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.preprocessing, self.resize = preprocessing, resize
        self.num_bins, self.canonical_focal_px = num_bins, canonical_focal_px
        self.soft_range, self.soft_temperature = tuple(soft_range), soft_temperature
        self.foundation = config.build(rngs=rngs, dtype=dtype)
        channels = config.feature_channels
        head_options = head_options | {"relative_bins": True, "rngs": rngs, "dtype": dtype}
        self.head = nnx.data(
            BinningHead(channels, channels, num_bins, **head_options) if binning == "head" else None
        )

    def __call__(
        self,
        image: UInt8[Array, "b n h w 3"],
        intrinsics: Float[Array, "b n 3 3"],
        camera_mask: Bool[Array, "b n"],
    ) -> TeacherOutput:
        """Bin logits, near to far, at the resolution of the foundation model's features.

        Args:
          image: of any size; need not be the student's.
          intrinsics: at the student's resolution, for which `canonical_focal_px` is given.
          camera_mask: which cameras there are.
        """
        b, n = image.shape[:2]
        out = self._foundation(image.reshape(b * n, *image.shape[2:]))
        features = out.features.reshape(b, n, *out.features.shape[1:])
        metric = self.foundation.config.predicts_metres
        prediction = resize_bilinear(out.prediction[..., None], features.shape[2:4])[..., 0]
        soft = soft_bin_logits(
            prediction, self.num_bins, self.soft_range, self.soft_temperature, inverse=not metric
        )
        soft = soft.reshape(b, n, *soft.shape[1:])
        if self.head is None:
            depth = out.prediction if metric else relative_depth(out.prediction)
            return TeacherOutput(soft, features, depth.reshape(b, n, *depth.shape[1:]))
        ratio = jnp.where(camera_mask, intrinsics[..., 0, 0] / self.canonical_focal_px, 1.0)
        image_features = jnp.mean(features.astype(jnp.float32), axis=(2, 3))
        bins = self.head(features, image_features, ratio, camera_mask, nnx.softmax(soft))
        return TeacherOutput(bins.logits, features, bins.depth_m, bins.centers_m)

    def _foundation(self, image: UInt8[Array, "i h w 3"]) -> DPTOutput:
        """Runs the foundation model on images prepared as it was trained."""
        patch = self.foundation.config.patch_size
        size = self.preprocessing.input_size(*image.shape[1:3], self.resize, patch)
        return self.foundation(self.preprocessing(image, size))


def soft_bin_logits(
    prediction: Float[Array, "i h w"],
    num_bins: int,
    soft_range: tuple[float, float],
    temperature: float,
    inverse: bool = True,
) -> Float[Array, "i h w k"]:
    """-|s - s_k| / temperature, with s the logarithm of the prediction normalised per image.

    Unchanged by an affine change (positive scale) of the prediction. It is counted from its 2 %
    quantile in units of its 90 % quantile: of inverse depth from about infinity, in units of the
    road near the car, which the height of the camera holds at nearly one depth (over images of the
    miniature world a factor of 1.3, their median depth 2). So s is about a logarithm of depth.

    Args:
      prediction: inverse depth, or depth.
      soft_range: where bins begin and end in s, evenly spaced.
      inverse: which of them; bins run from near to far.
    """
    low = jnp.quantile(prediction, 0.02, axis=(1, 2), keepdims=True)
    unit = jnp.quantile(prediction, 0.9, axis=(1, 2), keepdims=True) - low
    share = (prediction - low) / jnp.maximum(unit, 1e-20)
    log_share = jnp.log(jnp.clip(share, *jnp.exp(jnp.array(soft_range))))
    bins = jnp.linspace(*soft_range, num_bins)
    return -jnp.abs(log_share[..., None] - (bins[::-1] if inverse else bins)) / temperature


def relative_depth(inverse_depth: Float[Array, "i h w"]) -> Float[Array, "i h w"]:
    """Depth up to scale from a relative prediction; far is a hundredth of the nearest."""
    nearest = jnp.max(inverse_depth, axis=(1, 2), keepdims=True)
    return 1.0 / jnp.maximum(inverse_depth, jnp.maximum(0.01 * nearest, 1e-6))
