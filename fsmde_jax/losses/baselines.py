"""Distillation baselines: the teacher's depth, its features, similarity within a view.

Feature terms compare the unit tokens of `view_relational.pool_tokens`, so the size of features
does not matter. No gradient reaches the teacher.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fsmde_jax.precision import full_precision


def response_loss(
    teacher_log_depth: Float[Array, "b n h w"],
    student_depth_m: Float[Array, "b n h w"],
    valid: Bool[Array, "b n #h #w"],
) -> Float[Array, ""]:
    """Scale-invariant log error between the teacher's depth and the student's, camera by camera.

    The standard deviation over an image's valid pixels of log student - log teacher: the error of
    Eigen et al. (arXiv 1406.2283) with lambda = 1, with its root as in `depth.silog`. A relative
    teacher's scale differs from image to image, so no scale is distilled, not even from a metric
    teacher: LiDAR alone teaches metres. CKD's structure term compares the crossed depth likewise.
    """
    error = jnp.log(student_depth_m) - jax.lax.stop_gradient(teacher_log_depth)
    valid = jnp.broadcast_to(valid, error.shape)
    count = jnp.maximum(jnp.sum(valid, axis=(-1, -2), keepdims=True), 1)
    mean = jnp.sum(error * valid, axis=(-1, -2), keepdims=True) / count
    variance = jnp.sum((error - mean) ** 2 * valid / count, axis=(-1, -2))
    # The floor keeps the square root's slope finite when everything fits.
    deviation = jnp.sqrt(jnp.maximum(variance, 1e-6))
    return _mean_of_present(deviation, jnp.any(valid, axis=(-1, -2)))


class FeatureAdapter(nnx.Module):
    """FitNets' regressor (arXiv 1412.6550): a 1x1 convolution from student to teacher channels.

    It learns with the student and is thrown away after training. Without bias it may act on
    pooled tokens: it commutes with their average, and their unit length scales its output only.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(student_channels, teacher_channels, use_bias=False, rngs=rngs)

    @full_precision
    def __call__(self, tokens: Float[Array, "b n t d"]) -> Float[Array, "b n t c"]:
        """Student tokens in the teacher's space, of unit length."""
        adapted = self.linear(tokens)
        return adapted * jax.lax.rsqrt(jnp.sum(adapted**2, -1, keepdims=True) + 1e-8)


def feature_loss(
    teacher_tokens: Float[Array, "b n t c"],
    adapted_tokens: Float[Array, "b n t c"],
    camera_mask: Bool[Array, "b n"],
) -> Float[Array, ""]:
    """Squared distance of unit tokens (FitNets, arXiv 1412.6550), which is 2 - 2 cosine.

    `adapted_tokens` are the student's after `FeatureAdapter`. FitNets compares features as they
    are; a foundation model's come in any size, so here only directions count.
    """
    distance = jnp.sum((adapted_tokens - jax.lax.stop_gradient(teacher_tokens)) ** 2, axis=-1)
    return _mean_of_present(jnp.mean(distance, axis=-1), camera_mask)


@full_precision
def pairwise_loss(
    teacher_tokens: Float[Array, "b n t c"],
    student_tokens: Float[Array, "b n t d"],
    camera_mask: Bool[Array, "b n"],
) -> Float[Array, ""]:
    """Mean squared difference of the token similarities within each camera.

    The pair-wise distillation of Liu et al. (arXiv 1903.04197).
    """
    teacher_tokens = jax.lax.stop_gradient(teacher_tokens)
    teacher, student = (
        jnp.einsum("bntc,bnsc->bnts", tokens, tokens) for tokens in (teacher_tokens, student_tokens)
    )
    return _mean_of_present(jnp.mean((teacher - student) ** 2, axis=(-1, -2)), camera_mask)


def _mean_of_present(
    per_camera: Float[Array, "b n"], camera_mask: Bool[Array, "b n"]
) -> Float[Array, ""]:
    return jnp.sum(per_camera * camera_mask) / jnp.maximum(jnp.sum(camera_mask), 1)
