"""The training loop, read top to bottom: devices, model, input, step, restore, loop.

One loop serves all tasks of `tasks.py`. The state is a pure pytree, split once from the nnx
modules; the jitted step takes it donated and the frozen parts (teacher, foundation model) beside.
"""

import functools
import json
import logging
import pathlib
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from fsmde_jax import checkpoints, compiler, evaluate, sharding, tasks, teacher_targets
from fsmde_jax.data import pipeline
from fsmde_jax.state import Model, TrainState, init_state, place_model

log = logging.getLogger(__name__)

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
    """AdamW or Muon after clipping gradients; biases, norms and the like do not decay.

    Muon (https://kellerjordan.github.io/posts/muon) takes a kernel for a matrix from all its
    inputs to its outputs; its updates are as large as AdamW's (arXiv 2502.16982, section 2.2), so
    learning rates compare. Biases, norms and the like stay with AdamW.
    """
    rate, decay = make_schedule(config), config.optimizer.weight_decay
    match config.optimizer.name:
        case "adamw":
            kernels = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
            update = optax.adamw(rate, weight_decay=decay, mask=kernels)
        case "muon":
            update = optax.contrib.muon(
                rate,
                weight_decay=decay,
                muon_weight_dimension_numbers=functools.partial(jax.tree.map, _matrix_axes),
                consistent_rms=0.2,
            )
    return optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), update)


def _matrix_axes(leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
    if leaf.ndim < 2:
        return None
    *inputs, output = range(leaf.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(inputs), output)


def make_train_step(
    config: ConfigDict, task: tasks.Task, model: Model, mesh: Mesh
):  # -> jitted (state, frozen, teacher_state, batch) -> (state, scalars)
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
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(replicated, replicated),
        compiler_options=compiler.step_options(config.train.steps),
    )


def train(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """Trains to the end, going on from the last checkpoint in `workdir`.

    Returns None when done, or the number of the signal that interrupted it (state saved).
    """
    with StopSignal() as stop:
        return _train(config, workdir, stop)


def _train(config: ConfigDict, workdir: pathlib.Path, stop: "StopSignal") -> int | None:
    # ---------------------------------------------------------------- devices, logs, data
    mesh = sharding.make_mesh(config.mesh)
    batches_on = sharding.batch_sharding(mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    source, cameras = pipeline.open_data(config.data, config.data.train_split)
    images_per_step = config.data.batch_size * len(cameras)

    # ---------------------------------------------------------------- model and teacher
    task = tasks.make_task(config)
    model = Model(task, config.seed)
    frozen, teacher_state, teacher_name = place_model(config, model, mesh)
    if config.task == "student" and config.student.encoder_weights:
        params, batch_stats = model.init_from_encoder(config.student.encoder_weights)
    elif config.teacher.start_weights:
        params, batch_stats = tasks.load_foundation(config, mesh), model.batch_stats
    else:
        params, batch_stats = model.init()
    if config.task == "teacher_head" and config.teacher.train_neck:
        params = tasks.with_pretrained_neck(config, params, mesh)
    ema = config.optimizer.ema_decay > 0
    state = init_state(params, batch_stats, make_optimizer(config), ema)
    state = jax.device_put(state, sharding.replicated(mesh))
    log.info(
        "%s: %s trained, %s frozen beside it (%s), on %s",
        config.name,
        _millions(state.params),
        _millions([frozen, teacher_state]),
        teacher_name or "no teacher",
        _describe(mesh),
    )

    # ---------------------------------------------------------------- input
    stored = None
    if config.teacher.source == "cached" and teacher_state:
        stored = teacher_targets.open_cache(config, model, teacher_name)
        teacher_state = {}  # known by its fingerprint, it is not needed any more
    iterator = pipeline.train_batches(
        config.data,
        config.seed,
        batches_on,
        with_dense=task.needs_dense_depth,
        with_prepared=config.teacher.image == "prepared" and stored is None,
        stored=stored,
    )

    # ---------------------------------------------------------------- own checkpoint
    saver = checkpoints.Checkpoints(
        workdir, config.train.keep_checkpoints, tasks.identity(config, teacher_name)
    )
    first_step = 0
    restored = saver.restore(state.items(), iterator)
    if restored:
        first_step, items = restored
        state = state.with_items(items)
        log.info("%s: going on after step %d", config.name, first_step)

    # ---------------------------------------------------------------- loop
    train_step = make_train_step(config, task, model, mesh)
    writer = MetricsWriter(workdir, first_step)
    timer = Timer(config.train.steps, images_per_step)
    pending = None  # the last step's loss, looked at one step later so that devices never wait
    step = first_step
    for step in range(first_step + 1, config.train.steps + 1):
        batch = next(iterator)
        state, scalars = train_step(state, frozen, teacher_state, batch)
        if pending is not None:
            _check_finite(pending, state, iterator, source, workdir)
        pending = (step, scalars["loss"], scalars["grad_norm"], batch["sample_index"])
        timer.tick(step)
        if step % config.train.log_every == 0 or step == config.train.steps:
            writer.write(step, "train", jax.device_get(scalars))
            writer.write(step, "speed", timer.speed())
            log.info("%s: %s", config.name, timer.line(step, jax.device_get(scalars)))
        if stop.signal_number or step == config.train.steps:
            break
        if step % config.train.checkpoint_every == 0:
            _check_finite(pending, state, iterator, source, workdir)
            saver.save(step, state.items(), iterator)
        if config.train.eval_every and step % config.train.eval_every == 0:
            found, ring = evaluate.evaluate_state(config, task, model, state, frozen, mesh)
            mean = found["mean"]
            writer.write(step, "eval", mean)
            writer.show(step, "eval/ring", ring)
            log.info("%s: step %d, validation %s", config.name, step, mean)
    if pending is not None:
        _check_finite(pending, state, iterator, source, workdir)
    saver.save(step, state.items(), iterator)
    saver.close()
    writer.close()
    iterator.close()
    if config.task == "foundation" and step == config.train.steps and jax.process_index() == 0:
        tasks.save_foundation(config, state.ema or state.params, workdir / "weights")
    if step < config.train.steps:
        log.info("%s: stopped after step %d; the same command goes on", config.name, step)
        return stop.signal_number
    return None


def _check_finite(pending, state, iterator, source, workdir) -> None:
    """Stops at a loss or gradient that is not finite; the state before it is saved."""
    step, loss, grad_norm, sample_index = pending
    if np.isfinite(jax.device_get(loss)) and np.isfinite(jax.device_get(grad_norm)):
        return
    indices = [int(i) for shard in sample_index.addressable_shards for i in shard.data]
    sample_ids = [source[i]["sample_id"] for i in sorted(set(indices))]
    folder = workdir / "not_finite"
    saver = checkpoints.Checkpoints(folder, 1, {"step": step, "sample_ids": sample_ids})
    saver.save(step - 1, state.items(), iterator)
    saver.close()
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
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= first_step]
        self._path.write_text("".join(line + "\n" for line in kept))
        self._events = SummaryWriter(str(workdir), purge_step=first_step + 1)

    def write(self, step: int, kind: str, scalars: dict[str, Any]) -> None:
        """One line; `kind` is "train", "speed" or "eval"."""
        if not self._main:
            return
        values = {name: float(value) for name, value in scalars.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def show(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture for TensorBoard."""
        if self._main:
            self._events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes the event file."""
        if self._main:
            self._events.close()


def _step_of(line: str) -> int | float:
    """The step of a line of metrics.jsonl; a line cut short by a kill counts as past the end."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


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
    return f"{tasks.count_parameters(tree) / 1e6:.2f} M parameters"


def _describe(mesh: Mesh) -> str:
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{mesh.size} {jax.devices()[0].device_kind} device(s), {shape}"
