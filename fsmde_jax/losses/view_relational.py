"""View-relational distillation (VRKD, arXiv 2512.08700): similarity between cameras.

The features or the bin probabilities of every camera are pooled to a small grid of unit tokens;
for each pair of cameras, neighbours on the ring or any two, the matrix of token similarities of
the student is pulled to the teacher's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fsmde_jax.precision import full_precision


@full_precision
def pool_tokens(
    features: Float[Array, "b n h w c"], grid: tuple[int, int]
) -> Float[Array, "b n t c"]:
    """Average over a grid of (rows, columns) cells, then unit length.

    A pixel that lies in two cells counts in each by the share of it that does.
    """
    b, n, h, w, c = features.shape
    rows, columns = _cell_weights(h, grid[0]), _cell_weights(w, grid[1])
    cells = jnp.einsum("rh,bnhwc,sw->bnrsc", rows, features.astype(jnp.float32), columns)
    tokens = cells.reshape(b, n, grid[0] * grid[1], c)
    return tokens * jax.lax.rsqrt(jnp.sum(tokens**2, -1, keepdims=True) + 1e-8)


def _cell_weights(pixels: int, cells: int) -> np.ndarray:
    """Weights [cells, pixels] of the average over each cell along one axis."""
    if cells > pixels:
        raise ValueError(
            f"objective.vrkd_grid asks for {cells} cells along an axis of {pixels} feature pixels"
        )
    edges = np.arange(cells + 1) * pixels / cells
    pixel = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0.0) * cells / pixels).astype(np.float32)


class Pairs(NamedTuple):
    """Pairs of cameras to compare."""

    first: Int[Array, "b m"]
    second: Int[Array, "b m"]
    mask: Bool[Array, "b m"]  # which of them count


def adjacent_pairs(neighbour: Int[Array, "b n"], neighbour_mask: Bool[Array, "b n"]) -> Pairs:
    """Each camera with its ring neighbour, where their views overlap."""
    cameras = jnp.arange(neighbour.shape[1], dtype=neighbour.dtype)
    return Pairs(jnp.broadcast_to(cameras, neighbour.shape), neighbour, neighbour_mask)


def all_pairs(camera_mask: Bool[Array, "b n"]) -> Pairs:
    """Every two different cameras that are present, once, overlapping or not."""
    b, n = camera_mask.shape
    first, second = np.triu_indices(n, k=1)
    mask = camera_mask[:, first] & camera_mask[:, second]
    return Pairs(*(jnp.tile(jnp.asarray(i, jnp.int32), (b, 1)) for i in (first, second)), mask)


@full_precision
def pair_similarity(tokens: Float[Array, "b n t c"], pairs: Pairs) -> Float[Array, "b m t t"]:
    """Cosine similarity of the tokens of the first camera (rows) with those of the second."""
    first, second = (
        jnp.take_along_axis(tokens, index[:, :, None, None], axis=1)
        for index in (pairs.first, pairs.second)
    )
    return jnp.einsum("bmtc,bmsc->bmts", first, second)


def view_relational_loss(
    teacher_tokens: Float[Array, "b n t c"],
    student_tokens: Float[Array, "b n t d"],
    pairs: Pairs,
    form: str = "kl",
    temperature: float = 0.05,
) -> Float[Array, ""]:
    """Distance of the similarity matrices, averaged over the pairs that count.

    Args:
      teacher_tokens, student_tokens: of unit length, on the same grid; no gradient reaches the
        teacher's.
      pairs: of cameras.
      form: "kl" compares rows as distributions (softmax of similarity / temperature),
        "squared" takes the mean squared difference.
      temperature: of "kl".
    """
    teacher = pair_similarity(jax.lax.stop_gradient(teacher_tokens), pairs)
    student = pair_similarity(student_tokens, pairs)
    if form == "kl":
        teacher_log = jax.nn.log_softmax(teacher / temperature)
        student_log = jax.nn.log_softmax(student / temperature)
        rows = jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), -1)
        per_pair = jnp.mean(rows, -1)
    elif form == "squared":
        per_pair = jnp.mean((teacher - student) ** 2, axis=(-1, -2))
    else:
        raise ValueError(f'objective.vrkd_form is {form!r}; use "kl" or "squared"')
    return jnp.sum(per_pair * pairs.mask) / jnp.maximum(jnp.sum(pairs.mask), 1)
