"""The training step: schedule, optimizer, and the jitted update."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from fsmde_jax.models.layers import compiler
from fsmde_jax.run import sharding
from fsmde_jax.run.state import Model, TrainState
from fsmde_jax.tasks import Task

Scalars = dict[str, Array]


def make_train_step(
    config: ConfigDict, task: Task, model: Model, mesh: Mesh
) -> compiler.Program:  # (state, frozen, teacher_state, batch) -> (state, scalars)
    """The jitted update. The state is donated; the scalars come back on every device."""
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
        # Once a loss is not finite, the state stays as it was before that step.
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


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW or Muon on clipped gradients; only kernels that mix channels decay (`_matrix_axes`).

    Muon (https://kellerjordan.github.io/posts/muon) sees such a kernel as a matrix from all its
    inputs to its outputs. Its updates are scaled to AdamW's size (arXiv 2502.16982, section 2.2),
    so learning rates are comparable. AdamW updates all other parameters.
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


def _are_matrices(params: Any) -> Any:
    return jax.tree.map_with_path(lambda *leaf: _matrix_axes(*leaf) is not None, params)


def _matrix_axes(path: tuple, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
    """Input and output axes of a kernel that mixes channels; None for any other parameter.

    Others are biases, norms and embeddings, and depthwise kernels: each of their channels has a
    filter of its own, so there is no matrix to make orthogonal.
    """
    depthwise = leaf.ndim == 4 and leaf.shape[-2] == 1
    is_kernel = any(getattr(key, "key", None) == "kernel" for key in path)
    if not is_kernel or leaf.ndim < 2 or depthwise:
        return None
    *inputs, output = range(leaf.ndim)
    return optax.contrib.MuonDimensionNumbers(tuple(inputs), output)
