"""What a run trains: the student, the teacher's binning head, or a small foundation model.

A task names the model, which of its parameters learn, the frozen teacher beside it, the loss
and the depth that evaluation measures; `train.py` is the same for all.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fsmde_jax import checkpoints
from fsmde_jax.config import ConfigError
from fsmde_jax.losses.depth import affine_invariant_loss
from fsmde_jax.losses.objective import silog_on_lidar, student_objective
from fsmde_jax.models import weights
from fsmde_jax.models.dpt import DPT, DPTConfig, normalise
from fsmde_jax.models.student import Student, StudentConfig
from fsmde_jax.models.teacher import Teacher, relative_depth

Batch = dict[str, Array]


class Task(NamedTuple):
    """A model to train and what training and evaluation need beside it."""

    build_model: Callable[[nnx.Rngs], nnx.Module]
    # Which parameters learn: an nnx filter. The other ones are frozen and not saved.
    trainable: Any
    # None, or the frozen teacher the loss compares with.
    build_teacher: Callable[[nnx.Rngs], nnx.Module] | None
    # (model, teacher, batch) -> (loss, {name: term})
    loss: Callable[[nnx.Module, nnx.Module | None, Batch], tuple[Array, dict[str, Array]]]
    # (model, batch) -> depth_m [b n h w]
    predict: Callable[[nnx.Module, Batch], Array]
    median_scaling: bool  # whether the prediction is only up to scale
    needs_dense_depth: bool = False


def make_task(config: ConfigDict) -> Task:
    """The task that `config.task` names."""
    makers = {"student": _student, "teacher_head": _teacher_head, "foundation": _foundation}
    return makers[config.task](config)


def _student(config: ConfigDict) -> Task:
    objective = config.objective
    distils = any(objective[name] for name in ("ckd_divergence", "ckd_crossing", "vrkd"))

    def loss(model, teacher, batch):
        output = teacher(*_inputs(batch)) if teacher else None
        return student_objective(model(*_inputs(batch)), output, batch, objective)

    return Task(
        build_model=lambda rngs: build_student(config, rngs),
        trainable=nnx.Param,
        build_teacher=(lambda rngs: build_teacher(config, rngs)) if distils else None,
        loss=loss,
        predict=lambda model, batch: model(*_inputs(batch)).depth_m,
        median_scaling=False,
    )


def _teacher_head(config: ConfigDict) -> Task:
    """The binning head of the teacher on LiDAR, the foundation model frozen."""

    def loss(model, _, batch):
        silog = silog_on_lidar(model(*_inputs(batch)).depth_m, batch, config.objective)
        return silog, {"silog": silog}

    return Task(
        build_model=lambda rngs: build_teacher(config, rngs),
        trainable=lambda path, value: path[0] == "head" and isinstance(value, nnx.Param),
        build_teacher=None,
        loss=loss,
        predict=lambda model, batch: model(*_inputs(batch)).depth_m,
        median_scaling=False,
    )


def _foundation(config: ConfigDict) -> Task:
    """A relative-depth model on dense truth: unseen in metres, like MiDaS."""

    def inverse_depth(model, batch) -> Float[Array, "i h w"]:
        image = batch["image"]
        return model(normalise(image.reshape(-1, *image.shape[2:]))).inverse_depth

    def loss(model, _, batch):
        predicted = inverse_depth(model, batch)
        height, width = predicted.shape[1:]
        truth = batch["dense_depth_m"]
        truth = truth.reshape(-1, *truth.shape[2:])
        # The model's resolution may be a fraction of the image's; depth is not averaged.
        truth = truth[:, :: truth.shape[1] // height, :: truth.shape[2] // width]
        value = affine_invariant_loss(
            predicted,
            1.0 / jnp.where(truth > 0, truth, 1.0),
            truth > 0,
            config.objective.foundation_gradient,
        )
        return value, {"affine_invariant": value}

    def predict(model, batch):
        depth = relative_depth(inverse_depth(model, batch))
        return depth.reshape(*batch["image"].shape[:2], *depth.shape[1:])

    return Task(
        build_model=lambda rngs: DPT(foundation_config(config), rngs=rngs),
        trainable=nnx.Param,
        build_teacher=None,
        loss=loss,
        predict=predict,
        median_scaling=True,
        needs_dense_depth=True,
    )


def _inputs(batch: Batch) -> tuple[Array, Array, Array]:
    return batch["image"], batch["intrinsics"], batch["camera_mask"]


def _head_options(config: ConfigDict) -> dict:
    return {
        "min_depth_m": config.data.min_depth_m,
        "max_depth_m": config.data.max_depth_m,
        "centers_of": config.bins.centers_of,
        "centers_kind": config.bins.centers_kind,
    }


def build_student(config: ConfigDict, rngs: nnx.Rngs) -> Student:
    """A fresh student."""
    return Student(
        StudentConfig.named(config.student.size),
        num_bins=config.bins.num_bins,
        canonical_focal_px=config.student.canonical_focal_px,
        rngs=rngs,
        dtype=jnp.dtype(config.train.dtype),
        **_head_options(config),
    )


def foundation_config(config: ConfigDict) -> DPTConfig:
    """The foundation model's sizes by name."""
    sizes = {"dpt_large": DPTConfig.dpt_large, "dpt_tiny": DPTConfig.dpt_tiny}
    if config.teacher.size not in sizes:
        raise ConfigError(
            f"config.teacher.size is {config.teacher.size!r}; use one of {sorted(sizes)}"
        )
    return sizes[config.teacher.size]()


def build_teacher(config: ConfigDict, rngs: nnx.Rngs) -> Teacher:
    """The teacher's modules with fresh parameters; `load_teacher_weights` fills them."""
    return Teacher(
        foundation_config(config),
        binning=config.teacher.binning,
        num_bins=config.bins.num_bins,
        canonical_focal_px=config.student.canonical_focal_px,
        soft_range=config.teacher.soft_range,
        soft_temperature=config.teacher.soft_temperature,
        head_options=_head_options(config),
        rngs=rngs,
        dtype=jnp.dtype(config.teacher.dtype),
    )


def load_teacher_weights(config: ConfigDict, state: nnx.State) -> nnx.State:
    """`teacher.weights` and, for a trained head, `teacher.head_weights`, on the host.

    `state` gives the structure: of the whole teacher, or of what stays frozen while its head
    is trained.
    """
    parts = {"foundation": _foundation_weights(config, state["foundation"])}
    if "head" in state:
        if not config.teacher.head_weights:
            raise ConfigError(
                "config.teacher.binning='head' needs a trained binning head: set "
                "config.teacher.head_weights to the folder of a 'teacher_head' run, name that "
                "run's config as config.teacher.stages.head, or use config.teacher.binning='soft'"
            )
        folder = pathlib.Path(config.teacher.head_weights)
        identity = {"task": "teacher_head", "bins": config.bins.to_dict()}
        parts["head"] = checkpoints.load_params(folder, {"head": state["head"]}, identity)["head"]
    return nnx.State(parts)


def _foundation_weights(config: ConfigDict, state: nnx.State) -> nnx.State:
    source = config.teacher.weights
    folder = pathlib.Path(source).expanduser()
    if (folder / "checkpoints").is_dir():
        identity = {"task": "foundation", "foundation": config.teacher.size}
        return checkpoints.load_params(folder, state, identity)
    loaded_config, loaded = weights.load_dpt(source)
    if loaded_config != foundation_config(config):
        raise ConfigError(
            f"config.teacher.weights={source!r} is {loaded_config}, but config.teacher.size="
            f"{config.teacher.size!r} is {foundation_config(config)}"
        )
    return loaded


def identity(config: ConfigDict, teacher_fingerprint: str | None) -> dict[str, Any]:
    """What a checkpoint must share with a config to go on with it, in words a user can compare."""
    trained: dict[str, Any] = {"task": config.task}
    if config.task == "student":
        trained |= {"student": config.student.to_dict(), "bins": config.bins.to_dict()}
    if config.task == "teacher_head":
        trained |= {"bins": config.bins.to_dict()}
    if config.task in ("teacher_head", "foundation"):
        trained |= {"foundation": config.teacher.size}
    trained["dataset"] = config.data.dataset
    trained["teacher"] = teacher_fingerprint
    return trained


def count_parameters(state: Any) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(state))
