"""Depth of the binning head in horizontal strips that fit the caches, for training on CPUs.

Layer norm, classifier, softmax and the mean over bins of all pixels at once are passes over maps of
as many numbers as pixels times bins, each several times the cache. In strips nothing of it reaches
the memory, and the gradient makes it anew instead of reading it (as FlashAttention does, arXiv
2205.14135): 155 ms for 400 with 64 bins on six maps of 192x320 and two cores.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fsmde_jax.precision import full_precision

# What the bins' mean is of. In doubt between near and far, depth's is the farthest, that of inverse
# depth the nearest.
DEPTH, LOG_DEPTH, INVERSE_DEPTH = MEANS = ("depth", "log_depth", "inverse_depth")
# What centers become before it, and what the mean becomes after it.
_BEFORE_AND_AFTER = {
    DEPTH: (jnp.positive, jnp.positive),
    LOG_DEPTH: (jnp.log, jnp.exp),
    INVERSE_DEPTH: (jnp.reciprocal, jnp.reciprocal),
}
_EPSILON = 1e-6  # of flax's layer norm
# Numbers of a strip's pixels, channels and bins together, that stay in the caches (3 MB).
_STRIP_NUMBERS = 800_000


class PixelWeights(NamedTuple):
    """Parameters of a head's layer norm and classifier."""

    scale: Float[Array, " c"]
    shift: Float[Array, " c"]
    kernel: Float[Array, "c k"]
    bias: Float[Array, " k"]


@full_precision
def expected_depth(
    probabilities: Float[Array, "b n h w k"], centers_m: Float[Array, "b n k"], mean_of: str = DEPTH
) -> Float[Array, "b n h w"]:
    """Probability-weighted mean of the bin centers, in metres; `mean_of` is one of `MEANS`."""
    before, after = _BEFORE_AND_AFTER[mean_of]
    return after(jnp.einsum("bnhwk,bnk->bnhw", probabilities, before(centers_m)))


def depth_of_bins(
    logits: Float[Array, "b n h w k"],
    centers_m: Float[Array, "b n k"],
    features: Float[Array, "b n h w c"],
    weights: PixelWeights,
    mean_of: str = DEPTH,
) -> Float[Array, "b n h w"]:
    """The same of float32 `logits` that `weights` make of `features`.

    Where the CPU is the only device, large maps are differentiated in strips, by features and
    weights; otherwise the gradient goes through the logits.
    """
    cpu_alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    if cpu_alone and _rows(features, weights) < logits.shape[2]:
        before, after = _BEFORE_AND_AFTER[mean_of]
        logits = jax.lax.stop_gradient(logits)
        return after(_in_strips(logits, before(centers_m), features, weights))
    return expected_depth(jax.nn.softmax(logits), centers_m, mean_of)


@jax.custom_vjp
def _in_strips(logits, centers_m, features, weights):
    """Without a gradient the logits are used directly; confidence needs them in any case."""
    del features, weights
    return expected_depth(jax.nn.softmax(logits), centers_m)


def _forward(_, centers_m, features, weights):
    def depth_of(strip):
        return _depth_of_strip(*strip, weights)[0]

    depth_m = jax.lax.map(depth_of, _strips(features, centers_m, weights))
    return depth_m.reshape(features.shape[:-1]), (centers_m, features, weights)


def _backward(saved, depth_grad):
    centers_m, features, weights = saved
    strips, strip_centers_m = _strips(features, centers_m, weights)
    depth_grads = depth_grad.reshape(*strips.shape[:-1], 1)

    def renew(index, state):
        maps, centers_grad, weights_grad = state
        pick = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
        by_strip, by_centers, by_weights = _gradients_of_strip(
            pick(maps), pick(strip_centers_m), pick(depth_grads), weights
        )
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=0)
        weights_grad = jax.tree.map(jnp.add, weights_grad, by_weights)
        return put(maps, by_strip), put(centers_grad, by_centers), weights_grad

    # A strip's gradient takes the strip's place: no further map is written.
    zeros = jax.tree.map(jnp.zeros_like, (strip_centers_m, weights))
    strips, centers_grad, weights_grad = jax.lax.fori_loop(0, len(strips), renew, (strips, *zeros))
    b, n, bins = centers_m.shape
    centers_grad = jnp.sum(centers_grad.reshape(b, n, -1, bins), axis=2)
    no_grad = jnp.zeros((*depth_grad.shape, bins))
    return no_grad, centers_grad, strips.reshape(features.shape), weights_grad


_in_strips.defvjp(_forward, _backward)


def _strips(features, centers_m, weights):
    """Strips [s p c] of every camera's map, one after the other, and each one's centers [s k]."""
    _, _, height, width, channels = features.shape
    rows = _rows(features, weights)
    centers_m = jnp.repeat(centers_m.reshape(-1, centers_m.shape[-1]), height // rows, axis=0)
    return features.reshape(-1, rows * width, channels), centers_m


def _rows(features, weights) -> int:
    """Rows of a strip: a divisor of the maps' height."""
    height, width, channels = features.shape[2:]
    fitting = _STRIP_NUMBERS // (width * (channels + len(weights.bias)))
    return max(rows for rows in range(1, max(1, min(fitting, height)) + 1) if height % rows == 0)


@full_precision
def _depth_of_strip(strip, centers_m, weights):
    """Depth [p 1], and what the gradient needs besides."""
    mean = jnp.mean(strip, -1, keepdims=True)
    variance = jnp.mean(strip * strip, -1, keepdims=True) - mean * mean
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + _EPSILON)
    normal = (strip - mean) * inverse
    logits = (normal * weights.scale + weights.shift) @ weights.kernel + weights.bias
    odds = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    # Sums of odds times centers and of the odds, as one product.
    sums = odds @ jnp.stack([centers_m, jnp.ones_like(centers_m)], -1)
    return sums[:, :1] / sums[:, 1:], normal, inverse, odds, sums[:, 1:]


@full_precision
def _gradients_of_strip(strip, centers_m, depth_grad, weights):
    depth_m, normal, inverse, odds, total = _depth_of_strip(strip, centers_m, weights)
    by_centers = odds * (depth_grad / total)
    by_logits = by_centers * (centers_m - depth_m)
    by_product = by_logits @ weights.kernel.T
    by_normal = by_product * weights.scale
    by_strip = inverse * (
        by_normal
        - jnp.mean(by_normal, -1, keepdims=True)
        - normal * jnp.mean(by_normal * normal, -1, keepdims=True)
    )
    by_weights = PixelWeights(
        jnp.sum(by_product * normal, 0),
        jnp.sum(by_product, 0),
        (normal * weights.scale + weights.shift).T @ by_logits,
        jnp.sum(by_logits, 0),
    )
    return by_strip, jnp.sum(by_centers, 0), by_weights
