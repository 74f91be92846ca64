"""The training loop, read top to bottom: devices, model, input, step, restore, loop.

One loop serves all tasks of `tasks.py`. The state is a pure pytree, split once from the nnx
modules; the jitted step takes it donated and the frozen parts (teacher, foundation model) beside.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from fsmde_jax import config as config_lib
from fsmde_jax import files
from fsmde_jax.config import ConfigError
from fsmde_jax.data import pipeline, prepared
from fsmde_jax.evaluate import measure
from fsmde_jax.models.layers import compiler
from fsmde_jax.run import checkpoints, example, fork, identity, sharding, teacher_outputs
from fsmde_jax.run.load import (
    load_foundation,
    load_trained,
    place_model,
    save_foundation,
    with_pretrained_neck,
)
from fsmde_jax.run.state import Model, TrainState, count_parameters, init_state
from fsmde_jax.tasks import Task, make_task

log = logging.getLogger(__name__)

LOCK = "lock"  # in a run's folder
NOT_FINITE = "not_finite"

Scalars = dict[str, Array]


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up, then cosine decay over the run's steps."""
    peak, steps = config.optimizer.learning_rate, config.train.steps
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=int(config.optimizer.warmup_fraction * steps),
        decay_steps=steps,
        end_value=peak * config.optimizer.final_fraction,
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW or Muon after clipping gradients; only matrices decay (`_matrix_axes`).

    Muon (https://kellerjordan.github.io/posts/muon) takes a kernel for a matrix from all its
    inputs to its outputs; its updates are as large as AdamW's (arXiv 2502.16982, section 2.2), so
    learning rates compare. What is no matrix stays with AdamW.
    """
    rate, decay = make_schedule(config), config.optimizer.weight_decay
    match config.optimizer.name:
        case "adamw":
            update = optax.adamw(rate, weight_decay=decay, mask=_are_matrices)
        case "muon":
            update = optax.contrib.muon(
                rate,
                weight_decay=decay,
                muon_weight_dimension_numbers=functools.partial(
                    jax.tree.map_with_path, _matrix_axes
                ),
                consistent_rms=0.2,
            )
    return optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), update)


def _are_matrices(params: Any) -> Any:
    return jax.tree.map_with_path(lambda *leaf: _matrix_axes(*leaf) is not None, params)


def _matrix_axes(path: tuple, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
    """Axes of a kernel that mixes channels; None for biases, norms, embeddings.

    A depthwise kernel is none either: a filter for each channel, with nothing to make orthogonal.
    """
    depthwise = leaf.ndim == 4 and leaf.shape[-2] == 1
    is_kernel = any(getattr(key, "key", None) == "kernel" for key in path)
    if not is_kernel or leaf.ndim < 2 or depthwise:
        return None
    *inputs, output = range(leaf.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(inputs), output)


def make_train_step(
    config: ConfigDict, task: Task, model: Model, mesh: Mesh
) -> compiler.Program:  # (state, frozen, teacher_state, batch) -> (state, scalars)
    """The jitted update; the state is donated, metrics come back on every device."""
    optimizer, schedule = make_optimizer(config), make_schedule(config)
    ema_decay = config.optimizer.ema_decay

    def step(state: TrainState, frozen, teacher_state, batch) -> tuple[TrainState, Scalars]:
        def loss_of(params):
            module = model.merge(params, state.batch_stats, frozen, train=True)
            loss, terms = task.loss(module, model.merge_teacher(teacher_state), batch)
            return loss, (terms, nnx.state(module, nnx.BatchStat))

        (loss, (terms, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        grad_norm = optax.global_norm(grads)
        halted = state.halted | ~jnp.isfinite(loss) | ~jnp.isfinite(grad_norm)
        moved = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=stats,
            opt_state=opt_state,
            ema=state.ema and optax.incremental_update(params, state.ema, 1 - ema_decay),
            ema_batch_stats=state.ema_batch_stats
            and optax.incremental_update(stats, state.ema_batch_stats, 1 - ema_decay),
            halted=halted,
        )
        # After a loss that is not finite the state stays the one that produced it.
        kept = jax.lax.cond(halted, lambda: state, lambda: moved)
        scalars = {
            "loss": loss,
            **terms,
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
            "update_norm": optax.global_norm(updates),
            "learning_rate": schedule(state.step),
        }
        return kept.replace(halted=halted), scalars

    replicated = sharding.replicated(mesh)
    return compiler.Program(
        step,
        compiler.step_options(config.train.steps),
        donate_argnums=0,
        out_shardings=(replicated, replicated),
    )


def train(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """Trains to the end, going on from the last checkpoint in `workdir`.

    Until everything is checked nothing in `workdir` is changed. Raises `UserError` where it is
    another run's, or another process trains in it.

    Returns None when done, or the number of the signal that interrupted it (state saved).
    """
    with _owned(workdir), StopSignal() as stop:
        return _train(config, workdir, stop)


@contextlib.contextmanager
def _owned(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a run's folder; one that a refused start made is removed again."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"{workdir} is a file: choose another --workdir")
    if jax.process_index() > 0:
        yield
        return
    with files.owned(workdir, f"training into {workdir}", LOCK):
        yield


def _train(config: ConfigDict, workdir: pathlib.Path, stop: "StopSignal") -> int | None:
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
        _millions(model.params),
        _millions([frozen, teacher_state]),
        teacher_name or "no teacher",
        _describe(mesh),
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
        teacher_state = {}  # known by its fingerprint, it is not needed any more
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
        batches = itertools.chain([next(iterator)], iterator)  # read now: data is checked, too

    # ---------------------------------------------------------------- loop
    if jax.process_index() == 0:
        config_lib.save_config(config, workdir)
        example.write(config, workdir)
    train_step = make_train_step(config, task, model, mesh)
    writer = MetricsWriter(workdir, first_step)
    timer = Timer(config.train.steps, images_per_step)
    check = functools.partial(_check_finite, config, workdir, wanted, source)
    pending = None  # the last step's loss, looked at one step later so that devices never wait
    step = first_step
    for step in range(first_step + 1, config.train.steps + 1):
        batch = next(batches)
        with _told(config.name) if step == first_step + 1 else contextlib.nullcontext():
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
    """What a checkpoint must share with a run to go on with it."""
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


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Says that the step is being compiled, which is long and silent, and how long it took."""
    log.info("%s: compiling the training step, once: seconds to minutes of silence", name)
    began = time.monotonic()
    yield
    log.info("%s: compiled in %.0f s", name, time.monotonic() - began)


def _check_finite(config, workdir, wanted, source, pending, state) -> None:
    """Stops at a loss or gradient that is not finite; the state before it is saved."""
    step, loss, grad_norm, sample_index = pending
    if np.isfinite(jax.device_get(loss)) and np.isfinite(jax.device_get(grad_norm)):
        return
    indices = [int(i) for shard in sample_index.addressable_shards for i in shard.data]
    sample_ids = [source[i]["sample_id"] for i in sorted(set(indices))]
    folder = workdir / NOT_FINITE
    # Going on from the same checkpoint comes to the same step; of another one both are kept.
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


class StopSignal:
    """Remembers SIGTERM or the first Ctrl-C, so that the loop can save; a second Ctrl-C kills.

    Within its `with`; after it, or after an error, signals mean what they did before.
    """

    def __init__(self):
        self.signal_number: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        for number in self._before:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, _) -> None:
        log.warning("Got %s: saving after this step.", signal.Signals(number).name)
        self.signal_number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class MetricsWriter:
    """metrics.jsonl and TensorBoard events; a resumed run drops the lines past its checkpoint."""

    def __init__(self, workdir: pathlib.Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        self._main = jax.process_index() == 0
        if not self._main:
            return
        self._keep(first_step)
        # Not tensorboardX's SummaryWriter: a full disk ends its thread, and then it waits forever.
        self._events = EventsWriter(str(workdir / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._event(first_step + 1, session_log=start)  # hides what was written past it

    def _keep(self, first_step: int) -> None:
        """Leaves the lines to `first_step`.

        The file is set aside where lines can't be read, or are of a run whose checkpoints are gone.
        """
        content = self._path.read_bytes() if self._path.exists() else b""
        whole, _, _ = content.rpartition(b"\n")  # a kill cuts the last line short
        lines = whole.split(b"\n") if whole else []
        steps = [_step_of(line) for line in lines]
        if first_step and not lines:
            log.warning("%s is missing: the lines before step %d are lost", self._path, first_step)
        if None in steps:
            aside = files.set_aside(self._path, "damaged")
            log.warning("%d lines of %s cannot be read", steps.count(None), aside)
        elif lines and not first_step:
            aside = files.set_aside(self._path, "earlier")
            log.warning("This run begins at step 0; the lines of before are in %s", aside)
        pairs = zip(lines, steps, strict=True)
        kept = [line + b"\n" for line, step in pairs if step is not None and step <= first_step]
        with files.replacing(self._path) as partial:
            partial.write_bytes(b"".join(kept))

    def write(self, step: int, kind: str, scalars: dict[str, Any]) -> None:
        """One line; `kind` is "train", "speed" or "eval"."""
        if not self._main:
            return
        values = {name: float(value) for name, value in scalars.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            self._event(step, summary=summary.scalar(f"{kind}/{name}", value))
        self._events.flush()

    def show(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture for TensorBoard."""
        if self._main:
            self._event(step, summary=summary.image(name, picture, dataformats="HWC"))
            self._events.flush()

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Flushes the event file."""
        if self._main:
            self._events.close()


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None for one that is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class Timer:
    """Images per second since the last log, and the time the rest will take."""

    def __init__(self, steps: int, images_per_step: int):
        self.steps, self.images_per_step = steps, images_per_step
        self._since, self._count, self._rate = None, 0, 0.0
        self._step = 0

    def tick(self, step: int) -> None:
        """Counts a step; the first one, which compiles, starts the clock."""
        self._step = step
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._count += 1

    def speed(self) -> dict[str, float]:
        """Images per second and seconds to go; starts the next interval."""
        elapsed = time.monotonic() - self._since
        if self._count:
            self._rate = self._count * self.images_per_step / max(elapsed, 1e-9)
            self._since, self._count = time.monotonic(), 0
        left = (self.steps - self._step) * self.images_per_step
        return {
            "images_per_second": self._rate,
            "eta_s": left / self._rate if self._rate else float("nan"),
        }

    def line(self, step: int, scalars: dict[str, Any]) -> str:
        """For people: the step, its terms, the pace and the time to go."""
        named = "  ".join(f"{name} {float(value):.4g}" for name, value in scalars.items())
        left = (self.steps - step) * self.images_per_step / self._rate if self._rate else 0.0
        return f"step {step}/{self.steps}  {named}  {self._rate:.0f} images/s  ETA {left:.0f} s"


def _millions(tree: Any) -> str:
    return f"{count_parameters(tree) / 1e6:.2f} M parameters"


def _describe(mesh: Mesh) -> str:
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{mesh.size} {jax.devices()[0].device_kind} device(s), {shape}"
