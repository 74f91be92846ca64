"""The ways to convolve on CPUs, and their gradients, against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsmde_jax.models.layers import winograd
from fsmde_jax.models.layers.convolution import convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32))


def assert_equals_xlas(x, kernel, strides, padding, groups=1):
    options = {"dimension_numbers": LAYOUT, "feature_group_count": groups}

    def results(conv):
        def loss(x, kernel):
            out = conv(x, kernel, strides, padding, **options)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)

    def assert_close(ours, theirs):
        assert np.abs(ours - theirs).max() < 5e-5 * np.abs(theirs).max()

    jax.tree.map(assert_close, results(convolve), results(jax.lax.conv_general_dilated))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(kernel, stride):
    x, weight = normal(2, 8, 7, 6), normal(kernel, kernel, 1, 6)
    assert_equals_xlas(x, weight, (stride, stride), "SAME", groups=6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
def test_one_by_one(strides):
    assert_equals_xlas(normal(2, 9, 6, 5), normal(1, 1, 5, 4), strides, [(0, 0), (0, 0)])


@pytest.mark.parametrize(
    "shape", [(2, 32, 64, 3), (7, 13, 22, 4), (1, 45, 41, 2), (100, 3, 1, 2)], ids=str
)
@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1))], ids=str)
def test_three_by_three(shape, padding, monkeypatch):
    monkeypatch.setattr(winograd, "_WORTH_FLOP", 0)
    x, kernel = normal(*shape), normal(3, 3, shape[-1], 6)
    assert winograd.pays(x.shape, kernel.shape)
    assert_equals_xlas(x, kernel, (1, 1), padding)


def test_three_by_three_in_strips_of_several_rows_of_tiles(monkeypatch):
    monkeypatch.setattr(winograd, "_STRIP_NUMBERS", 36 * (2 + 3) * 2 * 5 * 3)  # three rows
    x, out_grad = normal(2, 26, 17, 2), normal(2, 26, 17, 3)

    def convolved(kernel):
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)
        return jnp.sum(out * out_grad)

    expected = jax.grad(convolved)(jnp.zeros((3, 3, 2, 3)))
    np.testing.assert_allclose(winograd.kernel_gradient_3x3(x, out_grad), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        ((3, 3, 4, 4), (2, 2), ((1, 1), (1, 1))),
        ((3, 3, 4, 4), (1, 1), ((0, 0), (1, 1))),
        ((5, 5, 4, 4), (1, 1), ((2, 2), (2, 2))),
    ],
)
def test_winograd_knows_what_it_is_not_for(kernel, strides, padding):
    assert not winograd.applies(kernel, strides, padding)
    assert_equals_xlas(normal(2, 33, 31, 4), normal(*kernel), strides, padding)


def test_small_maps_and_wide_kernels_stay_xlas():
    assert not winograd.pays((2, 12, 20, 64), (3, 3, 64, 64))
    assert not winograd.pays((12, 12, 20, 512), (3, 3, 512, 512))
    assert winograd.pays((6, 24, 40, 256), (3, 3, 256, 256))


def test_bfloat16_modules_take_it(monkeypatch):
    monkeypatch.setattr(winograd, "_WORTH_FLOP", 0)
    conv = nnx.Conv(
        4, 6, (3, 3), conv_general_dilated=convolve, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    x = normal(2, 32, 64, 4)
    grads = nnx.grad(lambda conv: jnp.sum(conv(x).astype(jnp.float32) ** 2))(conv)
    assert grads.kernel[...].dtype == jnp.float32
    assert jnp.isfinite(grads.kernel[...]).all()


@pytest.mark.parametrize("size", [(8, 12), (2, 6)], ids=str)
def test_halving(size):
    assert_equals_xlas(normal(3, *size, 4), normal(3, 3, 4, 5), (2, 2), [(1, 1), (1, 1)])
