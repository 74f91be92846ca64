"""A split's figures: sums by scene, camera and range of depth, and their averages.

Batches may come in any size and order, and memory does not grow with the number of samples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import cross_view, metrics
from fsmde_jax.evaluate.intervals import MIN_SCENES, expanded_interval, resample
from fsmde_jax.evaluate.protocols import Protocol

_ALL = len(metrics.RANGES_M)  # the place of all distances together, after the ranges


@dataclasses.dataclass
class Scores:
    """Sums of images' figures, and how many images, by scene, camera and range of depth.

    Attributes:
      cameras: their names.
      sums, counts: [scene, camera, range]. Behind the cameras there is one more place, for the
        mean over a pool's cameras (`protocol.average` "pools"); behind the ranges one for all
        distances.
      cross_sums, cross_counts: [scene, figure of `cross_view.NAMES`].
      average: `protocol.average`.
    """

    cameras: tuple[str, ...]
    sums: Float[np.ndarray, "s k d 7"]
    counts: Float[np.ndarray, "s k d"]
    cross_sums: Float[np.ndarray, "s 2"]
    cross_counts: Float[np.ndarray, "s 2"]
    average: str

    @classmethod
    def empty(cls, cameras: tuple[str, ...], num_scenes: int, protocol: Protocol) -> "Scores":
        """Nothing seen yet."""
        shape = (num_scenes, len(cameras) + 1, _ALL + 1)
        cross = (num_scenes, len(cross_view.NAMES))
        return cls(
            cameras,
            np.zeros((*shape, len(metrics.NAMES))),
            np.zeros(shape),
            np.zeros(cross),
            np.zeros(cross),
            protocol.average,
        )

    def add(
        self, scene: int, sums: Float[np.ndarray, "n r 7"], counts: Float[np.ndarray, "n r"]
    ) -> None:
        """Adds a sample's (or pool's) images: their sums of errors and numbers of points."""
        sums = np.concatenate([sums, sums.sum(axis=1, keepdims=True)], axis=1)
        counts = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
        seen, n = counts > 0, len(self.cameras)
        values = np.where(seen[..., None], metrics.figures(sums, counts), 0.0)
        self.sums[scene, :n] += values
        self.counts[scene, :n] += seen
        self.sums[scene, n] += values.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)[..., None]
        self.counts[scene, n] += seen.any(axis=0)

    def add_cross_view(self, scene: int, values: Float[np.ndarray, "2"]) -> None:
        """Adds a sample's figures of `cross_view.NAMES`; NaN is left out."""
        seen = ~np.isnan(values)
        self.cross_sums[scene] += np.where(seen, values, 0.0)
        self.cross_counts[scene] += seen

    def compute(self, scenes: Sequence[str]) -> dict[str, Any]:
        """All figures, as JSON has them; cameras, ranges and scenes without points are left out.

        - `mean` and its 95 % `interval`; `ranges`: the mean by true depth.
        - `cameras`: the mean of each; `images`: how many of its images had points.
        - `scenes`: in each its `mean`, and by camera the mean and the number of images (or pools),
          from which a comparison averages anew.
        - `cross_view` and `cross_view_interval`, where there are such figures.

        Args:
          scenes: their names.

        Raises `UserError` where no image had a point.
        """
        present = [i for i in range(len(self.cameras)) if self.counts[:, i, _ALL].any()]
        if not present:
            raise UserError("no image had a valid LiDAR pixel, so there is nothing to average")
        used = np.flatnonzero(self.counts[:, -1, _ALL] > 0)
        sums, counts = self.sums[used], self.counts[used]
        replicates = resample(len(used)) if len(used) >= MIN_SCENES else None

        def interval(totals, numbers, average):
            if replicates is None:
                return None
            weighted = lambda array: np.tensordot(replicates, array, 1)  # noqa: E731
            return expanded_interval(average(weighted(totals), weighted(numbers)), len(used))

        mean = headline(sums.sum(axis=0), counts.sum(axis=0), self.average)
        total, number = sums.sum(axis=0), counts.sum(axis=0)
        overall, overall_counts = sums[:, :, _ALL:], counts[:, :, _ALL:]
        bounds = interval(
            overall, overall_counts, lambda s, c: headline(s, c, self.average)[..., 0, :]
        )
        crossed = self.cross_counts.sum(axis=0) > 0
        result = {
            "mean": _named(mean[_ALL]),
            "interval": _bounds(bounds, metrics.NAMES),
            "cameras": {self.cameras[i]: _named(total[i, _ALL] / number[i, _ALL]) for i in present},
            "ranges": {
                range_name(r): _named(mean[r]) for r in range(_ALL) if not np.isnan(mean[r, 0])
            },
            "scenes": {},
            "images": {self.cameras[i]: int(number[i, _ALL]) for i in present},
        }
        for scene in used:
            of_scene = headline(self.sums[scene], self.counts[scene], self.average)[_ALL]
            in_scene = [i for i in present if self.counts[scene, i, _ALL] > 0]
            result["scenes"][scenes[scene]] = {
                "mean": _named(of_scene),
                "cameras": {
                    self.cameras[i]: {
                        **_named(self.sums[scene, i, _ALL] / self.counts[scene, i, _ALL]),
                        "images": int(self.counts[scene, i, _ALL]),
                    }
                    for i in in_scene
                },
                "pools": {
                    **_named(self.sums[scene, -1, _ALL] / self.counts[scene, -1, _ALL]),
                    "images": int(self.counts[scene, -1, _ALL]),
                },
            }
            if (self.cross_counts[scene] > 0).all():
                value = self.cross_sums[scene] / self.cross_counts[scene]
                result["scenes"][scenes[scene]] |= {
                    "cross_view": _named(value, cross_view.NAMES),
                    "cross_view_samples": _named(self.cross_counts[scene], cross_view.NAMES),
                }
        if crossed.all():
            ratio = lambda s, c: s / np.maximum(c, 1)  # noqa: E731
            value = ratio(self.cross_sums.sum(axis=0), self.cross_counts.sum(axis=0))
            result["cross_view"] = _named(value, cross_view.NAMES)
            bounds = interval(self.cross_sums[used], self.cross_counts[used], ratio)
            result["cross_view_interval"] = _bounds(bounds, cross_view.NAMES)
        return result


def headline(
    sums: Float[np.ndarray, "*s k d 7"], counts: Float[np.ndarray, "*s k d"], average: str
) -> Float[np.ndarray, "*s d 7"]:
    """The mean over cameras, images or pools, as `average` says; NaN where there is no point."""
    sums, counts = np.moveaxis(sums, -3, 0), np.moveaxis(counts, -2, 0)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        if average == "pools":
            return sums[-1] / counts[-1]
        if average == "images":
            return sums[:-1].sum(axis=0) / counts[:-1].sum(axis=0)
        seen = counts[:-1] > 0
        means = np.where(seen, sums[:-1] / np.where(seen, counts[:-1], 1), 0.0)
        return means.sum(axis=0) / seen.sum(axis=0)


def range_name(place: int) -> str:
    """The name of a range of `metrics.RANGES_M`, such as "20-40 m"; the last one is open."""
    low = metrics.RANGES_M[place]
    if place + 1 == len(metrics.RANGES_M):
        return f"from {low:g} m"
    return f"{low:g}-{metrics.RANGES_M[place + 1]:g} m"


def _named(values: np.ndarray, names: Sequence[str] = metrics.NAMES) -> dict[str, float]:
    return dict(zip(names, (float(value) for value in values), strict=True))


def _bounds(bounds: np.ndarray | None, names: Sequence[str]) -> dict[str, list[float]] | None:
    if bounds is None:
        return None
    return {name: [float(bounds[0][m]), float(bounds[1][m])] for m, name in enumerate(names)}
