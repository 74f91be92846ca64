"""Fits of one image's depth to another by least squares."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def moments(
    x: Float[Array, "p"], y: Float[Array, "p"], valid: Bool[Array, "p"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Means of x and y, their covariance and the variance of x, over `valid`."""
    count = jnp.maximum(jnp.sum(valid), 1)
    mean = lambda values: jnp.sum(jnp.where(valid, values, 0.0)) / count  # noqa: E731
    mean_x, mean_y = mean(x), mean(y)
    x, y = x - mean_x, y - mean_y
    return mean_x, mean_y, mean(x * y), mean(x * x)


def align(
    inverse_depth: Float[Array, "h w"],
    truth_inverse_depth: Float[Array, "h w"],
    valid: Bool[Array, "h w"],
) -> Float[Array, "h w"]:
    """An image's inverse depth scaled and shifted onto its truth by least squares (MiDaS).

    The scale stays positive, so that far never becomes near.
    """
    mean, mean_truth, covariance, variance = moments(
        inverse_depth.ravel(), truth_inverse_depth.ravel(), valid.ravel()
    )
    scale = jnp.maximum(covariance, 1e-6) / jnp.maximum(variance, 1e-6)
    return scale * (inverse_depth - mean) + mean_truth
