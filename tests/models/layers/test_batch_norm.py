"""Batch norm against flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsmde_jax.models.layers.batch_norm import BatchNorm

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_batch_norm_equals_that_of_flax(masked, dtype):
    x, y_grad = 3 + 2 * normal(4, 6, 5, 7), normal(4, 6, 5, 7)
    x = x.astype(dtype)
    mask = jnp.array([True, False, True, True]) if masked else jnp.ones(4, bool)
    mask = mask[:, None, None, None]

    def results(kind):
        norm = kind(7, momentum=0.9, epsilon=1e-3, rngs=nnx.Rngs(0))
        graph, params, rest = nnx.split(norm, nnx.Param, ...)
        params = jax.tree.map(lambda value: value + 0.5, params)

        def loss(params, x):
            norm = nnx.merge(graph, params, rest, copy=True)
            y = norm(x, mask=mask)
            if kind is BatchNorm:
                assert y.dtype == dtype  # flax widens to float32
                y = y.astype(jnp.float32)
            return jnp.sum(y * y_grad), (y, nnx.state(norm, nnx.BatchStat))

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    ours, flax_s = results(BatchNorm), results(nnx.BatchNorm)
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(flax_s), strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_batch_norm_in_inference_reads_the_running_statistics():
    norm, x = BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0)), normal(2, 4, 4, 3)
    norm(x)
    found = norm.mean[...], norm.var[...]
    norm.eval()
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_allclose(
        norm(x), (x - found[0]) / np.sqrt(found[1] + norm.epsilon), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(norm.mean[...], found[0])
