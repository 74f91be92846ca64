"""Depth metrics: per image on the device, summed per camera on the host, exact over batches.

Protocol `surrounddepth` (SurroundDepth, SSDepth): the prediction is resized bilinearly to the
native resolution (half-pixel centres) and compared with the native LiDAR pixels; valid is
min_depth < truth < max_depth; predictions are clamped to that range; metrics are computed per
image, averaged per camera over images, then over cameras without weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# How a prediction meets the truth: as it is; times the image's ratio of medians; or, for relative
# inverse depth, by the scale and shift of least squares on the image's inverse truth (MiDaS).
ALIGNMENTS = ("metric", "median", "affine")

NAMES = ("abs_rel", "sq_rel", "rmse_m", "rmse_log", "delta1", "delta2", "delta3")


def sample_bilinear(
    depth_map: Float[Array, "h w"], xy: Float[Array, "p 2"], size: tuple[int, int]
) -> Float[Array, "p"]:
    """Values at positions given in pixels of an image of `size` (height, width).

    Equal to a bilinear resize of the map with half-pixel centres (torch's align_corners=False)
    read at those pixels; only the pixels that carry LiDAR are computed.
    """
    height, width = depth_map.shape
    x = jnp.clip(xy[:, 0] * (width / size[1]) - 0.5, 0.0, width - 1.0)
    y = jnp.clip(xy[:, 1] * (height / size[0]) - 0.5, 0.0, height - 1.0)
    return jax.scipy.ndimage.map_coordinates(depth_map, [y, x], order=1, mode="nearest")


def masked_median(values: Float[Array, "p"], mask: Bool[Array, "p"]) -> Float[Array, ""]:
    """Median over `mask`; the mean of the two middle values for an even count."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    count = jnp.sum(mask)
    low = ordered[jnp.maximum(count - 1, 0) // 2]
    high = ordered[count // 2 % values.shape[0]]
    return jnp.where(count > 0, (low + high) / 2, 1.0)


def moments(
    x: Float[Array, "p"], y: Float[Array, "p"], valid: Bool[Array, "p"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Means of x and y, their covariance and the variance of x, over `valid`."""
    count = jnp.maximum(jnp.sum(valid), 1)
    mean = lambda values: jnp.sum(jnp.where(valid, values, 0.0)) / count  # noqa: E731
    mean_x, mean_y = mean(x), mean(y)
    x, y = x - mean_x, y - mean_y
    return mean_x, mean_y, mean(x * y), mean(x * x)


def fit_affine(
    inverse_depth: Float[Array, "p"], truth_m: Float[Array, "p"], valid: Bool[Array, "p"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(scale, shift) of least squares: scale * inverse_depth + shift = 1 / truth over `valid`."""
    inverse_truth = 1.0 / jnp.where(valid, truth_m, 1.0)
    mean, mean_truth, covariance, variance = moments(inverse_depth, inverse_truth, valid)
    scale = covariance / jnp.maximum(variance, 1e-30)
    return scale, mean_truth - scale * mean


def depth_of_inverse(
    inverse_depth: Float[Array, "*s"], min_depth_m: float, max_depth_m: float
) -> Float[Array, "*s"]:
    """1 / inverse_depth inside the range."""
    return 1.0 / jnp.clip(inverse_depth, 1.0 / max_depth_m, 1.0 / min_depth_m)


def image_metrics(
    depth_m: Float[Array, "p"],
    lidar_depth_m: Float[Array, "p"],
    min_depth_m: float,
    max_depth_m: float,
    alignment: str = "metric",
) -> tuple[Float[Array, "m"], Bool[Array, ""]]:
    """The metrics of `NAMES` over one image's LiDAR pixels, and whether there were any.

    Args:
      depth_m: predictions at the LiDAR pixels.
      lidar_depth_m: truth; 0 pads.
      min_depth_m, max_depth_m: between which the truth is valid; predictions are clamped.
      alignment: one of `ALIGNMENTS`.
    """
    valid = (lidar_depth_m > min_depth_m) & (lidar_depth_m < max_depth_m)
    if alignment == "median":
        ratio = masked_median(lidar_depth_m, valid) / masked_median(depth_m, valid)
        depth_m = depth_m * ratio
    elif alignment == "affine":
        scale, shift = fit_affine(depth_m, lidar_depth_m, valid)
        depth_m = depth_of_inverse(scale * depth_m + shift, min_depth_m, max_depth_m)
    depth_m = jnp.clip(depth_m, min_depth_m, max_depth_m)
    truth = jnp.where(valid, lidar_depth_m, 1.0)
    depth_m = jnp.where(valid, depth_m, 1.0)
    count = jnp.maximum(jnp.sum(valid), 1)

    def mean(values):
        return jnp.sum(jnp.where(valid, values, 0.0)) / count

    error = depth_m - truth
    ratio = jnp.maximum(depth_m / truth, truth / depth_m)
    values = [
        mean(jnp.abs(error) / truth),
        mean(error**2 / truth),
        jnp.sqrt(mean(error**2)),
        jnp.sqrt(mean((jnp.log(depth_m) - jnp.log(truth)) ** 2)),
        *(mean((ratio < 1.25**power).astype(jnp.float32)) for power in (1, 2, 3)),
    ]
    return jnp.stack(values), jnp.any(valid)


def batch_metrics(
    depth_m: Float[Array, "b n h w"],
    lidar_xy: Float[Array, "b n p 2"],
    lidar_depth_m: Float[Array, "b n p"],
    size: tuple[int, int],
    min_depth_m: float,
    max_depth_m: float,
    alignment: str = "metric",
) -> tuple[Float[Array, "b n m"], Bool[Array, "b n"]]:
    """`image_metrics` of every image of a batch; `lidar_xy` in pixels of an image of `size`."""

    def one_image(depth_map, xy, truth):
        at_points = sample_bilinear(depth_map, xy, size)
        return image_metrics(at_points, truth, min_depth_m, max_depth_m, alignment)

    return jax.vmap(jax.vmap(one_image))(depth_m, lidar_xy, lidar_depth_m)


@dataclasses.dataclass
class CameraTable:
    """Sums of per-image metrics for each camera; `merge` is exact over batches and hosts."""

    cameras: tuple[str, ...]
    sums: Float[np.ndarray, "n m"]
    counts: Float[np.ndarray, "n"]

    @classmethod
    def empty(cls, cameras: tuple[str, ...]) -> "CameraTable":
        """A table that has seen no image."""
        return cls(cameras, np.zeros((len(cameras), len(NAMES))), np.zeros(len(cameras)))

    def add(self, values: Float[np.ndarray, "b n m"], valid: Bool[np.ndarray, "b n"]) -> None:
        """Adds a batch of per-image metrics."""
        self.sums += np.where(valid[..., None], values, 0.0).astype(np.float64).sum(axis=0)
        self.counts += valid.sum(axis=0)

    def merge(self, other: "CameraTable") -> "CameraTable":
        """The table of both sets of images."""
        if self.cameras != other.cameras:
            raise ValueError(f"tables of different rigs: {self.cameras} and {other.cameras}")
        return CameraTable(self.cameras, self.sums + other.sums, self.counts + other.counts)

    def compute(self) -> dict:
        """`{"mean": {name: value}, "cameras": {camera: {name: value}}}`; empty cameras left out."""
        seen = [i for i in range(len(self.cameras)) if self.counts[i] > 0]
        rows = {self.cameras[i]: self.sums[i] / self.counts[i] for i in seen}
        if not rows:
            raise ValueError("no image had a valid LiDAR pixel, so there is nothing to average")
        mean = np.mean(list(rows.values()), axis=0)
        as_dict = lambda row: dict(zip(NAMES, (float(value) for value in row), strict=True))  # noqa: E731
        return {"mean": as_dict(mean), "cameras": {k: as_dict(v) for k, v in rows.items()}}


def format_table(results: dict[str, dict]) -> str:
    """Markdown: for each method a row a camera and the mean of cameras."""
    lines = ["| method | camera | " + " | ".join(NAMES) + " |", "| --- " * (len(NAMES) + 2) + "|"]
    for method, result in results.items():
        rows = {**result["cameras"], "mean of cameras": result["mean"]}
        for camera, row in rows.items():
            figures = " | ".join(f"{row[name]:.3f}" for name in NAMES)
            lines.append(f"| {method} | {camera} | {figures} |")
    return "\n".join(lines)
