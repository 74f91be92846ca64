"""The student's objective: supervision and the terms of distillation, weighed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from fsmde_jax.data.batch import Batch
from fsmde_jax.losses import baselines, cross_interaction, depth, view_relational
from fsmde_jax.models.binned_depth import DEPTH
from fsmde_jax.models.layers.resize import resize_bilinear
from fsmde_jax.models.student import StudentOutput
from fsmde_jax.models.teacher import TeacherOutput

# The terms that need a teacher; keys of the config's `objective` section, like "silog".
DISTILLATION = (
    "ckd_divergence",
    "ckd_crossing",
    "ckd_structure",
    "vrkd",
    "response",
    "feature",
    "pairwise",
)


class TeacherTargets(NamedTuple):
    """What distillation reads of a teacher; maps have the resolution of the student's bins."""

    logits: Float[Array, "b n h w k"]  # of bin probabilities
    tokens: Float[Array, "b n t c"] | None  # pooled features of unit length
    log_depth: Float[Array, "b n h w"]  # up to the scale of each image
    valid: Bool[Array, "b n h w"] | bool = True  # where maps count, in the cameras present


def targets_of(
    teacher: TeacherOutput, bins_size: tuple[int, int], config: ConfigDict
) -> TeacherTargets:
    """Targets from a teacher's output; `config` is the run's `objective` section.

    Under `jax.jit` a target that no term reads costs nothing.
    """
    log_depth = jnp.log(jnp.maximum(teacher.depth_m, 1e-6))[..., None]
    log_depth = _resize_maps(log_depth, bins_size)[..., 0]
    return TeacherTargets(
        _resize_maps(teacher.logits, bins_size),
        view_relational.pool_tokens(teacher.features, config.vrkd_grid),
        log_depth - jnp.mean(log_depth, axis=(-1, -2), keepdims=True),
    )


def true_targets(
    dense_depth_m: Float[Array, "b n h w"],
    focal_ratio: Float[Array, "b n"],
    bins_size: tuple[int, int],
    num_bins: int,
    log_range: tuple[float, float],
) -> TeacherTargets:
    """Targets of a teacher that cannot be better, to bound what any teacher can give.

    True depth of the canonical camera in soft bins that are even in log depth. It has no features,
    and says nothing of the sky. With `log_range` that of a student, the student's fresh centers
    nearly fit already: a bound for the structure that is taught, not for how metres are learned.

    Args:
      focal_ratio: focal_px / canonical_focal_px.
      log_range: where the bins begin and end.
    """
    is_surface = dense_depth_m > 0
    log_depth = jnp.log(jnp.where(is_surface, dense_depth_m, jnp.exp(log_range[1])))
    log_depth = _resize_maps(log_depth[..., None], bins_size)
    surface = _resize_maps(is_surface[..., None].astype(jnp.float32), bins_size)[..., 0]
    bins = jnp.linspace(*log_range, num_bins)
    canonical = jnp.clip(log_depth - jnp.log(focal_ratio)[..., None, None, None], *log_range)
    logits = -jnp.abs(canonical - bins) / (0.5 * (bins[1] - bins[0]))
    return TeacherTargets(logits, None, log_depth[..., 0], surface > 0.99)


def student_objective(
    student: StudentOutput,
    teacher: TeacherTargets | None,
    batch: Batch,
    config: ConfigDict,
    adapter: Callable[[Array], Array] | None = None,
    mean_of: str = DEPTH,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum and its terms (unweighted); `config` is the run's `objective` section.

    A term of weight 0 is not computed; without teacher only SILog remains. The term "feature"
    needs the `adapter` (`baselines.FeatureAdapter`); `mean_of` says how the student reads its bins.
    """
    supervise = silog_on_dense if config.supervision == "dense" else silog_on_lidar
    terms = {"silog": supervise(student.depth_m, batch, config)}
    if teacher is not None:
        cameras = batch["camera_mask"]
        pixels = cameras[..., None, None] & teacher.valid
        pool = functools.partial(view_relational.pool_tokens, grid=config.vrkd_grid)
        if config.ckd_divergence:
            terms["ckd_divergence"] = cross_interaction.bin_divergence(
                teacher.logits, student.bins.logits, pixels, config.ckd_temperature
            )
        if config.ckd_crossing or config.ckd_structure:
            centers_m = student.bins.centers_m
            crossed_m = cross_interaction.crossed_depth(teacher.logits, centers_m, mean_of)
        if config.ckd_crossing:
            terms["ckd_crossing"] = silog_on_lidar(crossed_m, batch, config)
        if config.ckd_structure:
            terms["ckd_structure"] = baselines.response_loss(teacher.log_depth, crossed_m, pixels)
        if config.vrkd:
            terms["vrkd"] = _vrkd(student, teacher, batch, config)
        if config.response:
            terms["response"] = baselines.response_loss(
                teacher.log_depth, student.bins.depth_m, pixels
            )
        if config.feature:
            tokens = adapter(pool(student.features))
            terms["feature"] = baselines.feature_loss(teacher.tokens, tokens, cameras)
        if config.pairwise:
            terms["pairwise"] = baselines.pairwise_loss(
                teacher.tokens, pool(student.features), cameras
            )
    total = sum((config[name] * value for name, value in terms.items()), start=jnp.zeros(()))
    return total, terms


def _vrkd(
    student: StudentOutput,
    teacher: TeacherTargets,
    batch: Batch,
    config: ConfigDict,
) -> Float[Array, ""]:
    """The view-relational term on what `vrkd_on` names, between the cameras `vrkd_pairs` names."""
    pool = functools.partial(view_relational.pool_tokens, grid=config.vrkd_grid)
    if config.vrkd_on == "probabilities":
        teacher_tokens = pool(jax.nn.softmax(teacher.logits))
        student_tokens = pool(jax.nn.softmax(student.bins.logits))
    else:
        teacher_tokens, student_tokens = teacher.tokens, pool(student.features)
    if config.vrkd_pairs == "all":
        pairs = view_relational.all_pairs(batch["camera_mask"])
    else:
        pairs = view_relational.adjacent_pairs(batch["neighbour"], batch["neighbour_mask"])
    return view_relational.view_relational_loss(
        teacher_tokens, student_tokens, pairs, config.vrkd_form, config.vrkd_temperature
    )


def silog_on_lidar(
    depth_m: Float[Array, "b n h w"], batch: Batch, config: ConfigDict
) -> Float[Array, ""]:
    """SILog of a depth map, at any resolution, at the batch's LiDAR points."""
    at_lidar = depth.sample_at_lidar(depth_m, batch["lidar_xy"], batch["image"].shape[2:4])
    valid = batch["lidar_depth_m"] > 0
    return depth.silog(at_lidar, batch["lidar_depth_m"], valid, config.silog_variance_focus)


def likelihood_on_lidar(
    logits: Float[Array, "b n h w k"], centers_m: Float[Array, "b n k"], batch: Batch
) -> Float[Array, ""]:
    """Negative log likelihood of the batch's LiDAR points under bins of any resolution."""
    read = jax.vmap(depth.sample_at_lidar, in_axes=(-1, None, None), out_axes=-1)
    logits = read(logits, batch["lidar_xy"], batch["image"].shape[2:4])
    centers_m = jnp.broadcast_to(centers_m[:, :, None], logits.shape)
    truth_m = batch["lidar_depth_m"]
    return depth.bin_likelihood(logits, centers_m, truth_m, truth_m > 0)


def silog_on_dense(
    depth_m: Float[Array, "b n h w"], batch: Batch, config: ConfigDict
) -> Float[Array, ""]:
    """SILog at every pixel of the miniature world's dense truth that has a surface."""
    truth_m = batch["dense_depth_m"]
    return depth.silog(depth_m, truth_m, truth_m > 0, config.silog_variance_focus)


def _resize_maps(
    maps: Float[Array, "b n h w k"], size: tuple[int, int]
) -> Float[Array, "b n h2 w2 k"]:
    """Bilinear resize of per-camera maps; the teacher may work at another resolution."""
    b, n, h, w, k = maps.shape
    if (h, w) == size:
        return maps
    return resize_bilinear(maps.reshape(b * n, h, w, k), size).reshape(b, n, *size, k)
