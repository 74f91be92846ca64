"""Which precision the traced programs ask for; devices of lower precision are not needed."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from ddad_step import ddad_step, random_values
from flax import nnx

from fsmde_jax.config import SCALINGS
from fsmde_jax.evaluate import cross_view, metrics
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.models import binned_depth
from fsmde_jax.models.encoders import mobilenet, resnet
from fsmde_jax.models.layers.resize import resize_bilinear
from fsmde_jax.precision import full_precision

HIGHEST = jax.lax.Precision.HIGHEST
PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr) -> Iterator:
    """All equations of a program, also of those that it calls, on any platform."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def trace(function, *args) -> list:
    return list(equations(jax.make_jaxpr(function)(*args).jaxpr))


def coarse(found: list) -> list[str]:
    """The products of float32 that a device may compute in less."""
    return [
        str(equation)
        for equation in found
        if equation.primitive.name in PRODUCTS
        and any(v.aval.dtype == jnp.float32 for v in equation.invars)
        and equation.params["precision"] not in (HIGHEST, (HIGHEST, HIGHEST))
    ]


@pytest.fixture(scope="module")
def step_equations():
    """The gradient of a whole bf16 step, every term on: what is float32 in it is no network's."""
    loss, model, batch = ddad_step("bfloat16", **dict.fromkeys(DISTILLATION, 1.0))
    gradient = jax.grad(loss, has_aux=True)
    return trace(gradient, model.params, model.batch_stats, model.teacher_state, batch)


def test_a_distillation_step_multiplies_float32_in_float32(step_equations):
    names = [equation.primitive.name for equation in step_equations]
    assert names.count("dot_general") > 20 and names.count("conv_general_dilated") > 20
    assert coarse(step_equations) == []


def test_between_the_layers_of_a_bf16_step_maps_are_bf16(step_equations):
    """Its convolutions read and write no float32."""
    wide = [
        str(equation)
        for equation in step_equations
        if equation.primitive.name == "conv_general_dilated"
        and any(v.aval.dtype == jnp.float32 for v in (*equation.invars, *equation.outvars))
    ]
    assert wide == []


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("encoder", ["resnet", "mobilenet"])
def test_a_bf16_encoder_writes_bf16(encoder, train):
    def blocks(x):
        options = {"stride": 1, "rngs": nnx.Rngs(0), "dtype": jnp.bfloat16}
        if encoder == "resnet":
            block = resnet.BasicBlock(4, 4, **options)
        else:
            block = mobilenet.InvertedResidual(4, 4, kernel=3, expansion=2, **options)
        (block.train if train else block.eval)()
        return block(x)

    assert jax.eval_shape(blocks, jnp.zeros((1, 8, 8, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_interpolation_weights_of_bf16_maps_stay_float32():
    """A third and two thirds are not what bf16 has; and 1 is not lost in 256 values' sums."""
    x = jnp.linspace(0, 1, 6).reshape(1, 1, 6, 1).astype(jnp.bfloat16)
    forward = lambda x: resize_bilinear(x, (1, 16))  # noqa: E731
    backward = jax.grad(lambda x: jnp.sum(forward(x).astype(jnp.float32)))
    for function in (forward, backward):
        products = [e for e in trace(function, x) if e.primitive.name == "dot_general"]
        assert products
        assert all(v.aval.dtype == jnp.float32 for e in products for v in e.invars)
        assert function(x).dtype == jnp.bfloat16


def strips(features, weights, centers_m):
    kernel, shift = weights
    parts = binned_depth.PixelWeights(shift, shift, kernel, kernel[0])
    zeros = jnp.zeros((*features.shape[:-1], kernel.shape[-1]))
    return jnp.sum(binned_depth._in_strips(zeros, centers_m, features, parts))


def test_measures_and_strips_multiply_float32_in_float32():
    b, n, h, w, p = 1, 2, 8, 12, 5
    maps, points, mask = jnp.ones((b, n, h, w)), jnp.ones(p), jnp.ones(p, bool)
    poses = (jnp.ones((b, n, 3, 3)), (h, w), jnp.ones((b, n, 4, 4)))
    ring = (jnp.zeros((b, n), jnp.int32), jnp.ones((b, n), bool))
    found = trace(lambda m: cross_view.overlap_disagreement(m, *poses, *ring), maps)
    assert [e.primitive.name for e in found].count("dot_general") >= 4
    for scaling in SCALINGS:
        found += trace(lambda d, s=scaling: metrics.scaled(d, points, mask, s), points)
    found += trace(lambda d: metrics.error_sums(d, points, mask), points)
    features, weights = jnp.ones((b, n, 4, 6, 3)), (jnp.ones((3, 7)), jnp.ones(3))
    differentiated = trace(jax.grad(strips, (0, 1)), features, weights, jnp.ones((b, n, 7)))
    assert [e.primitive.name for e in differentiated].count("dot_general") >= 5
    assert coarse(found + differentiated) == []


def test_full_precision_reaches_gradients():
    product = lambda a, b: jnp.sum((a @ b) ** 2)  # noqa: E731
    a = jnp.ones((3, 3))
    assert len(coarse(trace(jax.grad(product), a, a))) == 2
    assert coarse(trace(jax.grad(full_precision(product)), a, a)) == []


def test_a_bf16_distillation_step_is_within_two_percent_of_float32():
    found = {}
    for dtype in ("float32", "bfloat16"):
        loss, model, batch = ddad_step(dtype)
        states = map(random_values, (model.params, model.batch_stats, model.teacher_state))
        total, terms = jax.jit(loss)(*states, batch)
        found[dtype] = {"loss": total, **terms}
    assert set(found["float32"]) == {"loss", "silog", "ckd_divergence", "ckd_crossing", "vrkd"}
    for name, value in found["float32"].items():
        assert abs(found["bfloat16"][name] / value - 1) < 0.02, name
