"""What a run holds in memory: the modules as pure pytrees, and the training state."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fsmde_jax.models.weights import load
from fsmde_jax.tasks import Task


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

    def __init__(self, task: Task, seed: int):
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
        """A fresh student around a pretrained encoder (`models.weights.load.load_encoder`)."""
        model = self.merge(*self.init(), self.frozen, train=True)
        load.load_encoder(encoder_weights, model.encoder)
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


def count_parameters(state: Any) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def _run_once(make: Callable[[], Any]) -> Any:
    """Compiled as a whole, but quickly: it runs once, and op by op would take ten times longer."""
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(make, compiler_options=quickly)()
