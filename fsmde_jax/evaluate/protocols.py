"""How public code evaluates depth of camera rings: what is compared, and what is averaged.

The differences move a figure by more than most papers claim, so a number means something only
with its protocol. Read in the repositories named below, 2026.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fsmde_jax import config
from fsmde_jax.data import lidar


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to come to figures.

    Attributes:
      name: as `config.evaluation.protocol`.
      truth: "native": the LiDAR's native pixels, where a prediction of any size is read
        bilinearly. "prepared": the truth is brought to the prepared size by integer truncation,
        the last point (in row-major order) wins a pixel.
      align_corners: whether the outermost pixels' centres of prediction and truth coincide, as
        torch calls it; otherwise pixels have half-pixel centres.
      min_depth_m: truth is valid above it, and predictions are clamped to it; None is
        `config.data.min_depth_m`. Both also end at `config.evaluation.max_depth_m`.
      lower_median: of an even count the lower of the two middle values, as torch has it, is the
        median; otherwise their mean.
      clamp_first: predictions are also clamped before they are scaled.
      masks_own_car: where the car sees itself is left out (`config.evaluation.masks` says how).
        Masks from files are brought to the network's size as VFDepth does.
      lidar_rule: of `lidar.RULES`, for data that was prepared by those.
      pool: errors are averaged over all pixels of this many consecutive samples' images of a
        camera at once; 1 is image by image. What makes no whole pool at the end of the split is
        left out, as VFDepth's loader does (`drop_last`).
      average: what the figures of images (or pools) are averaged over. "cameras": per camera,
        then over cameras; "images": over all alike; "pools": over a pool's cameras, then pools.
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


# XiandaGuo/SSDepth, and most after it. Figures that were made here under the name "surrounddepth"
# before results recorded their mirroring are of this protocol (`results.read`).
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
        # TRI-ML/packnet-sfm and vidar, with and without mirroring. An image without any valid pixel
        # counts as one without error there, and not at all here. It has no nuScenes; of the two
        # rules there the one with more points is taken.
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
    """Disparity averaged with that of the mirrored image, by packnet-sfm's ramps.

    Within a tenth of the width from a border the mean goes over into one of the two, wholly within
    a twentieth: the mirrored at the left one, the direct at the right one. SurroundDepth has the
    same function.

    Args:
      of_mirrored: as predicted, still mirrored.
    """
    mirrored_back = jnp.flip(of_mirrored, axis=-1)
    along = np.linspace(0.0, 1.0, disparity.shape[-1])
    left = (1.0 - np.clip(20.0 * (along - 0.05), 0.0, 1.0)).astype(np.float32)
    right = left[::-1]
    mean = 0.5 * (disparity + mirrored_back)
    return right * disparity + left * mirrored_back + (1.0 - left - right) * mean


def at_prepared_size(sample: dict) -> dict:
    """A prepared sample whose LiDAR points are pixels of its images: truth "prepared"."""
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
