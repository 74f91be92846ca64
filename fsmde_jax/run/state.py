"""What a run holds in memory: the modules as pure pytrees, the training state, its placing."""

import pathlib
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fsmde_jax import tasks
from fsmde_jax.errors import UserError
from fsmde_jax.models import weights
from fsmde_jax.run import checkpoints, sharding


@flax.struct.dataclass
class TrainState:
    """All that a step changes: arrays, or in their places shapes or shardings."""

    step: Any  # int32
    params: nnx.State  # of the trainable part
    batch_stats: nnx.State
    opt_state: Any
    ema: nnx.State | None  # moving average of `params`
    ema_batch_stats: nnx.State | None  # and of `batch_stats`
    halted: Any  # bool: a loss was not finite; nothing moves any more

    def items(self) -> dict[str, Any]:
        """The items of a checkpoint."""
        optimizer = {"opt_state": self.opt_state, "step": self.step, "halted": self.halted}
        names = ("params", "batch_stats", "ema", "ema_batch_stats")
        found = {name: getattr(self, name) for name in names}
        return {k: v for k, v in found.items() if jax.tree.leaves(v)} | {"optimizer": optimizer}

    def with_items(self, items: dict[str, Any]) -> "TrainState":
        """The state with the items of a checkpoint in place of its own."""
        items = dict(items)
        return self.replace(**items.pop("optimizer"), **items)

    def averaged(self) -> tuple[Any, Any]:
        """(parameters, batch statistics) to evaluate: their moving averages if kept."""
        return self.ema or self.params, self.ema_batch_stats or self.batch_stats


class Model:
    """A task's modules as graph definitions and states: what `jax.jit` can take.

    Shapes only; nothing is initialised before it is asked for, since most states are loaded.

    Attributes:
      graphdef, eval_graphdef: the model in training and in evaluation mode.
      params, batch_stats, frozen: shapes of the trainable parameters, batch statistics, the rest.
      teacher_graphdef, teacher_state: the frozen teacher and its shapes, or None and an empty tree.
    """

    def __init__(self, task: tasks.Task, seed: int):
        self._build = lambda: task.build_model(nnx.Rngs(seed))
        self._split = lambda model: nnx.state(model, task.trainable, nnx.BatchStat, ...)
        model = nnx.eval_shape(self._build)
        self.params, self.batch_stats, self.frozen = self._split(model)
        model.eval()
        self.eval_graphdef = nnx.graphdef(model)
        model.train()
        self.graphdef = nnx.graphdef(model)
        self.teacher_graphdef, self.teacher_state = None, {}
        if task.build_teacher:
            self._build_teacher = lambda: task.build_teacher(nnx.Rngs(seed + 1))
            teacher = nnx.eval_shape(self._build_teacher)
            teacher.eval()
            self.teacher_graphdef, self.teacher_state = nnx.split(teacher)

    def init(self) -> tuple[nnx.State, nnx.State]:
        """Fresh (params, batch_stats)."""
        return _run_once(lambda: self._split(self._build())[:2])

    def init_from_encoder(self, encoder_weights: str) -> tuple[nnx.State, nnx.State]:
        """A fresh student around a pretrained encoder (`weights.load_encoder`)."""
        model = self.merge(*self.init(), self.frozen, train=True)
        weights.load_encoder(encoder_weights, model.encoder)
        return self._split(model)[:2]

    def init_frozen(self) -> tuple[nnx.State, Any]:
        """Random (frozen, teacher_state): for tests."""
        frozen = _run_once(lambda: self._split(self._build())[2])
        teacher = self.teacher_graphdef and _run_once(lambda: nnx.state(self._build_teacher()))
        return frozen, teacher or {}

    def merge(self, params: Any, batch_stats: Any, frozen: Any, train: bool) -> nnx.Module:
        """The module of a state."""
        graphdef = self.graphdef if train else self.eval_graphdef
        # A copy: the caller traces, and batch statistics are written to.
        return nnx.merge(graphdef, params, batch_stats, frozen, copy=True)

    def merge_teacher(self, teacher_state: Any) -> nnx.Module | None:
        """The teacher's module; None for an empty state."""
        return nnx.merge(self.teacher_graphdef, teacher_state) if teacher_state else None


def init_state(
    params: nnx.State, batch_stats: nnx.State, optimizer: optax.GradientTransformation, ema: bool
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if ema else None,
        halted=jnp.zeros((), bool),
    )


def place_model(config: ConfigDict, model: Model, mesh: Mesh) -> tuple[Any, Any, str | None]:
    """(frozen, teacher_state, teacher's name) on the mesh, with the weights the config names.

    The name is the fingerprint of a foundation model whose head is trained.
    """
    frozen, teacher_state, name = model.frozen, model.teacher_state, None
    if config.teacher.weights == "random":
        trees = model.init_frozen()
        frozen, teacher_state = jax.device_put(trees, sharding.fsdp_sharding(trees, mesh))
    elif config.task == "teacher_head":
        frozen = tasks.load_teacher_weights(config, frozen, mesh)
    elif model.teacher_graphdef:
        teacher_state = tasks.load_teacher_weights(config, teacher_state, mesh)
    if config.task == "teacher_head":
        name = checkpoints.fingerprint(frozen)
    elif model.teacher_graphdef:
        label = config.teacher.size or config.teacher.weights
        fingerprint = checkpoints.fingerprint(teacher_state)
        name = f"{label}/{config.teacher.binning} {fingerprint}"
    return frozen, teacher_state, name


def load_trained(
    config: ConfigDict, model: Model, workdir: pathlib.Path, identity: dict[str, Any]
) -> tuple[Any, Any]:
    """(parameters, batch statistics) of the newest checkpoint: their moving averages if kept."""
    items = ("ema", "ema_batch_stats") if config.optimizer.ema_decay else ("params", "batch_stats")
    params, batch_stats = (
        checkpoints.load_params(workdir, shapes, identity, item)
        for shapes, item in zip((model.params, model.batch_stats), items, strict=True)
    )
    return params, batch_stats


def load_student(config: ConfigDict, workdir: pathlib.Path) -> nnx.Module:
    """The trained student of a run, ready to predict; needs no teacher and no data."""
    if config.task != "student":
        raise UserError(f"{workdir} trained a {config.task}, not a student")
    task = tasks.make_task(config)._replace(
        build_model=lambda rngs: tasks.build_student(config, rngs),  # without any adapter
        build_teacher=None,
    )
    model = Model(task, config.seed)
    identity = {"task": "student", "student": config.student.to_dict()}
    params, batch_stats = load_trained(config, model, workdir, identity)
    return model.merge(params, batch_stats, model.frozen, train=False)


def _run_once(make: Callable[[], Any]) -> Any:
    """Compiled as a whole, but quickly: it runs once, and op by op would take ten times longer."""
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(make, compiler_options=quickly)()
