"""The training loop, read top to bottom: devices, model, start or restore, input, steps.

One loop serves every task in `tasks/`. The state is a pure pytree, split once from the nnx
modules. The jitted step (`step.py`) takes it donated, and beside it the frozen parts: the teacher,
the foundation model.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsmde_jax import config as config_lib
from fsmde_jax import files
from fsmde_jax.config import ConfigError
from fsmde_jax.data import pipeline, prepared
from fsmde_jax.evaluate import measure
from fsmde_jax.run import checkpoints, example, fork, identity, sharding, teacher_outputs
from fsmde_jax.run.load import (
    load_foundation,
    load_trained,
    place_model,
    save_foundation,
    with_pretrained_neck,
)
from fsmde_jax.run.state import Model, init_state
from fsmde_jax.tasks import make_task
from fsmde_jax.train.log import (
    MetricsWriter,
    Timer,
    announce_compiling,
    device_text,
    parameter_text,
)
from fsmde_jax.train.step import make_optimizer, make_train_step
from fsmde_jax.train.stop import StopSignal

log = logging.getLogger(__name__)

LOCK = "lock"  # in a run's folder
NOT_FINITE = "not_finite"


def train(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """Trains to the end, from the last checkpoint in `workdir` if there is one.

    Nothing in `workdir` changes before everything is checked. Raises `UserError` where it belongs
    to another run, or another process trains in it.

    Returns None at the end, or the number of the signal that interrupted it; the state is saved.
    """
    with _owned(workdir), StopSignal() as stop:
        return _train(config, workdir, stop)


@contextlib.contextmanager
def _owned(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a run's folder; a folder that a refused start made is removed again."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{workdir} is a file: choose another --workdir")
    if jax.process_index() > 0:
        yield
        return
    with files.owned(workdir, f"training into {workdir}", LOCK):
        yield


def _train(config: ConfigDict, workdir: pathlib.Path, stop: StopSignal) -> int | None:
    # ---------------------------------------------------------------- devices, data
    mesh = sharding.make_mesh(config.mesh)
    batches_on = sharding.batch_sharding(mesh)
    newest = checkpoints.latest_step(workdir)
    config_lib.refuse_other_config(config, workdir, started=newest is not None)
    if newest is not None and newest > config.train.steps:
        raise ConfigError(
            f"config.train.steps={config.train.steps}, but {workdir} is at step {newest} already"
        )
    source, cameras = pipeline.open_data(config.data, config.data.train_split)
    images_per_step = config.data.batch_size * len(cameras)

    # ---------------------------------------------------------------- model and teacher
    task = make_task(config)
    model = Model(task, config.seed)
    frozen, teacher_state, teacher_name = place_model(config, model, mesh)
    log.info(
        "%s: %s trained, %s frozen beside it (%s), on %s",
        config.name,
        parameter_text(model.params),
        parameter_text([frozen, teacher_state]),
        teacher_name or "no teacher",
        device_text(mesh),
    )

    # ---------------------------------------------------------------- own checkpoint, or a start
    wanted = _identity(config, teacher_name, source)
    saver = checkpoints.Checkpoints(workdir, config.train.keep_checkpoints, wanted)
    new_state = functools.partial(
        init_state, optimizer=make_optimizer(config), ema=config.optimizer.ema_decay > 0
    )
    shapes = jax.eval_shape(new_state, model.params, model.batch_stats)
    first_step = 0
    if restored := saver.restore(shapes.items()):
        first_step, items = restored
        state = shapes.with_items(items)
        log.info("%s: going on after step %d", config.name, first_step)
    else:
        state = new_state(*_start_weights(config, model, workdir, mesh))
    state = jax.device_put(state, sharding.replicated(mesh))

    # ---------------------------------------------------------------- input
    stored = None
    if config.teacher.source == "cached" and teacher_state:
        stored = teacher_outputs.open_cache(config, model, teacher_name)
        teacher_state = {}  # it was needed only for its fingerprint
    iterator = pipeline.train_batches(
        config.data,
        config.seed,
        batches_on,
        with_dense=task.needs_dense_depth,
        with_prepared=config.teacher.image == "prepared" and stored is None,
        stored=stored,
        first_step=first_step,
    )
    batches = iterator
    if first_step < config.train.steps:
        batches = itertools.chain([next(iterator)], iterator)  # read now, so that data is checked

    # ---------------------------------------------------------------- loop
    if jax.process_index() == 0:
        config_lib.save_config(config, workdir)
        example.write(config, workdir)
    train_step = make_train_step(config, task, model, mesh)
    writer = MetricsWriter(workdir, first_step)
    timer = Timer(config.train.steps, images_per_step)
    check = functools.partial(_check_finite, config, workdir, wanted, source)
    pending = None  # the last step's loss; checked one step later, so that devices never wait
    step = first_step
    for step in range(first_step + 1, config.train.steps + 1):
        batch = next(batches)
        compiles = step == first_step + 1
        with announce_compiling(config.name) if compiles else contextlib.nullcontext():
            state, scalars = train_step(state, frozen, teacher_state, batch)
        if pending is not None:
            check(pending, state)
        pending = (step, scalars["loss"], scalars["grad_norm"], batch["sample_index"])
        timer.tick(step)
        if step % config.train.log_every == 0 or step == config.train.steps:
            writer.write(step, "train", jax.device_get(scalars))
            writer.write(step, "speed", timer.speed())
            log.info("%s: %s", config.name, timer.line(step, jax.device_get(scalars)))
        if stop.signal_number or step == config.train.steps:
            break
        if step % config.train.checkpoint_every == 0:
            check(pending, state)
            saver.save(step, state.items())
        if config.train.eval_every and step % config.train.eval_every == 0:
            found, ring = measure.evaluate_state(config, task, model, state, frozen, mesh)
            mean = found["mean"]
            writer.write(step, "eval", mean)
            writer.show(step, "eval/ring", ring)
            log.info("%s: step %d, validation %s", config.name, step, mean)
    if pending is not None:
        check(pending, state)
    saver.save(step, state.items())
    saver.close()
    writer.close()
    iterator.close()
    if config.task == "foundation" and step == config.train.steps and jax.process_index() == 0:
        save_foundation(config, state.averaged()[0], workdir / "weights")
    if step < config.train.steps:
        log.info("%s: stopped after step %d; the same command goes on", config.name, step)
        return stop.signal_number
    return None


def _identity(
    config: ConfigDict, teacher: str | None, source: prepared.PreparedSplit
) -> dict[str, Any]:
    """What a run and a checkpoint must have in common for the run to start from it."""
    scenes = hashlib.sha256(json.dumps(source.scenes).encode()).hexdigest()[:8]
    return identity.of_run(config, teacher) | {
        "optimizer": config.optimizer.name,
        "ema": config.optimizer.ema_decay > 0,
        "data": f"{len(source)} samples of {len(source.scenes)} scenes ({scenes})",
    }


def _start_weights(
    config: ConfigDict, model: Model, workdir: pathlib.Path, mesh: Mesh
) -> tuple[Any, Any]:
    """(parameters, batch statistics) before the first step."""
    if (forked_from := workdir / fork.FOLDER).is_dir():
        made_with = config_lib.load_config(forked_from)
        return load_trained(made_with, model, forked_from, {"task": config.task})
    if config.task == "student" and config.student.encoder_weights:
        params, batch_stats = model.init_from_encoder(config.student.encoder_weights)
    elif config.teacher.start_weights:
        params, batch_stats = load_foundation(config, mesh), model.batch_stats
    else:
        params, batch_stats = model.init()
    if config.task == "teacher_head" and config.teacher.train_neck:
        params = with_pretrained_neck(config, params, mesh)
    return params, batch_stats


def _check_finite(config, workdir, wanted, source, pending, state) -> None:
    """Stops at a loss or gradient that is not finite; the state before it is saved."""
    step, loss, grad_norm, sample_index = pending
    if np.isfinite(jax.device_get(loss)) and np.isfinite(jax.device_get(grad_norm)):
        return
    indices = [int(i) for shard in sample_index.addressable_shards for i in shard.data]
    sample_ids = [source[i]["sample_id"] for i in sorted(set(indices))]
    folder = workdir / NOT_FINITE
    # A resumed run fails at the same step again: that folder is replaced, another one is kept.
    if checkpoints.latest_step(folder) not in (None, step - 1) and jax.process_index() == 0:
        files.set_aside(folder, "earlier")
    saver = checkpoints.Checkpoints(folder, 1, wanted | {"not_finite_on": sample_ids})
    saver.save(step - 1, state.items())
    saver.close()
    if jax.process_index() == 0:
        config_lib.save_config(config, folder, run=workdir)
    raise FloatingPointError(
        f"step {step}: loss {float(loss)}, gradient norm {float(grad_norm)}, on the samples "
        f"{sample_ids}. The state before that step is saved in {folder}. Lower "
        "config.optimizer.learning_rate, or look at those samples."
    )
