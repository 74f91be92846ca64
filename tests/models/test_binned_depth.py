"""Depth in strips against the plain mean over bins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsmde_jax.models import binned_depth
from fsmde_jax.models.bins import BinningHead

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("rows", "mean_of"), [(1, "depth"), (3, "depth"), (3, "log_depth"), (4, "inverse_depth")]
)
def test_strips_give_the_depth_and_gradients_of_the_whole(rows, mean_of, monkeypatch):
    options = {"min_depth_m": 0.5, "max_depth_m": 80.0, "mean_of": mean_of}
    head = BinningHead(6, 5, 8, **options, rngs=nnx.Rngs(0))
    graph, state = nnx.split(head)
    state = jax.tree.map(lambda value: value + 0.1 * normal(*value.shape), state)
    rest = normal(2, 3, 5), jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    weight = normal(2, 3, 12, 10)
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def results(strip_numbers):
        monkeypatch.setattr(binned_depth, "_STRIP_NUMBERS", strip_numbers)

        def loss(state, features, rest):
            depth_m = nnx.merge(graph, state)(features, *rest).depth_m
            return jnp.sum(weight * jnp.log(depth_m)), depth_m

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(state, features, rest)

    features = normal(2, 3, 12, 10, 6)
    strips, whole = results(rows * 10 * (6 + 8)), results(1e9)
    for ours, plain in zip(jax.tree.leaves(strips), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5 * np.abs(plain).max())
