"""The contents of a teacher-cache entry, and the cache that a config names.

`cache_teacher/fill.py` makes the cache, `data/teacher_cache.py` is its format.
"""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from fsmde_jax.data import pipeline, prepared, teacher_cache
from fsmde_jax.losses.objective import targets_of
from fsmde_jax.run.state import Model
from fsmde_jax.tasks import student_inputs, teacher_inputs


def describe(config: ConfigDict, model: Model, teacher_name: str) -> dict[str, Any]:
    """What the stored outputs depend on, as cache.json has it."""
    source, cameras = pipeline.open_data(config.data, config.data.train_split)
    from_prepared = config.teacher.image == "prepared"
    first = pipeline.place_on_rig(
        pipeline.shrink(pipeline.read_sample(source, 0), config.data.downscale, from_prepared),
        cameras,
        num_points=1,
        rng=np.random.default_rng(0),
    )
    one = {name: jax.ShapeDtypeStruct((1, *a.shape), a.dtype) for name, a in first.items()}
    encoded = jax.eval_shape(functools.partial(encode, config, model), model.teacher_state, one)
    image = first["teacher_image" if from_prepared else "image"]
    soft_bins = None  # a trained head is part of the teacher's name
    if config.teacher.binning == "soft":
        soft_bins = [*config.teacher.soft_range, config.teacher.soft_temperature]
    return {
        "teacher": teacher_name,
        "dataset": f"{config.data.dataset}/{config.data.config_name}/{prepared.IMAGES_VERSION}",
        "split": config.data.train_split,
        "samples": len(source),
        "cameras": list(cameras),
        "image_size": list(image.shape[1:3]),
        "resize": config.teacher.resize,
        "position_offset": config.teacher.position_offset,
        "num_bins": config.bins.num_bins,
        "soft_bins": soft_bins,
        "vrkd_grid": list(config.objective.vrkd_grid),
        "flips": config.data.flip_probability > 0,
        "shapes": {name: list(leaf.shape[1:]) for name, leaf in encoded.items()},
    }


def encode(config: ConfigDict, model: Model, teacher_state, batch) -> dict[str, Array]:
    """What is stored of a batch: for any weights of the objective, so one cache serves them all."""

    # Of the student only the resolution of its bins matters.
    def student(params, batch_stats, frozen, batch):
        module = model.merge(params, batch_stats, frozen, train=False)
        return module(*student_inputs(batch))

    shapes = (model.params, model.batch_stats, model.frozen)
    output = jax.eval_shape(student, *shapes, batch)
    teacher = model.merge_teacher(teacher_state)(*teacher_inputs(batch))
    targets = targets_of(teacher, output.bins.logits.shape[2:4], config.objective)
    stored = (
        teacher_cache.encode(targets.logits),
        targets.tokens.astype("float16"),
        targets.log_depth.astype("float16"),
    )
    return dict(zip(teacher_cache.FIELDS, stored, strict=True))


def command(config: ConfigDict) -> str:
    """What makes the cache of a config."""
    return f"python -m fsmde_jax.cache_teacher with the config of {config.name!r}"


def open_cache(config: ConfigDict, model: Model, teacher_name: str) -> teacher_cache.TeacherCache:
    """The stored outputs of this teacher for this config; anything else is refused."""
    directory = teacher_cache.directory_of(config)
    teacher_cache.check(directory, describe(config, model, teacher_name), command(config))
    return teacher_cache.TeacherCache(directory)
