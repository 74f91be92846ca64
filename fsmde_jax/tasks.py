"""What a run trains: the student, the teacher's binning head, or a small foundation model.

A task names the model, which of its parameters learn, the frozen teacher beside it, the loss
and the depth that evaluation measures; `train.py` is the same for all.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fsmde_jax.config import CONFIG_FILE, ConfigError, load_config
from fsmde_jax.data import teacher_cache
from fsmde_jax.losses.baselines import FeatureAdapter
from fsmde_jax.losses.depth import affine_invariant_loss, scale_invariant_loss
from fsmde_jax.losses.objective import (
    DISTILLATION,
    TeacherTargets,
    likelihood_on_lidar,
    silog_on_lidar,
    student_objective,
    targets_of,
    true_targets,
)
from fsmde_jax.models import hub_config, weights
from fsmde_jax.models.foundation.dpt import DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing
from fsmde_jax.models.student import Student, StudentConfig
from fsmde_jax.models.teacher import Teacher
from fsmde_jax.run import checkpoints, sharding

Batch = dict[str, Array]

# Architectures by name: those of published checkpoints, and small ones to train here.
FOUNDATION_SIZES = {
    **hub_config.PUBLISHED,
    "dpt_mini": DPTConfig.dpt_mini(),
    "dpt_tiny": DPTConfig.dpt_tiny(),
    "mini": MiniConfig(),
}


# A teacher that knows: the miniature world's dense truth.
TRUTH = "truth"

# What lies between the backbone of a foundation model and its depth head.
NECK = ("reassemble_layers", "neck_convs", "fusion_layers", "decoder")


class Task(NamedTuple):
    """A model to train and what training and evaluation need beside it."""

    build_model: Callable[[nnx.Rngs], nnx.Module]
    # Which parameters learn: an nnx filter. The other ones are frozen and not saved.
    trainable: Any
    # None, or the frozen teacher the loss compares with.
    build_teacher: Callable[[nnx.Rngs], nnx.Module] | None
    # (model, teacher, batch) -> (loss, {name: term})
    loss: Callable[[nnx.Module, nnx.Module | None, Batch], tuple[Array, dict[str, Array]]]
    predict: Callable[[nnx.Module, Batch], Array]  # (model, batch) -> depth_m [b n h w]
    predicts_inverse: bool = False  # inverse depth, right up to scale and shift, instead
    needs_dense_depth: bool = False


def make_task(config: ConfigDict) -> Task:
    """The task that `config.task` names."""
    makers = {"student": _student, "teacher_head": _teacher_head, "foundation": _foundation}
    return makers[config.task](config)


def _student(config: ConfigDict) -> Task:
    objective = config.objective
    distils = any(objective[name] for name in DISTILLATION)
    truth_teaches = distils and config.teacher.weights == TRUTH

    def build(rngs):
        student = build_student(config, rngs)
        if objective.feature:
            # One more part of the student, so that it is trained and saved with it;
            # `state.load_student` leaves it out.
            student.adapter = FeatureAdapter(
                student.decoder[-1].conv.out_features,
                foundation(config)[0].feature_channels,
                rngs=rngs,
            )
        return student

    def loss(model, teacher, batch):
        student, targets = model(*student_inputs(batch)), None
        if truth_teaches:
            ratio = batch["intrinsics"][..., 0, 0] / config.student.canonical_focal_px
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
        build_model=build,
        trainable=nnx.Param,
        build_teacher=(
            (lambda rngs: build_teacher(config, rngs)) if distils and not truth_teaches else None
        ),
        loss=loss,
        predict=lambda model, batch: model(*student_inputs(batch)).depth_m,
        needs_dense_depth=truth_teaches or objective.supervision == "dense",
    )


def _teacher_head(config: ConfigDict) -> Task:
    """The binning head of the teacher on LiDAR (and its neck), the foundation model frozen."""

    objective = config.objective

    def learns(path, value) -> bool:
        in_neck = config.teacher.train_neck and path[1] in NECK
        return isinstance(value, nnx.Param) and (path[0] == "head" or in_neck)

    def loss(model, _, batch):
        output = model(*teacher_inputs(batch))
        terms = {"silog": silog_on_lidar(output.depth_m, batch, objective)}
        if objective.bin_likelihood:
            likelihood = likelihood_on_lidar(output.logits, output.centers_m, batch)
            terms["bin_likelihood"] = likelihood
        return sum(objective[name] * value for name, value in terms.items()), terms

    return Task(
        build_model=lambda rngs: build_teacher(config, rngs),
        trainable=learns,
        build_teacher=None,
        loss=loss,
        predict=lambda model, batch: model(*teacher_inputs(batch)).depth_m,
    )


def _foundation(config: ConfigDict) -> Task:
    """A relative-depth model on dense truth: unseen in metres, like MiDaS.

    Trained from scratch or from `teacher.start_weights`; one that `teacher.weights` names is only
    measured.
    """

    architecture, preprocessing = foundation(config)

    def inverse_depth(model, batch) -> Float[Array, "i h w"]:
        image = teacher_inputs(batch)[0]
        image = image.reshape(-1, *image.shape[2:])
        size = preprocessing.input_size(
            *image.shape[1:3], config.teacher.resize, architecture.patch_size
        )
        predicted = model(preprocessing(image, size)).prediction
        return 1.0 / predicted if architecture.predicts_metres else predicted

    def loss(model, _, batch):
        predicted = inverse_depth(model, batch)
        height, width = predicted.shape[1:]
        truth = batch["dense_depth_m"]
        truth = truth.reshape(-1, *truth.shape[2:])
        # The model's resolution may be a fraction of the image's; depth is not averaged.
        truth = truth[:, :: truth.shape[1] // height, :: truth.shape[2] // width]
        arguments = (
            predicted,
            1.0 / jnp.where(truth > 0, truth, 1.0),
            truth > 0,
            config.objective.foundation_gradient,
            config.objective.foundation_saturation,
        )
        terms = {
            "affine_invariant": affine_invariant_loss(*arguments),
            "scale_invariant": scale_invariant_loss(*arguments),
        }
        share = config.objective.foundation_scale
        total = (1 - share) * terms["affine_invariant"] + share * terms["scale_invariant"]
        return total, terms

    def predict(model, batch):
        prediction = inverse_depth(model, batch)
        return prediction.reshape(*batch["image"].shape[:2], *prediction.shape[1:])

    return Task(
        build_model=lambda rngs: architecture.build(rngs=rngs),
        trainable=nnx.Param,
        build_teacher=None,
        loss=loss,
        predict=predict,
        predicts_inverse=True,
        needs_dense_depth=True,
    )


def student_inputs(batch: Batch) -> tuple[Array, Array, Array]:
    """Image, intrinsics and camera mask for the student."""
    return batch["image"], batch["intrinsics"], batch["camera_mask"]


def teacher_inputs(batch: Batch) -> tuple[Array, Array, Array]:
    """Image, intrinsics and camera mask for the teacher, whose image may be another one."""
    image = batch.get("teacher_image", batch["image"])
    return image, batch["intrinsics"], batch["camera_mask"]


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
        mean_of=config.student.mean_of,
        rngs=rngs,
        dtype=jnp.dtype(config.train.dtype),
        **_head_options(config),
    )


def foundation(config: ConfigDict) -> tuple[DPTConfig | MiniConfig, Preprocessing]:
    """The foundation model's sizes and image processor: by name, or as its files say."""
    key = "start_weights" if config.teacher.start_weights else "weights"
    size, source = config.teacher.size, config.teacher[key]
    if size and size not in FOUNDATION_SIZES:
        raise ConfigError(
            f"config.teacher.size is {size!r}; use '' (as config.teacher.weights says) or one of "
            f"{sorted(FOUNDATION_SIZES)}"
        )
    if source in ("", "random"):
        if not size:
            raise ConfigError(
                f"config.teacher.{key}={source!r} does not say which architecture it is: set "
                f"config.teacher.size to one of {sorted(FOUNDATION_SIZES)}"
            )
        found = FOUNDATION_SIZES[size]
        preprocessing = hub_config.default_preprocessing(found)
    else:
        found, preprocessing = weights.read_foundation_config(source)
        if size and found != FOUNDATION_SIZES[size]:
            raise ConfigError(
                f"config.teacher.{key}={source!r} is {found}, but config.teacher.size={size!r} "
                f"is {FOUNDATION_SIZES[size]}"
            )
    if isinstance(found, DPTConfig):
        found = dataclasses.replace(found, position_offset=config.teacher.position_offset)
    return found, preprocessing


def build_teacher(config: ConfigDict, rngs: nnx.Rngs) -> Teacher:
    """The teacher's modules with fresh parameters; `load_teacher_weights` fills them."""
    return Teacher(
        *foundation(config),
        resize=config.teacher.resize,
        binning=config.teacher.binning,
        num_bins=config.bins.num_bins,
        canonical_focal_px=config.student.canonical_focal_px,
        soft_range=config.teacher.soft_range,
        soft_temperature=config.teacher.soft_temperature,
        head_options=_head_options(config),
        rngs=rngs,
        dtype=jnp.dtype(config.teacher.dtype),
    )


def load_teacher_weights(config: ConfigDict, state: nnx.State, mesh: Mesh) -> nnx.State:
    """`teacher.weights` and, for a trained head, `teacher.head_weights`, on the mesh.

    `state` gives the structure: of the whole teacher, or of what stays frozen while its head
    is trained.
    """
    loaded = load_foundation(config, mesh)
    if "head" not in state:
        return nnx.State({"foundation": _pick(loaded, state["foundation"])})
    if not config.teacher.head_weights:
        raise ConfigError(
            "config.teacher.binning='head' needs a trained binning head: set "
            "config.teacher.head_weights to the folder of a 'teacher_head' run, name that "
            "run's config as config.teacher.head_stage, or use config.teacher.binning='soft'"
        )
    task = _teacher_head(config)
    learned, kept = nnx.split_state(state, task.trainable, ...)
    parts = nnx.State({"foundation": loaded})
    frozen = _pick(parts, kept)
    folder = pathlib.Path(config.teacher.head_weights)
    identity = _head_identity(config, checkpoints.fingerprint(frozen))
    trained = checkpoints.load_params(folder, learned, identity, told=_told_of_head(folder))
    trained = jax.device_put(trained, sharding.fsdp_sharding(trained, mesh))
    return nnx.merge_state(frozen, trained)


def is_given(config: ConfigDict) -> bool:
    """Whether the config's own model needs no training: a foundation model of named weights."""
    return config.task == "foundation" and config.teacher.weights not in ("", "random")


def save_foundation(config: ConfigDict, params: nnx.State, folder: pathlib.Path) -> None:
    """A trained foundation model as a checkpoint that `teacher.weights` can name.

    In half precision: half the size, rounded by at most 5e-4 of each weight.
    """
    weights.save_foundation(folder, *foundation(config), params, dtype=np.float16)


def load_foundation(config: ConfigDict, mesh: Mesh) -> nnx.State:
    """The foundation model's parameters on the mesh: of `teacher.weights`, or where it starts."""
    source = config.teacher.weights or config.teacher.start_weights
    architecture, _ = foundation(config)
    model = nnx.eval_shape(lambda: architecture.build(rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    shardings = sharding.fsdp_sharding(state, mesh)
    return weights.load_foundation(source, architecture, state, shardings)


def with_pretrained_neck(config: ConfigDict, params: nnx.State, mesh: Mesh) -> nnx.State:
    """Fresh parameters of a 'teacher_head' run whose neck starts as `teacher.weights` has it."""
    loaded = nnx.State({"foundation": load_foundation(config, mesh)})
    neck = _pick(loaded, nnx.State({"foundation": params["foundation"]}))
    return nnx.merge_state(params, neck)


def _pick(state: nnx.State, like: nnx.State) -> nnx.State:
    """The leaves of `state` whose paths `like` has."""
    found = dict(nnx.to_flat_state(state))
    return nnx.from_flat_state([(path, found[path]) for path, _ in nnx.to_flat_state(like)])


def check_head(config: ConfigDict) -> None:
    """Refuses `teacher.head_weights` that do not fit the run, as far as its config says.

    Whether its foundation model is the teacher's is asked when that is read.
    """
    folder, identity = pathlib.Path(config.teacher.head_weights), _head_identity(config, None)
    del identity["foundation"]
    try:
        checkpoints.load_params(folder, {}, identity, told=_told_of_head(folder))
    except checkpoints.CheckpointError as error:
        raise ConfigError(
            f"config.teacher.head_weights={str(folder)!r} does not fit this run. {error}"
        ) from error


def _head_identity(config: ConfigDict, foundation_fingerprint: str | None) -> dict[str, Any]:
    """What a trained binning head must share with the teacher that takes it."""
    return {
        "task": "teacher_head",
        "bins": config.bins.to_dict(),  # how centers are made, too
        "min_depth_m": config.data.min_depth_m,
        "max_depth_m": config.data.max_depth_m,
        "canonical_focal_px": config.student.canonical_focal_px,
        "neck": config.teacher.train_neck,
        "foundation": foundation_fingerprint,
    }


def _told_of_head(folder: pathlib.Path) -> dict[str, Any]:
    """The identity that a head's config.json tells, for what its checkpoint says nothing of."""
    return _head_identity(load_config(folder), None) if (folder / CONFIG_FILE).is_file() else {}


def identity(config: ConfigDict, teacher: str | None) -> dict[str, Any]:
    """What a checkpoint must share with a config to go on with it, in words a user can compare.

    `teacher` is the third that `state.place_model` returns.
    """
    dataset = {"dataset": config.data.dataset}
    if config.task == "teacher_head":
        return _head_identity(config, teacher) | dataset
    if config.task == "foundation":
        return {"task": "foundation", "foundation": config.teacher.size} | dataset
    sizes = {"student": config.student.to_dict(), "bins": config.bins.to_dict()}
    # None where there is none, as in a checkpoint from before there were adapters.
    adapter = {"feature_adapter": True if config.objective.feature else None}
    if config.teacher.weights == TRUTH:
        teacher = TRUTH
    return {"task": "student"} | sizes | dataset | {"teacher": teacher} | adapter


def count_parameters(state: Any) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(state))
