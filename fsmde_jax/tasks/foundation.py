"""The task of a small foundation model: relative depth on the miniature world's dense truth."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fsmde_jax.config import ConfigError
from fsmde_jax.losses.depth import affine_invariant_loss, scale_invariant_loss
from fsmde_jax.models.foundation.dpt import DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing
from fsmde_jax.models.weights import hub_config, load
from fsmde_jax.tasks.task import Task

# Architectures by name: those of published checkpoints, and small ones to train here.
FOUNDATION_SIZES = {
    **hub_config.PUBLISHED,
    "dpt_mini": DPTConfig.dpt_mini(),
    "dpt_tiny": DPTConfig.dpt_tiny(),
    "mini": MiniConfig(),
}


def make(config: ConfigDict) -> Task:
    """A relative-depth model on dense truth: unseen in metres, like MiDaS.

    Trained from scratch or from `teacher.start_weights`; one that `teacher.weights` names is only
    measured.
    """

    model_config, preprocessing = architecture(config)

    def inverse_depth(model, batch) -> Float[Array, "i h w"]:
        image = batch.get("teacher_image", batch["image"])
        image = image.reshape(-1, *image.shape[2:])
        size = preprocessing.input_size(
            *image.shape[1:3], config.teacher.resize, model_config.patch_size
        )
        predicted = model(preprocessing(image, size)).prediction
        return 1.0 / predicted if model_config.predicts_metres else predicted

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
        build_model=lambda rngs: model_config.build(rngs=rngs),
        trainable=nnx.Param,
        build_teacher=None,
        loss=loss,
        predict=predict,
        predicts_inverse=True,
        needs_dense_depth=True,
    )


def architecture(config: ConfigDict) -> tuple[DPTConfig | MiniConfig, Preprocessing]:
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
        found, preprocessing = load.read_foundation_config(source)
        if size and found != FOUNDATION_SIZES[size]:
            raise ConfigError(
                f"config.teacher.{key}={source!r} is {found}, but config.teacher.size={size!r} "
                f"is {FOUNDATION_SIZES[size]}"
            )
    if isinstance(found, DPTConfig):
        found = dataclasses.replace(found, position_offset=config.teacher.position_offset)
    return found, preprocessing


def is_given(config: ConfigDict) -> bool:
    """Whether the config's own model needs no training: a foundation model of named weights."""
    return config.task == "foundation" and config.teacher.weights not in ("", "random")
