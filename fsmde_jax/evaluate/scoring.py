"""One predictor's figures, batch by batch: read at the truth's points, scaled, compared, summed.

The device works on the points of each image; the host adds up (`fsmde_jax/evaluate/averages.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from fsmde_jax.data.batch import Batch
from fsmde_jax.evaluate import averages, cross_view, metrics
from fsmde_jax.evaluate.protocols import PROTOCOLS, Protocol
from fsmde_jax.models.layers import sampling
from fsmde_jax.run import sharding


class Predictor(NamedTuple):
    """What is measured: a function from a batch to depth.

    Attributes:
      predict: batch -> [b n h w] in metres, or inverse depth of unknown scale and shift.
      scaling: how predictions are scaled to the truth; one of `config.SCALINGS`.
      inverse: whether `predict` gives inverse depth.
    """

    predict: Callable[[Batch], Array]
    scaling: str = "metric"
    inverse: bool = False


class Scorer:
    """Measures one predictor, batch by batch.

    Args:
      scenes: name and number of samples of each, in the order of the split.
    """

    def __init__(
        self,
        config: ConfigDict,
        predictor: Predictor,
        protocol: Protocol,
        scenes: Sequence[tuple[str, int]],
        cameras: tuple[str, ...],
        mesh: Mesh,
    ):
        self.config, self.predictor, self.protocol = config, predictor, protocol
        self.scenes, lengths = zip(*scenes, strict=True)
        scene_of = np.repeat(np.arange(len(lengths)), lengths)
        self.scene_of: list[int] = scene_of.tolist()
        self.scores = averages.Scores.empty(cameras, len(self.scenes), protocol)
        pool_of = np.arange(len(scene_of)) // protocol.pool
        self.counted = whole_pools(protocol, len(scene_of))
        self.pools = Groups(pool_of)
        # One ratio of medians scales several images, so their points wait for each other.
        self.scaled = Groups(pool_of if protocol.pool > 1 else scene_of)
        self.covered = np.zeros(len(cameras), int)
        self.images = np.zeros(len(cameras), int)
        self.unit_ratios: list[float] = []
        # On every device, so that each host can read the whole.
        everywhere = sharding.replicated(mesh)
        self._read = jax.jit(self._read_points, out_shardings=everywhere)
        self._measure = jax.jit(jax.vmap(jax.vmap(self._sums)), out_shardings=everywhere)
        self._measure_batch = jax.jit(
            lambda depth_m, batch: jax.vmap(jax.vmap(self._sums))(
                *self._read_points(depth_m, batch)
            ),
            out_shardings=everywhere,
        )
        self._cross_view = jax.jit(self._cross_view_of, out_shardings=everywhere)
        self._replicate = jax.jit(lambda tree: tree, out_shardings=everywhere)

    def add(self, batch: Batch) -> Array:
        """Measures a batch; returns the prediction, [b n h w]."""
        prediction = self.predictor.predict(batch)
        small = {name: batch[name] for name in ("sample_index", "camera_mask")}
        small["covered"] = batch.get("covered", batch["camera_mask"])
        host = jax.device_get(self._replicate(small))
        index = host["sample_index"]
        self.images += host["camera_mask"][index >= 0].sum(axis=0)
        rows = [row for row in range(len(index)) if 0 <= index[row] < self.counted]
        self.covered += (host["covered"] & host["camera_mask"])[rows].sum(axis=0)
        if self.predictor.scaling == "median_camera":
            points = jax.device_get(self._read(prediction, batch))
            for row in rows:
                self._add_waiting(int(index[row]), tuple(array[row] for array in points))
        else:
            sums, counts = jax.device_get(self._measure_batch(prediction, batch))
            for row in rows:
                self._add_sums(int(index[row]), (sums[row], counts[row]))
        if self.predictor.scaling == "metric":
            values, scale = jax.device_get(self._cross_view(prediction, batch))
            for row in rows:
                self.scores.add_cross_view(self.scene_of[index[row]], values[row])
            self.unit_ratios += scale[rows][~np.isnan(scale[rows])].tolist()
        return prediction

    def compute(self) -> dict:
        """The figures (`averages.Scores.compute`), and how much of the split they cover."""
        found = self.scores.compute(self.scenes)
        found["covered"] = {"images": int(self.covered.sum()), "of": int(self.images.sum())}
        if self.unit_ratios:
            found["median_scale"] = float(np.median(self.unit_ratios))
        return found

    def _add_waiting(self, index: int, points: tuple[np.ndarray, ...]) -> None:
        group = self.scaled.add(index, points)
        if group is None:
            return
        depth_m, truth_m, valid = (np.stack(arrays) for arrays in zip(*group.values(), strict=True))
        for camera in range(depth_m.shape[1]):
            used = valid[:, camera]
            if used.any():
                ratio = self._median(truth_m[:, camera][used]) / self._median(
                    depth_m[:, camera][used]
                )
                depth_m[:, camera] *= ratio
        for i, member in enumerate(group):
            sums, counts = self._measure(depth_m[i][None], truth_m[i][None], valid[i][None])
            self._add_sums(member, (np.asarray(sums)[0], np.asarray(counts)[0]))

    def _median(self, values: np.ndarray) -> np.floating:
        if self.protocol.lower_median:
            return np.partition(values, (len(values) - 1) // 2)[(len(values) - 1) // 2]
        return np.median(values)

    def _add_sums(self, index: int, sums_and_counts: tuple[np.ndarray, np.ndarray]) -> None:
        pool = self.pools.add(index, sums_and_counts)
        if pool is not None:
            sums, counts = (
                np.sum(np.stack(arrays).astype(np.float64), axis=0)
                for arrays in zip(*pool.values(), strict=True)
            )
            self.scores.add(self.scene_of[min(pool)], sums, counts)

    # On the devices

    def _read_points(self, prediction: Array, batch: Batch) -> tuple[Array, ...]:
        """The prediction at the truth's points, the truth, and which points count; [b n p] each."""
        uv, size, truth_m = truth_of(batch)
        corners = self.protocol.align_corners
        read = lambda *image: sampling.read_at_pixels(*image, corners)  # noqa: E731
        depth_m = jax.vmap(jax.vmap(read))(prediction.astype(jnp.float32), uv, size)
        low, high = limits_m(self.config)
        if self.protocol.clamp_first and not self.predictor.inverse:
            depth_m = jnp.clip(depth_m, low, high)
        return depth_m, truth_m, (truth_m > low) & (truth_m < high)

    def _sums(self, depth_m: Array, truth_m: Array, valid: Array) -> tuple[Array, Array]:
        """Sums of one image's errors, after its points were scaled (if asked for) and clamped."""
        depth_m = metrics.scaled(
            depth_m,
            truth_m,
            valid,
            self.predictor.scaling,
            self.protocol.lower_median,
            self.predictor.inverse,
        )
        low, high = limits_m(self.config)
        return metrics.error_sums(jnp.clip(depth_m, max(low, 1e-6), high), truth_m, valid)

    def _cross_view_of(self, depth_m: Array, batch: Batch) -> tuple[Array, Array]:
        """[b 2] of `cross_view.NAMES`, and each image's median scale [b n]."""
        scale = cross_view.median_scale(*self._read_points(depth_m, batch))
        apart = cross_view.overlap_disagreement(
            depth_m.astype(jnp.float32),
            batch["intrinsics"],
            batch["image"].shape[2:4],
            batch["vehicle_from_camera"],
            batch["neighbour"],
            batch["neighbour_mask"],
        )
        return jnp.stack([cross_view.scale_spread(scale), apart], axis=-1), scale


def whole_pools(protocol: Protocol, samples: int) -> int:
    """How many samples of a split count: at its end a pool that is not whole is left out."""
    return samples - samples % protocol.pool


def limits_m(config: ConfigDict) -> tuple[float, float]:
    """The range of true depth that is evaluated; predictions are clamped to it."""
    low = PROTOCOLS[config.evaluation.protocol].min_depth_m
    return config.data.min_depth_m if low is None else low, max_depth_m(config)


def max_depth_m(config: ConfigDict) -> float:
    """Where the evaluated range ends."""
    return config.evaluation.max_depth_m or config.data.max_depth_m


def truth_of(batch: Batch) -> tuple[Array, Array, Array]:
    """The truth's pixels [b n p 2], their image's size [b n 2] and depths [b n p].

    These are all pixels where the truth is dense, else the LiDAR's points. Depth 0 is no truth.
    """
    if "dense_depth_m" not in batch:
        return batch["lidar_uv"], batch["native_size"], batch["lidar_depth_m"]
    b, n, height, width = batch["dense_depth_m"].shape
    row, column = jnp.mgrid[:height, :width]
    uv = jnp.stack([column, row], axis=-1).reshape(-1, 2)
    depth_m = batch["dense_depth_m"].reshape(b, n, -1)
    size = jnp.broadcast_to(jnp.array([height, width]), (b, n, 2))
    return jnp.broadcast_to(uv, (b, n, *uv.shape)), size, depth_m


class Groups:
    """Collects items until all samples of a group have one.

    Args:
      group_of: each sample's group.
    """

    def __init__(self, group_of: Int[np.ndarray, "s"]):
        self.group_of = group_of
        self._sizes = np.bincount(group_of)
        self._waiting: dict[int, dict[int, Any]] = {}

    def add(self, index: int, item: Any) -> dict[int, Any] | None:
        """Adds a sample's item; returns its group's items, in order, once the group is complete."""
        group = int(self.group_of[index])
        waiting = self._waiting.setdefault(group, {})
        waiting[index] = item
        if len(waiting) < self._sizes[group]:
            return None
        return dict(sorted(self._waiting.pop(group).items()))
