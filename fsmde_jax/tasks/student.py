"""The student's task: depth in metres, taught by LiDAR and by distillation."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from fsmde_jax.config import TRUTH, input_focal_px
from fsmde_jax.data import teacher_cache
from fsmde_jax.data.batch import Batch
from fsmde_jax.losses.baselines import FeatureAdapter
from fsmde_jax.losses.objective import (
    DISTILLATION,
    TeacherTargets,
    student_objective,
    targets_of,
    true_targets,
)
from fsmde_jax.models.student import Student, StudentConfig
from fsmde_jax.tasks import foundation
from fsmde_jax.tasks.task import Task
from fsmde_jax.tasks.teacher_head import build_teacher, head_options, teacher_inputs


def make(config: ConfigDict) -> Task:
    """The student, its teacher if an objective needs one, and the weighed objective."""
    objective = config.objective
    distils = any(objective[name] for name in DISTILLATION)
    truth_teaches = distils and config.teacher.weights == TRUTH

    def build_model(rngs):
        student = build_student(config, rngs)
        if objective.feature:
            # One more part of the student, so that it is trained and saved with it;
            # `run.load.load_student` leaves it out.
            student.adapter = FeatureAdapter(
                student.decoder[-1].conv.out_features,
                foundation.architecture(config)[0].feature_channels,
                rngs=rngs,
            )
        return student

    def loss(model, teacher, batch):
        student, targets = model(*student_inputs(batch)), None
        if truth_teaches:
            ratio = batch["intrinsics"][..., 0, 0] / input_focal_px(config)
            targets = true_targets(
                batch["dense_depth_m"],
                jnp.where(batch["camera_mask"], ratio, 1.0),
                student.bins.logits.shape[2:4],
                config.bins.num_bins,
                (math.log(config.data.min_depth_m), math.log(config.data.max_depth_m)),
            )
        elif "teacher_roots" in batch:
            roots, tokens, log_depth = (batch[name] for name in teacher_cache.FIELDS)
            targets = TeacherTargets(
                teacher_cache.decode(roots),
                tokens.astype(jnp.float32),
                log_depth.astype(jnp.float32),
            )
        elif teacher:
            size = student.bins.logits.shape[2:4]
            targets = targets_of(teacher(*teacher_inputs(batch)), size, objective)
        adapter = model.adapter if objective.feature else None
        mean_of = config.student.mean_of
        return student_objective(student, targets, batch, objective, adapter, mean_of)

    return Task(
        build_model=build_model,
        trainable=nnx.Param,
        build_teacher=(
            (lambda rngs: build_teacher(config, rngs)) if distils and not truth_teaches else None
        ),
        loss=loss,
        predict=lambda model, batch: model(*student_inputs(batch)).depth_m,
        needs_dense_depth=truth_teaches or objective.supervision == "dense",
    )


def student_inputs(batch: Batch) -> tuple[Array, Array, Array]:
    """Image, intrinsics and camera mask for the student."""
    return batch["image"], batch["intrinsics"], batch["camera_mask"]


def build_student(config: ConfigDict, rngs: nnx.Rngs) -> Student:
    """A fresh student."""
    return Student(
        StudentConfig.named(config.student.size),
        num_bins=config.bins.num_bins,
        canonical_focal_px=input_focal_px(config),
        mean_of=config.student.mean_of,
        rngs=rngs,
        dtype=jnp.dtype(config.train.dtype),
        **head_options(config),
    )
