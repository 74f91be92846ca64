"""oneDNN's convolutions on CPUs whose XLA has them: the same training step as with XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from fsmde_jax.export import formats
from fsmde_jax.models.layers import compiler
from fsmde_jax.models.student import Student, StudentConfig


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
        _, predict = compiler.Program(formats.inference(student), chosen).compile(*rig)
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
        _, step = compiler.Program(jax.value_and_grad(loss), chosen).compile(params)
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


@pytest.fixture
def cache(tmp_path):
    """A folder that jax writes every program into, however quickly it was compiled."""
    keys = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {key: getattr(jax.config, key) for key in keys}
    for key, value in zip(keys, (str(tmp_path), 0.0), strict=True):
        jax.config.update(key, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for key, value in before.items():
        jax.config.update(key, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("call", [True, False])
def test_a_program_with_onednn_alone_is_not_written_into_the_cache(cache, call):
    """To serialise one ends jax 0.12 by a segmentation fault at times; others are written."""
    x = np.arange(4.0)

    def program(factor, options):
        made = compiler.Program(lambda x: factor * x, options)
        return made(x) if call else made.compile(x)

    program(3.0, {"xla_cpu_use_onednn": False})  # any option stands for oneDNN's
    assert not list(cache.iterdir())
    program(5.0, {})
    assert list(cache.iterdir())


def test_short_runs_and_other_devices_are_left_to_xla(monkeypatch, unasked):
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("XLA was asked"))
    assert compiler.step_options(40) == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler.step_options(1000) == compiler.inference_options() == {}


def test_an_xla_without_the_options_chooses(monkeypatch, unasked):
    monkeypatch.setattr(compiler, "_INFERENCE", {"xla_cpu_no_such_option": True})
    assert compiler.step_options(1000) == compiler.inference_options() == {}
