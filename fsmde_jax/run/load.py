"""Weights onto devices: a run's own, its teacher's, a foundation model's."""

import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsmde_jax.config import CONFIG_FILE, ConfigError, load_config
from fsmde_jax.errors import UserError
from fsmde_jax.models.weights import load, save
from fsmde_jax.run import checkpoints, identity, sharding
from fsmde_jax.run.state import Model
from fsmde_jax.tasks import build_student, foundation, make_task, teacher_head


def place_model(config: ConfigDict, model: Model, mesh: Mesh) -> tuple[Any, Any, str | None]:
    """(frozen, teacher_state, teacher's name) on the mesh, with the weights the config names.

    The name is the fingerprint of a foundation model whose head is trained.
    """
    frozen, teacher_state, name = model.frozen, model.teacher_state, None
    if config.teacher.weights == "random":
        trees = model.init_frozen()
        frozen, teacher_state = jax.device_put(trees, sharding.fsdp_sharding(trees, mesh))
    elif config.task == "teacher_head":
        frozen = load_teacher_weights(config, frozen, mesh)
    elif model.teacher_graphdef:
        teacher_state = load_teacher_weights(config, teacher_state, mesh)
    if config.task == "teacher_head":
        name = checkpoints.fingerprint(frozen)
    elif model.teacher_graphdef:
        label = config.teacher.size or config.teacher.weights
        fingerprint = checkpoints.fingerprint(teacher_state)
        name = f"{label}/{config.teacher.binning} {fingerprint}"
    return frozen, teacher_state, name


def load_trained(
    config: ConfigDict, model: Model, workdir: pathlib.Path, wanted: dict[str, Any]
) -> tuple[Any, Any]:
    """(parameters, batch statistics) of the newest checkpoint: their moving averages if kept."""
    items = ("ema", "ema_batch_stats") if config.optimizer.ema_decay else ("params", "batch_stats")
    params, batch_stats = (
        checkpoints.load_params(workdir, shapes, wanted, item)
        for shapes, item in zip((model.params, model.batch_stats), items, strict=True)
    )
    return params, batch_stats


def load_student(config: ConfigDict, workdir: pathlib.Path) -> nnx.Module:
    """The trained student of a run, ready to predict; needs no teacher and no data."""
    if config.task != "student":
        raise UserError(f"{workdir} trained a {config.task}, not a student")
    task = make_task(config)._replace(
        build_model=lambda rngs: build_student(config, rngs),  # without any adapter
        build_teacher=None,
    )
    model = Model(task, config.seed)
    wanted = {"task": "student", "student": identity.of_student(config)}
    params, batch_stats = load_trained(config, model, workdir, wanted)
    return model.merge(params, batch_stats, model.frozen, train=False)


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
    learned, kept = nnx.split_state(
        state, lambda path, value: teacher_head.learns(config, path, value), ...
    )
    parts = nnx.State({"foundation": loaded})
    frozen = _pick(parts, kept)
    folder = pathlib.Path(config.teacher.head_weights)
    wanted = identity.of_head(config, checkpoints.fingerprint(frozen))
    trained = checkpoints.load_params(folder, learned, wanted, told=_told_of_head(folder))
    trained = jax.device_put(trained, sharding.fsdp_sharding(trained, mesh))
    return nnx.merge_state(frozen, trained)


def load_foundation(config: ConfigDict, mesh: Mesh) -> nnx.State:
    """The foundation model's parameters on the mesh: of `teacher.weights`, or where it starts."""
    source = config.teacher.weights or config.teacher.start_weights
    architecture, _ = foundation.architecture(config)
    model = nnx.eval_shape(lambda: architecture.build(rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    shardings = sharding.fsdp_sharding(state, mesh)
    return load.load_foundation(source, architecture, state, shardings)


def save_foundation(config: ConfigDict, params: nnx.State, folder: pathlib.Path) -> None:
    """A trained foundation model as a checkpoint that `teacher.weights` can name.

    In half precision: half the size, rounded by at most 5e-4 of each weight.
    """
    save.save_foundation(folder, *foundation.architecture(config), params, dtype=np.float16)


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
    folder, wanted = pathlib.Path(config.teacher.head_weights), identity.of_head(config, None)
    del wanted["foundation"]
    try:
        checkpoints.load_params(folder, {}, wanted, told=_told_of_head(folder))
    except checkpoints.CheckpointError as error:
        raise ConfigError(
            f"config.teacher.head_weights={str(folder)!r} does not fit this run. {error}"
        ) from error


def _told_of_head(folder: pathlib.Path) -> dict[str, Any]:
    """The identity that a head's config.json tells, for what its checkpoint says nothing of."""
    return identity.of_head(load_config(folder), None) if (folder / CONFIG_FILE).is_file() else {}
