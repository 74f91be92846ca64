"""The task of the teacher's binning head: LiDAR on a frozen foundation model."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from fsmde_jax.config import input_focal_px
from fsmde_jax.data.batch import Batch
from fsmde_jax.losses.objective import likelihood_on_lidar, silog_on_lidar
from fsmde_jax.models.teacher import Teacher
from fsmde_jax.tasks import foundation
from fsmde_jax.tasks.task import Task

# What lies between the backbone of a foundation model and its depth head.
NECK = ("reassemble_layers", "neck_convs", "fusion_layers", "decoder")


def make(config: ConfigDict) -> Task:
    """The binning head of the teacher on LiDAR (and its neck), the foundation model frozen."""

    objective = config.objective

    def loss(model, _, batch):
        output = model(*teacher_inputs(batch))
        terms = {"silog": silog_on_lidar(output.depth_m, batch, objective)}
        if objective.bin_likelihood:
            likelihood = likelihood_on_lidar(output.logits, output.centers_m, batch)
            terms["bin_likelihood"] = likelihood
        return sum(objective[name] * value for name, value in terms.items()), terms

    return Task(
        build_model=lambda rngs: build_teacher(config, rngs),
        trainable=lambda path, value: learns(config, path, value),
        build_teacher=None,
        loss=loss,
        predict=lambda model, batch: model(*teacher_inputs(batch)).depth_m,
    )


def learns(config: ConfigDict, path: tuple, value: nnx.Variable) -> bool:
    """Whether a variable of the teacher is trained: the head's, and the neck's if asked."""
    in_neck = config.teacher.train_neck and path[1] in NECK
    return isinstance(value, nnx.Param) and (path[0] == "head" or in_neck)


def teacher_inputs(batch: Batch) -> tuple[Array, Array, Array]:
    """Image, intrinsics and camera mask for the teacher, whose image may be another one."""
    image = batch.get("teacher_image", batch["image"])
    return image, batch["intrinsics"], batch["camera_mask"]


def build_teacher(config: ConfigDict, rngs: nnx.Rngs) -> Teacher:
    """The teacher's modules with fresh parameters; `run/load.py` fills them."""
    return Teacher(
        *foundation.architecture(config),
        resize=config.teacher.resize,
        binning=config.teacher.binning,
        num_bins=config.bins.num_bins,
        canonical_focal_px=input_focal_px(config),
        soft_range=config.teacher.soft_range,
        soft_temperature=config.teacher.soft_temperature,
        head_options=head_options(config),
        rngs=rngs,
        dtype=jnp.dtype(config.teacher.dtype),
    )


def head_options(config: ConfigDict) -> dict:
    """Arguments of a `BinningHead` that teacher and student share."""
    return {
        "min_depth_m": config.data.min_depth_m,
        "max_depth_m": config.data.max_depth_m,
        "centers_of": config.bins.centers_of,
        "centers_kind": config.bins.centers_kind,
    }
