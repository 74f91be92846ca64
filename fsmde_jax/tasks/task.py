"""A task: the model that a run trains, which of its parameters learn, its teacher and its loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array

from fsmde_jax.data.batch import Batch


class Task(NamedTuple):
    """A model to train and what training and evaluation need beside it."""

    build_model: Callable[[nnx.Rngs], nnx.Module]
    # Which parameters learn: an nnx filter. The other ones are frozen and not saved.
    trainable: Any
    # None, or the frozen teacher the loss compares with.
    build_teacher: Callable[[nnx.Rngs], nnx.Module] | None
    # (model, teacher, batch) -> (loss, {name: term})
    loss: Callable[[nnx.Module, nnx.Module | None, Batch], tuple[Array, dict[str, Array]]]
    predict: Callable[[nnx.Module, Batch], Array]  # (model, batch) -> depth_m [b n h w]
    predicts_inverse: bool = False  # inverse depth, right up to scale and shift, instead
    needs_dense_depth: bool = False
