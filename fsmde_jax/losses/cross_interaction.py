"""Cross-interaction distillation (CKD, arXiv 2512.08700): the teacher's bin probabilities teach
structure, LiDAR teaches metres through the student's bin centers. Where there is no LiDAR, the
teacher's depth may teach the centers structure (`objective.ckd_structure`, an addition of ours).

The paper's exact form could not be read; temperature and weights are our reading, in the config.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fsmde_jax.models.binned_depth import DEPTH, expected_depth


def bin_divergence(
    teacher_logits: Float[Array, "b n h w k"],
    student_logits: Float[Array, "b n h w k"],
    valid: Bool[Array, "b n #h #w"],
    temperature: float = 1.0,
) -> Float[Array, ""]:
    """KL(teacher || student) per pixel, averaged over the valid ones.

    Both are softened by `temperature`; its square keeps the gradient's size (Hinton et al.,
    arXiv 1503.02531). No gradient reaches the teacher.
    """
    teacher_log = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    student_log = jax.nn.log_softmax(student_logits / temperature)
    divergence = jnp.sum(jnp.exp(teacher_log) * (teacher_log - student_log), axis=-1)
    valid = jnp.broadcast_to(valid, divergence.shape)
    return temperature**2 * jnp.sum(divergence * valid) / jnp.maximum(jnp.sum(valid), 1)


def crossed_depth(
    teacher_logits: Float[Array, "b n h w k"],
    student_centers_m: Float[Array, "b n k"],
    mean_of: str = DEPTH,
) -> Float[Array, "b n h w"]:
    """Metres of the teacher's probabilities on the student's centers, read as the student's are.

    The probabilities are constant, so a loss on this depth moves the student's centers alone.
    """
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits))
    return expected_depth(probabilities, student_centers_m, mean_of)
