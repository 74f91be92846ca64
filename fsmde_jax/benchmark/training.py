"""A student's training step: supervised, with a cached and an online teacher, and in torch."""

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fsmde_jax.benchmark import timing
from fsmde_jax.benchmark.contestant import Contestant, counts_of, random_teacher, speed_columns
from fsmde_jax.benchmark.timing import Rows
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.models.encoders.resnet import ResNet
from fsmde_jax.run import sharding
from fsmde_jax.run.state import Model, init_state
from fsmde_jax.tasks import build_student, make_task
from fsmde_jax.train import dry_run
from fsmde_jax.train.step import make_optimizer, make_train_step


def measure(config: ConfigDict, repeats: int, ceilings: timing.Ceilings) -> Rows:
    """A row for each kind of training step, on a random batch.

    Args:
      repeats: so many turns.
      ceilings: the device's.
    """
    runs = {
        "supervised, jax": _step(config, **dict.fromkeys(DISTILLATION, 0.0)),
        "cached teacher, jax": _step(config, source="cached"),
        "online teacher, jax": _step(config),
        **_torch_steps(config),
    }
    times = timing.in_turns({name: one.run for name, one in runs.items()}, repeats)
    supervised_s = times["supervised, jax"].median_s
    return [
        {
            "step": name,
            **speed_columns(one, times[name], ceilings),
            "times supervised": times[name].median_s / supervised_s,
        }
        for name, one in runs.items()
    ]


def _step(config: ConfigDict, source: str = "online", **objective: float) -> Contestant:
    """Every run is one more step, always on the same batch of random values."""
    config = config.copy_and_resolve_references()
    config.objective.update(objective)
    config.teacher.source = source
    mesh, task = sharding.make_mesh(config.mesh), make_task(config)
    model = Model(task, config.seed)
    values = _random_batch(dry_run.batch_shapes(config, task, model))
    batch = jax.device_put(values, sharding.batch_sharding(mesh))
    teacher_state = {} if source == "cached" else random_teacher(model, mesh)
    train_step = make_train_step(config, task, model, mesh)
    state = init_state(*model.init(), make_optimizer(config), config.optimizer.ema_decay > 0)
    state = jax.device_put(state, sharding.replicated(mesh))
    lowered, compiled = train_step.compile(state, model.frozen, teacher_state, batch)

    def run() -> None:
        nonlocal state
        state, scalars = compiled(state, model.frozen, teacher_state, batch)
        jax.block_until_ready(scalars)

    return Contestant(
        run=run,
        images=batch["image"].shape[0] * batch["image"].shape[1],
        **counts_of(lowered, compiled),
    )


def _torch_steps(config: ConfigDict) -> dict[str, Contestant]:
    """The supervised step in torch, eager and compiled; {} where torch is not installed."""
    try:
        import torch

        from fsmde_jax.benchmark import torch_student
    except ImportError:
        return {}
    student = build_student(config, nnx.Rngs(config.seed))
    if not isinstance(student.encoder, ResNet) or config.bins.centers_of != "image":
        return {}
    task = make_task(config)
    values = _random_batch(dry_run.batch_shapes(config, task, Model(task, config.seed)))
    batch = {name: torch.from_numpy(value) for name, value in values.items()}
    images = batch["image"].shape[0] * batch["image"].shape[1]
    found = {}
    for name, wrap in (("torch eager", lambda module: module), ("torch.compile", torch.compile)):
        model = torch_student.TorchStudent(student).to(memory_format=torch.channels_last)
        step = torch_student.make_train_step(
            wrap(model.train()),
            config.optimizer.learning_rate,
            config.optimizer.clip_norm,
            config.objective.silog_variance_focus,
        )
        found[f"supervised, {name}"] = Contestant(lambda step=step: step(batch), images)
    return found


def _random_batch(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """A batch of these shapes, in which all cameras, neighbours and depths are there."""
    rng, batch = np.random.default_rng(0), {}
    for name, leaf in shapes.items():
        draw = rng.integers(1, 100, leaf.shape) if leaf.dtype != bool else np.ones(leaf.shape)
        batch[name] = draw.astype(leaf.dtype)
    n = shapes["image"].shape[1]
    batch["neighbour"][:] = (np.arange(n) + 1) % n
    batch["intrinsics"][:] = np.diag([100.0, 100.0, 1.0])
    return batch
