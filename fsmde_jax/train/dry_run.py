"""`--dry_run`: what a config builds and how much memory it takes, without data or weights.

Modules are abstract (shapes only) and the step is compiled, not run, so that a model fits here
which the machine could not train.
"""

import functools
import re
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsmde_jax.config import ConfigError
from fsmde_jax.data import batch as batch_schema
from fsmde_jax.data import pipeline
from fsmde_jax.models.weights import hub_config
from fsmde_jax.run import sharding, teacher_outputs
from fsmde_jax.run.state import Model, count_parameters, init_state
from fsmde_jax.tasks import Task, make_task
from fsmde_jax.train.step import make_optimizer, make_train_step

GIB = 2.0**30


def report(config: ConfigDict) -> str:
    """Modules with parameter counts, the batch's shapes, the step's memory a device."""
    mesh = sharding.make_mesh(config.mesh)
    config = with_random_teacher(config)
    task = make_task(config)
    model = Model(task, config.seed)
    batch = batch_shapes(config, task, model)
    if config.teacher.source == "cached":
        model.teacher_state = {}  # its stored outputs take its place
    lines = [f"{config.name}: task {config.task}, {mesh.size} device(s), {dict(mesh.shape)}", ""]
    lines += _modules("trained", model.params)
    lines += _modules("frozen", model.frozen) + _modules("teacher", model.teacher_state)
    lines += ["", "batch:"]
    lines += [f"  {name:20s} {leaf.dtype!s:8s} {leaf.shape}" for name, leaf in batch.items()]
    lines += ["", "compiling the step ..."]
    print("\n".join(lines), flush=True)
    return _memory(config, task, model, mesh, batch)


def with_random_teacher(config: ConfigDict) -> ConfigDict:
    """The config with random weights in place of published ones: known without a network."""
    config = config.copy_and_resolve_references()
    if config.teacher.weights in hub_config.PUBLISHED:
        config.teacher.size = config.teacher.size or config.teacher.weights
        config.teacher.weights = "random"
    return config


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Cameras, height and width of the student's input; the prepared size is in its name."""
    height, width = (int(x) // config.data.downscale for x in _prepared_size(config))
    # Only an own rig's cameras are not in the config; then its data must be there.
    cameras = config.data.cameras or pipeline.open_data(config.data, config.data.train_split)[1]
    return len(cameras), height, width


def batch_shapes(config: ConfigDict, task: Task, model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of this config's training batch."""
    n, height, width = image_shape(config)
    sizes = {"b": config.data.batch_size, "n": n, "h": height, "w": width}
    sizes["p"] = config.data.points_per_image
    names = list(batch_schema.TRAINING)
    if config.teacher.image == "prepared":
        sizes["hp"], sizes["wp"] = map(int, _prepared_size(config))
        names.append("teacher_image")
    if task.needs_dense_depth:
        names.append("dense_depth_m")
    batch = batch_schema.shapes(names, sizes)
    if config.teacher.source == "cached" and model.teacher_graphdef:
        encode = functools.partial(teacher_outputs.encode, config, model)
        batch |= jax.eval_shape(encode, model.teacher_state, batch)
    return batch


def _prepared_size(config: ConfigDict) -> list[str]:
    """Height and width in a name like "384x640" or "pretrain_96x160_dense"."""
    found = re.search(r"(\d+)x(\d+)", config.data.config_name)
    if not found:
        raise ConfigError(
            f"config.data.config_name={config.data.config_name!r} names no size like 384x640"
        )
    return list(found.groups())


def _modules(title: str, state: Any) -> list[str]:
    """A line a top-level module: name and parameters."""
    if not jax.tree.leaves(state):
        return []
    lines = [f"{title}: {count_parameters(state) / 1e6:.2f} M parameters"]
    for name, part in state.items():
        lines.append(f"  {name:20s} {count_parameters(part) / 1e6:10.3f} M")
    return lines


def _memory(config: ConfigDict, task: Task, model: Model, mesh: Mesh, batch: dict) -> str:
    """Bytes by the compiler's own analysis of the sharded step."""
    state = nnx.eval_shape(
        lambda params, stats: init_state(
            params, stats, make_optimizer(config), config.optimizer.ema_decay > 0
        ),
        model.params,
        model.batch_stats,
    )
    place = lambda tree, shardings: jax.tree.map(  # noqa: E731
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings
    )
    everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    split = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
    frozen, teacher = model.frozen, model.teacher_state
    step = make_train_step(config, task, model, mesh)
    _, compiled = step.compile(
        place(state, everywhere),
        place(frozen, sharding.fsdp_sharding(frozen, mesh)),
        place(teacher, sharding.fsdp_sharding(teacher, mesh)),
        place(batch, split),
    )
    memory = compiled.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return (
        f"memory of the step per device, by the compiler for {jax.devices()[0].platform}: "
        f"{total / GIB:.2f} GiB\n"
        f"  arguments {memory.argument_size_in_bytes / GIB:.2f} GiB (state, teacher, batch), of "
        f"which {memory.alias_size_in_bytes / GIB:.2f} GiB are updated in place\n"
        f"  temporary {memory.temp_size_in_bytes / GIB:.2f} GiB (activations)"
    )
