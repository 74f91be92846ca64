"""What must hold on an accelerator: `pytest -m gpu -n 0`. Elsewhere these are skipped.

Each compares the accelerator with the CPU of the same process, on the same inputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ddad_step import ddad_step, random_values
from flax import nnx
from jax.sharding import Mesh
from tiny_run import prepare_recording, tiny_config

from fsmde_jax.config import default_config
from fsmde_jax.data import pipeline
from fsmde_jax.evaluate import cross_view, metrics
from fsmde_jax.export import formats
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.models import binned_depth
from fsmde_jax.models.foundation.vit import attend
from fsmde_jax.models.layers import resize
from fsmde_jax.run import sharding
from fsmde_jax.tasks import build_student, student_inputs

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu():
    found = jax.devices()[0]
    if found.platform == "cpu":
        pytest.skip("no accelerator")
    return found


def on_both(gpu, function, *arrays):
    """The function's outputs on the CPU and on the accelerator, as numpy."""
    outputs = []
    for device in (jax.devices("cpu")[0], gpu):
        placed = jax.device_put(arrays, device)
        outputs.append(jax.device_get(jax.jit(function)(*placed)))
    return outputs


def assert_close(gpu, function, *arrays, rtol=1e-5, atol=1e-6):
    cpu, found = on_both(gpu, function, *arrays)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(cpu), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def fresh_student(dtype):
    config = default_config()
    config.student.size, config.train.dtype = "tiny", dtype
    student = build_student(config, nnx.Rngs(0))
    student.eval()
    return student


def step_on_both(gpu, dtype):
    """Loss and gradient norm of a whole distillation step, every term on."""
    loss, model, batch = ddad_step(dtype, **dict.fromkeys(DISTILLATION, 1.0))

    def step(params, batch_stats, teacher_state, batch):
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, batch_stats, teacher_state, batch
        )
        squares = [jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(gradient)]
        return value, jnp.sqrt(sum(squares))

    shapes = (model.params, model.batch_stats, model.teacher_state)
    return on_both(gpu, step, *map(random_values, shapes), batch)


def test_a_float32_step_is_the_cpus(gpu):
    cpu, found = step_on_both(gpu, "float32")
    np.testing.assert_allclose(found, cpu, rtol=1e-3)


def test_a_bfloat16_step_is_near_the_cpus_float32_step(gpu):
    cpu, _ = step_on_both(gpu, "float32")
    _, found = step_on_both(gpu, "bfloat16")
    np.testing.assert_allclose(found[0], cpu[0], rtol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_students_depth_is_the_cpus(gpu, dtype):
    student = fresh_student(dtype)
    graphdef, state = nnx.split(student)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 96, 160, 3), np.uint8)
    intrinsics = np.tile(np.float32([[180, 0, 80], [0, 180, 48], [0, 0, 1]]), (1, 3, 1, 1))
    run = lambda state, *inputs: nnx.merge(graphdef, state)(*inputs).depth_m  # noqa: E731
    tolerance = 1e-4 if dtype == "float32" else 0.05
    assert_close(gpu, run, state, image, intrinsics, np.ones((1, 3), bool), rtol=tolerance)


@pytest.mark.parametrize("mean_of", ["depth", "log_depth", "inverse_depth"])
def test_metres_of_bins_are_the_cpus(gpu, mean_of):
    logits, centers = 3 * random(1, 2, 24, 32, 64), np.sort(np.exp(random(1, 2, 64, seed=1)), -1)

    def depth(logits, centers):
        return binned_depth.expected_depth(jax.nn.softmax(logits), centers, mean_of)

    assert_close(gpu, depth, logits, centers, rtol=2e-6)


def test_attention_is_the_cpus(gpu):
    query, key, value = (random(2, 200, 3, 64, seed=seed) for seed in range(3))
    assert_close(gpu, attend, query, key, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resized", [resize.resize_bilinear, resize.resize_bicubic])
def test_resizing_is_the_cpus(gpu, resized):
    assert_close(gpu, lambda image: resized(image, (50, 77)), random(2, 24, 40, 3), rtol=1e-4)


def test_metrics_are_the_cpus(gpu):
    depth, truth = np.exp(random(20_000)), np.exp(random(20_000, seed=1))
    valid = truth > 0.3

    def sums(depth, truth, valid):
        scaled = metrics.scaled(depth, truth, valid, "median_image")
        return metrics.error_sums(scaled, truth, valid), metrics.masked_median(depth, valid)

    assert_close(gpu, sums, depth, truth, valid, rtol=1e-5)


def test_overlaps_of_a_ring_are_the_cpus(gpu):
    depth = np.exp(0.3 * random(1, 3, 24, 40) + 2)
    intrinsics = np.tile(np.float32([[20, 0, 20], [0, 20, 12], [0, 0, 1]]), (1, 3, 1, 1))
    poses = np.tile(np.eye(4, dtype=np.float32), (1, 3, 1, 1))
    poses[0, :, 0, 3] = [0.0, 0.2, 0.4]
    neighbour, mask = np.array([[1, 2, 0]], np.int32), np.ones((1, 3), bool)

    def disagreement(depth, intrinsics, poses, neighbour, mask):
        return cross_view.overlap_disagreement(depth, intrinsics, (24, 40), poses, neighbour, mask)

    assert_close(gpu, disagreement, depth, intrinsics, poses, neighbour, mask, rtol=1e-3)


def test_an_exported_student_runs_there(gpu):
    pytest.importorskip("flatbuffers")
    student = fresh_student("float32")
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 64, 3), np.uint8)
    intrinsics = np.tile(np.float32([[60, 0, 32], [0, 60, 16], [0, 0, 1]]), (2, 3, 1, 1))
    shapes = formats.free_batch({"image": image, "intrinsics": intrinsics})
    exported = jax.export.export(
        jax.jit(formats.inference(student)), platforms=("cpu", "cuda", "tpu")
    )(*shapes.values())
    loaded = jax.export.deserialize(exported.serialize())
    assert_close(gpu, loaded.call, image, intrinsics, rtol=1e-3)


def test_batches_arrive_there(gpu, tmp_path):
    config = tiny_config(prepare_recording(tmp_path))
    batches = pipeline.train_batches(
        config.data, 0, sharding.batch_sharding(Mesh(np.array([[gpu]]), ("data", "fsdp")))
    )
    batch = next(batches)
    batches.close()
    assert all(array.devices() == {gpu} for array in batch.values())
    image, *_ = student_inputs(batch)
    assert image.shape == (8, 6, 32, 64, 3)
