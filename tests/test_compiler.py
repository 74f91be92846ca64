"""oneDNN's convolutions on CPUs whose XLA has them: the same training step as with XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsmde_jax import compiler, export
from fsmde_jax.models.student import Student, StudentConfig


@pytest.fixture(scope="module", autouse=True)
def cached_again():
    """After these tests programs are written into the cache as before."""
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


@pytest.fixture(scope="module")
def options():
    found = compiler.step_options(1000)
    if not found:
        pytest.skip("this XLA has no oneDNN")
    return found


@pytest.fixture(scope="module")
def student():
    return Student(
        StudentConfig.tiny(),
        num_bins=16,
        min_depth_m=0.1,
        max_depth_m=200.0,
        canonical_focal_px=60.0,
        centers_of="image",
        centers_kind="unbounded",
        rngs=nnx.Rngs(0),
    )


@pytest.fixture(scope="module")
def rig():
    """Images and intrinsics of two cameras."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 64, 3))
    intrinsics = jnp.array([[60.0, 0, 32], [0, 60, 16], [0, 0, 1]])
    return jnp.asarray(pixels, jnp.uint8), jnp.tile(intrinsics, (1, 2, 1, 1))


def test_a_student_predicts_the_same(options, student, rig):
    student.eval()
    depths, texts = [], []
    for chosen in ({}, compiler.inference_options()):
        predict = jax.jit(export.inference(student), compiler_options=chosen).lower(*rig).compile()
        depths.append(predict(*rig)[0])
        texts.append(predict.as_text())
    assert ["__onednn$convolution" in text for text in texts] == [False, True]
    np.testing.assert_allclose(*depths, rtol=1e-5)


@pytest.fixture
def unasked():
    """Nothing is known of this XLA, before the test and after it."""
    compiler._has_onednn.cache_clear()
    yield
    compiler._has_onednn.cache_clear()


def test_a_student_has_the_same_depth_and_gradients(options, student, rig):
    graph, params, rest = nnx.split(student, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest, copy=True)
        model.train()
        return jnp.mean(jnp.log(model(*rig, jnp.ones((1, 2), bool)).depth_m) ** 2)

    results, texts = [], []
    for chosen in ({}, options):
        step = jax.jit(jax.value_and_grad(loss), compiler_options=chosen).lower(params).compile()
        results.append(step(params))
        texts.append(step.as_text())
    assert [text.count("__onednn$convolution") > 10 for text in texts] == [False, True]
    (value, gradients), (other_value, other_gradients) = results
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    for leaf, other in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5 * scale)


def test_no_such_program_is_written_into_the_cache(options):
    """To serialise it ends jax 0.12 by a segmentation fault at times."""
    assert jax.config.jax_persistent_cache_min_compile_time_secs == np.inf


def test_short_runs_and_other_devices_are_left_to_xla(monkeypatch, unasked):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("XLA was asked"))
    assert compiler.step_options(40) == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler.step_options(1000) == compiler.inference_options() == {}


def test_an_xla_without_the_options_chooses(monkeypatch, unasked):
    monkeypatch.setattr(compiler, "_INFERENCE", {"xla_cpu_no_such_option": True})
    assert compiler.step_options(1000) == compiler.inference_options() == {}
