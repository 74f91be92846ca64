"""Batch norm (Ioffe and Szegedy, arXiv 1502.03167) with its gradient written out.

XLA takes flax's batch norm and the gradient that jax derives of it through memory about twice as
often as need be: on two CPU cores .7 of the 5.2 s of a ResNet-18's training step at 6x384x640
(`fsmde_jax/reports/training_speed.md`).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` of maps: the same parameters, statistics and results but for rounding.

    It computes in float32; the result has the type of the maps, so that networks in bfloat16 do not
    write float32 to memory between their layers.
    """

    def __call__(
        self, x: Float[Array, "b h w c"], mask: Bool[Array, "b 1 1 1"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Normalises, in training by the statistics of the images that `mask` chooses."""
        if self.use_running_average:
            return super().__call__(x).astype(x.dtype)
        if mask is None:
            mask = jnp.ones((len(x), 1, 1, 1), bool)
        y, mean, variance = _normalise(x, self.scale[...], self.bias[...], mask, self.epsilon)
        for running, found in ((self.mean, mean), (self.var, variance)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * found
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalise(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    mask: Bool[Array, "b 1 1 1"],
    epsilon: float,
) -> tuple[Float[Array, "b h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """The normalised maps, mean and variance; no gradient comes back through those two."""
    return _normalise_and_save(x, scale, bias, mask, epsilon)[0]


def _normalise_and_save(x, scale, bias, mask, epsilon):
    count = jnp.maximum(jnp.sum(mask) * x.shape[1] * x.shape[2], 1)
    wide = x.astype(jnp.float32)
    mean, square = (
        jnp.sum(values, (0, 1, 2), where=mask) / count for values in (wide, wide * wide)
    )
    variance = jnp.maximum(square - mean * mean, 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    # A product and a sum, here and below: XLA would write x - mean out, to use it again.
    factor = inverse * scale
    y = (wide * factor + (bias - mean * factor)).astype(x.dtype)
    return (y, mean, variance), (x, mean, inverse, scale, mask, count)


def _gradients(_, saved, out_grads):
    x, mean, inverse, scale, mask, count = saved
    y_grad = out_grads[0].astype(jnp.float32)
    wide = x.astype(jnp.float32)
    bias_grad = jnp.sum(y_grad, (0, 1, 2))
    scale_grad = jnp.sum(y_grad * (wide - mean), (0, 1, 2)) * inverse
    # What every pixel that counted gets through the mean and the variance: slope * x + level.
    factor = inverse * scale
    slope = -factor * inverse * scale_grad / count
    level = -factor * bias_grad / count - slope * mean
    x_grad = y_grad * factor + jnp.where(mask, wide * slope + level, 0.0)
    return x_grad.astype(x.dtype), scale_grad, bias_grad, None


_normalise.defvjp(_normalise_and_save, _gradients)
