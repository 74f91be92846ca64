"""The student's objective: supervision, cross-interaction and view-relational terms, weighed."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fsmde_jax.losses import cross_interaction, depth, view_relational
from fsmde_jax.models.resize import resize_bilinear
from fsmde_jax.models.student import StudentOutput
from fsmde_jax.models.teacher import TeacherOutput


class TeacherTargets(NamedTuple):
    """What distillation reads of a teacher."""

    logits: Float[Array, "b n h w k"]  # of bin probabilities, at the resolution of the student's
    tokens: Float[Array, "b n t c"]  # pooled features of unit length


def targets_of(
    teacher: TeacherOutput, bins_size: tuple[int, int], config: ConfigDict
) -> TeacherTargets:
    """Targets from a teacher's output; `config` is the run's `objective` section."""
    return TeacherTargets(
        _resize_maps(teacher.logits, bins_size),
        view_relational.pool_tokens(teacher.features, config.vrkd_grid),
    )


def student_objective(
    student: StudentOutput,
    teacher: TeacherTargets | None,
    batch: dict[str, Array],
    config: ConfigDict,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum and its terms (unweighted); `config` is the run's `objective` section.

    A term of weight 0 is not computed; without teacher only SILog remains.
    """
    terms = {"silog": silog_on_lidar(student.depth_m, batch, config)}
    if teacher is not None:
        if config.ckd_divergence:
            terms["ckd_divergence"] = cross_interaction.bin_divergence(
                teacher.logits, student.bins.logits, batch["camera_mask"], config.ckd_temperature
            )
        if config.ckd_crossing:
            crossed_m = cross_interaction.crossed_depth(teacher.logits, student.bins.centers_m)
            terms["ckd_crossing"] = silog_on_lidar(crossed_m, batch, config)
        if config.vrkd:
            terms["vrkd"] = view_relational.view_relational_loss(
                teacher.tokens,
                view_relational.pool_tokens(student.features, config.vrkd_grid),
                batch["neighbour"],
                batch["neighbour_mask"],
                config.vrkd_form,
                config.vrkd_temperature,
            )
    total = sum((config[name] * value for name, value in terms.items()), start=jnp.zeros(()))
    return total, terms


def silog_on_lidar(
    depth_m: Float[Array, "b n h w"], batch: dict[str, Array], config: ConfigDict
) -> Float[Array, ""]:
    """SILog of a depth map, at any resolution, at the batch's LiDAR points."""
    at_lidar = depth.sample_at_lidar(depth_m, batch["lidar_xy"], batch["image"].shape[2:4])
    valid = batch["lidar_depth_m"] > 0
    return depth.silog(at_lidar, batch["lidar_depth_m"], valid, config.silog_variance_focus)


def _resize_maps(
    maps: Float[Array, "b n h w k"], size: tuple[int, int]
) -> Float[Array, "b n h2 w2 k"]:
    """Bilinear resize of per-camera maps; the teacher may work at another resolution."""
    b, n, h, w, k = maps.shape
    if (h, w) == size:
        return maps
    return resize_bilinear(maps.reshape(b * n, h, w, k), size).reshape(b, n, *size, k)
