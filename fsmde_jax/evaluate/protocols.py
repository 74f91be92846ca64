"""How public code evaluates the depth of camera rings: what it compares, what it averages.

A protocol can move a figure by more than most papers gain, so a number means something only
together with its protocol. Each was read in the repository named below, in 2026.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fsmde_jax import config
from fsmde_jax.data import lidar
from fsmde_jax.data.batch import Batch


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to measure.

    Attributes:
      name: as `config.evaluation.protocol`.
      truth: "native": the LiDAR's native pixels, where a prediction of any size is read
        bilinearly. "prepared": points move to pixels of the prepared size, by integer truncation;
        of several points on a pixel the last one (in row-major order) stays.
      align_corners: whether the outermost pixels' centres of prediction and truth coincide, as
        torch calls it; otherwise pixels have half-pixel centres.
      min_depth_m: truth is valid above it, and predictions are clamped to it; None is
        `config.data.min_depth_m`. Both also end at `config.evaluation.max_depth_m`.
      lower_median: whether the median of an even count is the lower of the two middle values, as
        in torch, and not their mean.
      clamp_first: predictions are also clamped before they are scaled.
      masks_own_car: whether pixels of the ego vehicle are left out (`config.evaluation.masks` says
        how). Masks from files are brought to the network's size, as in VFDepth.
      lidar_rule: one of `lidar.RULES`, for data that was prepared with them.
      pool: so many consecutive samples count as one image of each camera: errors are averaged over
        all their pixels at once. At the end of the split a pool that is not whole is left out, as
        by VFDepth's loader (`drop_last`).
      average: over what the figures of images (or pools) are averaged. "cameras": over each
        camera's, then over cameras; "images": over all of them; "pools": over a pool's cameras,
        then over pools.
    """

    name: str
    truth: str
    align_corners: bool
    min_depth_m: float | None
    lower_median: bool
    clamp_first: bool
    masks_own_car: bool
    pool: int
    average: str
    lidar_rule: str


# XiandaGuo/SSDepth, and most papers after it. An older version of this package called it
# "surrounddepth" and did not record whether it mirrored (`results.read` renames such results).
_SSDEPTH = Protocol(
    "ssdepth",
    truth="native",
    align_corners=False,
    min_depth_m=None,
    lower_median=False,
    clamp_first=False,
    masks_own_car=False,
    pool=1,
    average="cameras",
    lidar_rule="surrounddepth",
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        _SSDEPTH,
        # weiyithu/SurroundDepth.
        dataclasses.replace(_SSDEPTH, name="surrounddepth"),
        # 42dot/VFDepth. On nuScenes it also leaves out key frames of low visibility by a list of
        # its own (5,417 of 6,019 stay); here all count.
        Protocol(
            "vfdepth",
            truth="prepared",
            align_corners=False,
            min_depth_m=0.0,
            lower_median=True,
            clamp_first=True,
            masks_own_car=True,
            pool=4,
            average="pools",
            lidar_rule="vfdepth",
        ),
        # TRI-ML/packnet-sfm and vidar, with and without mirroring. There an image without a valid
        # pixel counts as one without error; here it does not count. They have no nuScenes: of its
        # two rules the one with more points is taken.
        Protocol(
            "packnet",
            truth="native",
            align_corners=True,
            min_depth_m=0.0,
            lower_median=True,
            clamp_first=False,
            masks_own_car=False,
            pool=1,
            average="images",
            lidar_rule="surrounddepth",
        ),
    )
}


def mirrors(evaluation: ConfigDict) -> bool:
    """Whether `config.evaluation` averages with mirror images."""
    mirroring = config.PROTOCOLS[evaluation.protocol]
    return mirroring == "always" or (mirroring == "asked" and evaluation.flip_average)


def post_process(
    disparity: Float[Array, "*s h w"], of_mirrored: Float[Array, "*s h w"]
) -> Float[Array, "*s h w"]:
    """The mean of an image's disparity and its mirror image's, with packnet-sfm's ramps.

    Near the borders the mean fades into one of the two, over the range from a tenth to a twentieth
    of the width: at the left border into the mirror image's, at the right into the image's own.
    SurroundDepth has the same function.

    Args:
      of_mirrored: as predicted, still mirrored.
    """
    mirrored_back = jnp.flip(of_mirrored, axis=-1)
    along = np.linspace(0.0, 1.0, disparity.shape[-1])
    left = (1.0 - np.clip(20.0 * (along - 0.05), 0.0, 1.0)).astype(np.float32)
    right = left[::-1]
    mean = 0.5 * (disparity + mirrored_back)
    return right * disparity + left * mirrored_back + (1.0 - left - right) * mean


def mirror_averaged(predict: Callable[[Batch], Array], inverse: bool) -> Callable[[Batch], Array]:
    """Averages the disparity of `predict` with the disparity of mirrored images (`post_process`).

    As in the public code, each camera's image is mirrored in its place, with its calibration.

    Args:
      predict: batch -> [b n h w].
      inverse: whether `predict` gives inverse depth; else depth.
    """

    @jax.jit
    def mirror(batch: Batch) -> Batch:
        mirrored = {
            name: jnp.flip(batch[name], axis=3)
            for name in ("image", "teacher_image")
            if name in batch
        }
        k = batch["intrinsics"]
        k = k.at[..., 0, 2].set(batch["image"].shape[3] - k[..., 0, 2]).at[..., 0, 1].multiply(-1)
        flipped = jnp.ones_like(batch["sample_index"], bool)
        return {**batch, **mirrored, "intrinsics": k, "flipped": flipped}

    def both(batch: Batch) -> Array:
        direct, mirrored = predict(batch), predict(mirror(batch))
        if inverse:
            return post_process(direct, mirrored)
        return 1.0 / post_process(1.0 / direct, 1.0 / mirrored)

    return both


def at_prepared_size(sample: dict) -> dict:
    """A prepared sample with its LiDAR points moved to pixels of its images (truth "prepared")."""
    height, width = sample["images"].shape[1:3]
    kept, uv = [], []
    for i, points in enumerate(lidar.slices_of(sample)):
        small = lidar.pixels_at(sample, i, (height, width))
        _, from_the_end = np.unique(small[::-1] @ (1, width), return_index=True)
        winners = len(small) - 1 - from_the_end
        kept.append(points.start + winners)
        uv.append(small[winners])
    return {
        **sample,
        "native_sizes": np.full_like(sample["native_sizes"], (height, width)),
        "lidar_counts": np.array([len(points) for points in kept], np.int32),
        "lidar_uv": np.concatenate(uv).astype(np.uint16),
        "lidar_depth_m": sample["lidar_depth_m"][np.concatenate(kept)],
    }
