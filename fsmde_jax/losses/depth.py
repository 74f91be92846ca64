"""Losses on depth: SILog on LiDAR, and MiDaS's affine-invariant loss on dense inverse depth."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fsmde_jax.losses.align import align
from fsmde_jax.models.layers.sampling import sample_bilinear

SILOG_FLOOR = 1e-3  # of a loss without error, or without a valid point


def sample_at_lidar(
    depth_m: Float[Array, "b n h w"], lidar_xy: Float[Array, "b n p 2"], size: tuple[int, int]
) -> Float[Array, "b n p"]:
    """Bilinear samples of each camera's map at its LiDAR points (pixels of an image of `size`)."""
    per_camera = jax.vmap(lambda depth_map, xy: sample_bilinear(depth_map, xy, size))
    return jax.vmap(per_camera)(depth_m, lidar_xy)


def silog(
    depth_m: Float[Array, "*s"],
    truth_m: Float[Array, "*s"],
    valid: Bool[Array, "*s"],
    variance_focus: float = 0.85,
) -> Float[Array, ""]:
    """Scale-invariant log error (Eigen et al., arXiv 1406.2283; square root as in BTS).

    sqrt(mean(e^2) - variance_focus * mean(e)^2), e = log depth - log truth over `valid`.
    """
    log_error = jnp.log(jnp.where(valid, depth_m, 1.0)) - jnp.log(jnp.where(valid, truth_m, 1.0))
    count = jnp.maximum(jnp.sum(valid), 1)
    mean = jnp.sum(log_error) / count
    mean_of_squares = jnp.sum(log_error**2) / count
    # The floor keeps the square root's slope finite when everything fits.
    return jnp.sqrt(jnp.maximum(mean_of_squares - variance_focus * mean**2, SILOG_FLOOR**2))


def bin_likelihood(
    logits: Float[Array, "*s k"],
    centers_m: Float[Array, "*s k"],
    truth_m: Float[Array, "*s"],
    valid: Bool[Array, "*s"],
    width: float = 0.3,
) -> Float[Array, ""]:
    """Negative log likelihood of log depth, each bin a Laplace density around its center.

    SILog sees only the mean over bins. This also teaches how widely they are spread: a head that
    is sure and wrong pays for it. Densities of this kind, not bins with edges, as centers that
    learn would otherwise move all truth into one bin.

    Args:
      width: of the densities, in log depth: .3 is a little more than the distance of 32 even bins.
    """
    log_truth = jnp.log(jnp.where(valid, truth_m, 1.0))[..., None]
    distance = jnp.abs(jnp.log(centers_m) - log_truth) / width
    log_density = jax.nn.logsumexp(jax.nn.log_softmax(logits) - distance, axis=-1)
    nll = math.log(2.0 * width) - log_density
    return jnp.sum(nll * valid) / jnp.maximum(jnp.sum(valid), 1)


def affine_invariant_loss(
    inverse_depth: Float[Array, "b h w"],
    truth_inverse_depth: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    gradient_weight: float = 0.5,
    saturation: float = 0.0,
) -> Float[Array, ""]:
    """MiDaS's aligned loss and multi-scale gradient matching (arXiv 1907.01341), in log depth.

    Prediction is aligned to truth per image by least squares of inverse depth, so neither its
    scale nor its shift matters. MiDaS then compares inverse depths, where all that is far counts
    nothing; here the residual is their ratio's logarithm, continued in a line below a quarter.

    Args:
      gradient_weight: of the differences between neighbours.
      saturation: of log residuals, 0 for none: what is much further off counts hardly more.
    """
    truth = jnp.where(valid, truth_inverse_depth, 1.0)
    ratio = jnp.where(valid, jax.vmap(align)(inverse_depth, truth, valid) / truth, 1.0)
    residual = jnp.log(jnp.maximum(ratio, 0.25)) + 4.0 * jnp.minimum(ratio - 0.25, 0.0)
    return _multi_scale_loss(residual, valid, gradient_weight, saturation)


def scale_invariant_loss(
    inverse_depth: Float[Array, "b h w"],
    truth_inverse_depth: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    gradient_weight: float = 0.5,
    saturation: float = 0.0,
) -> Float[Array, ""]:
    """The same where only the scale is aligned, per image, by the mean of log depth.

    Alignment by least squares has no slope where a fresh model takes near for far, and training
    may begin there and stay. This one has; it costs nothing where the truth has no unknown shift.
    """
    truth = jnp.where(valid, truth_inverse_depth, 1.0)
    predicted = jnp.where(valid, jnp.maximum(inverse_depth, 1e-6), 1.0)
    residual = jnp.log(predicted) - jnp.log(truth)
    count = jnp.maximum(jnp.sum(valid, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(residual, axis=(1, 2), keepdims=True) / count
    residual = jnp.where(valid, residual - mean, 0.0)
    return _multi_scale_loss(residual, valid, gradient_weight, saturation)


def _multi_scale_loss(
    residual: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    gradient_weight: float,
    saturation: float,
) -> Float[Array, ""]:
    """Mean of |residual|, and of its differences between neighbours at MiDaS's four scales.

    Beyond `saturation` |residual| counts hardly more. MiDaS leaves out the fifth of an image's
    pixels where it is largest; this asks no sorting.
    """
    distance = jnp.abs(residual)
    if saturation:
        distance = -saturation * jnp.expm1(-distance / saturation)
    loss = jnp.sum(distance) / jnp.maximum(jnp.sum(valid), 1)
    for scale in range(4):
        step = 2**scale
        loss += gradient_weight * _gradient_loss(
            residual[:, ::step, ::step], valid[:, ::step, ::step]
        )
    return loss


def _gradient_loss(
    residual: Float[Array, "b h w"], valid: Bool[Array, "b h w"]
) -> Float[Array, ""]:
    both_x = valid[:, :, 1:] & valid[:, :, :-1]
    both_y = valid[:, 1:] & valid[:, :-1]
    along_x = jnp.abs(residual[:, :, 1:] - residual[:, :, :-1]) * both_x
    along_y = jnp.abs(residual[:, 1:] - residual[:, :-1]) * both_y
    return (jnp.sum(along_x) + jnp.sum(along_y)) / jnp.maximum(jnp.sum(valid), 1)
