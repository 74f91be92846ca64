"""How public code evaluates depth of camera rings: what is compared, and what is averaged.

The differences move a figure by more than most papers claim, so a number means something only
with its protocol. Read in the repositories named below, 2026.
"""

import dataclasses

import numpy as np

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
      pool: errors are averaged over all pixels of this many consecutive samples' images of a
        camera at once; 1 is image by image.
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


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # SurroundDepth, SSDepth and most after them.
        Protocol(
            "surrounddepth",
            truth="native",
            align_corners=False,
            min_depth_m=None,
            lower_median=False,
            clamp_first=False,
            masks_own_car=False,
            pool=1,
            average="cameras",
        ),
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
        ),
        # TRI-ML/packnet-sfm and vidar.
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
        ),
    )
}


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
