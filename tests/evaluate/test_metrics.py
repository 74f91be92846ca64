import jax
import jax.numpy as jnp
import numpy as np
import protocol_reference
import pytest

from fsmde_jax.evaluate import metrics
from fsmde_jax.models.layers import sampling


def reference(predicted, truth, low=0.1, high=200.0):
    """The protocol in plain numpy, for one image."""
    keep = (truth > low) & (truth < high)
    p, t = np.clip(predicted[keep], low, high), truth[keep]
    ratio = np.maximum(p / t, t / p)
    return [
        np.mean(np.abs(p - t) / t),
        np.mean((p - t) ** 2 / t),
        np.sqrt(np.mean((p - t) ** 2)),
        np.sqrt(np.mean((np.log(p) - np.log(t)) ** 2)),
        *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
    ]


def random_points(seed=0, count=300):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.05, 250, count)
    return truth * rng.uniform(0.5, 1.6, count), truth


def figures_of(predicted, truth, scaling="metric", lower_median=False, inverse=False):
    """As the package has them: scaled, clamped, summed."""
    predicted, truth = jnp.asarray(predicted, jnp.float32), jnp.asarray(truth, jnp.float32)
    valid = (truth > 0.1) & (truth < 200)
    depth = metrics.scaled(predicted, truth, valid, scaling, lower_median, inverse)
    sums, counts = metrics.error_sums(jnp.clip(depth, 0.1, 200.0), truth, valid)
    return metrics.figures(np.asarray(sums).sum(0)[None], np.asarray(counts).sum(keepdims=True))[0]


def test_sums_of_errors_make_the_figures():
    predicted, truth = random_points()
    padded = np.append(truth, np.zeros(20))
    found = figures_of(np.append(predicted, np.full(20, 7.0)), padded)
    np.testing.assert_allclose(found, reference(predicted, truth), rtol=1e-6)


def test_sums_are_kept_by_true_depth():
    truth = np.array([5.0, 19.9, 20.0, 39.0, 79.0, 80.0, 150.0])
    _, counts = metrics.error_sums(
        jnp.asarray(truth, jnp.float32), jnp.asarray(truth, jnp.float32), jnp.ones(7, bool)
    )
    assert np.asarray(counts).tolist() == [2, 2, 1, 2]


@pytest.mark.parametrize("count", [300, 301])
def test_median_scaling_uses_numpys_median(count):
    predicted, truth = random_points(1, count)
    keep = (truth > 0.1) & (truth < 200)
    scaled = predicted * np.median(truth[keep]) / np.median(predicted[keep])
    found = figures_of(predicted, truth, "median_image")
    np.testing.assert_allclose(found, reference(scaled, truth), rtol=1e-5)


def test_affine_alignment_is_numpys_least_squares_on_inverse_depth():
    predicted, truth = random_points(2)
    inverse = 3.0 / predicted + 0.7
    keep = (truth > 0.1) & (truth < 200)
    design = np.stack([inverse[keep], np.ones(keep.sum())], axis=1)
    scale, shift = np.linalg.lstsq(design, 1 / truth[keep], rcond=None)[0]
    aligned = 1 / np.clip(scale * inverse + shift, 1 / 200, 1 / 0.1)
    expected = reference(aligned, truth)
    np.testing.assert_allclose(
        figures_of(inverse, truth, "affine", inverse=True), expected, rtol=1e-3
    )
    np.testing.assert_allclose(figures_of(1 / inverse, truth, "affine"), expected, rtol=1e-3)


def test_no_points_make_no_figures():
    sums, counts = metrics.error_sums(jnp.ones(5), jnp.zeros(5), jnp.zeros(5, bool))
    assert np.asarray(counts).sum() == 0
    assert np.isnan(metrics.figures(np.asarray(sums), np.asarray(counts))).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(24, 35), (1216, 1936), (3, 5)])
def test_reading_at_pixels_equals_resizing_the_map(align_corners, size):
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 90, (6, 10)).astype(np.float32)
    uv = np.stack([rng.integers(0, size[1], 400), rng.integers(0, size[0], 400)], axis=-1)
    whole = protocol_reference.resize(values.astype(np.float64), size, align_corners)
    found = sampling.read_at_pixels(
        jnp.asarray(values), jnp.asarray(uv, jnp.int32), jnp.asarray(size), align_corners
    )
    np.testing.assert_allclose(found, whole[uv[:, 1], uv[:, 0]], rtol=1e-6)


def test_sampling_equals_a_bilinear_resize_at_those_pixels():
    torch_free = jnp.asarray(np.random.default_rng(0).uniform(1, 9, (6, 10)))
    resized = jax.image.resize(torch_free, (24, 35), "linear", antialias=False)
    rows, columns = np.meshgrid(np.arange(24), np.arange(35), indexing="ij")
    xy = jnp.asarray(np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], -1))
    sampled = sampling.sample_bilinear(torch_free, xy, (24, 35))
    np.testing.assert_allclose(sampled.reshape(24, 35), resized, rtol=1e-5)
