"""View-relational distillation (VRKD, arXiv 2512.08700): similarity between adjacent cameras.

Every camera is pooled to a small grid of unit tokens; for each pair of neighbours on the ring
the matrix of token similarities of the student is pulled to the teacher's.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


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


def neighbour_similarity(
    tokens: Float[Array, "b n t c"], neighbour: Int[Array, "b n"]
) -> Float[Array, "b n t t"]:
    """Cosine similarity of each camera's tokens with its ring neighbour's."""
    following = jnp.take_along_axis(tokens, neighbour[:, :, None, None], axis=1)
    return jnp.einsum("bntc,bnsc->bnts", tokens, following)


def view_relational_loss(
    teacher_tokens: Float[Array, "b n t c"],
    student_tokens: Float[Array, "b n t d"],
    neighbour: Int[Array, "b n"],
    neighbour_mask: Bool[Array, "b n"],
    form: str = "kl",
    temperature: float = 0.1,
) -> Float[Array, ""]:
    """Distance of the similarity matrices, averaged over the pairs that overlap.

    Args:
      form: "kl" compares rows as distributions (softmax of similarity / temperature),
        "squared" takes the mean squared difference.
    """
    teacher = neighbour_similarity(jax.lax.stop_gradient(teacher_tokens), neighbour)
    student = neighbour_similarity(student_tokens, neighbour)
    if form == "kl":
        teacher_log = jax.nn.log_softmax(teacher / temperature)
        student_log = jax.nn.log_softmax(student / temperature)
        rows = jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), -1)
        per_pair = jnp.mean(rows, -1)
    elif form == "squared":
        per_pair = jnp.mean((teacher - student) ** 2, axis=(-1, -2))
    else:
        raise ValueError(f'objective.vrkd_form is {form!r}; use "kl" or "squared"')
    return jnp.sum(per_pair * neighbour_mask) / jnp.maximum(jnp.sum(neighbour_mask), 1)
