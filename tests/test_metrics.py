import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsmde_jax import metrics


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


def test_image_metrics_equal_the_protocol():
    predicted, truth = random_points()
    padded = np.append(truth, np.zeros(20))
    values, valid = metrics.image_metrics(
        jnp.append(jnp.asarray(predicted), jnp.full(20, 7.0)), jnp.asarray(padded), 0.1, 200.0
    )
    assert valid
    np.testing.assert_allclose(values, reference(predicted, truth), rtol=2e-5)


@pytest.mark.parametrize("count", [300, 301])
def test_median_scaling_uses_numpys_median(count):
    predicted, truth = random_points(1, count)
    keep = (truth > 0.1) & (truth < 200)
    scaled = predicted * np.median(truth[keep]) / np.median(predicted[keep])
    values, _ = metrics.image_metrics(
        jnp.asarray(predicted), jnp.asarray(truth), 0.1, 200.0, alignment="median"
    )
    np.testing.assert_allclose(values, reference(scaled, truth), rtol=2e-5)


def test_affine_alignment_is_numpys_least_squares_on_inverse_depth():
    predicted, truth = random_points(2)
    inverse = 3.0 / predicted + 0.7
    keep = (truth > 0.1) & (truth < 200)
    design = np.stack([inverse[keep], np.ones(keep.sum())], axis=1)
    scale, shift = np.linalg.lstsq(design, 1 / truth[keep], rcond=None)[0]
    aligned = 1 / np.clip(scale * inverse + shift, 1 / 200, 1 / 0.1)
    values, _ = metrics.image_metrics(
        jnp.asarray(inverse), jnp.asarray(truth), 0.1, 200.0, alignment="affine"
    )
    np.testing.assert_allclose(values, reference(aligned, truth), rtol=1e-3)


def test_an_image_without_points_does_not_count():
    _, valid = metrics.image_metrics(jnp.ones(5), jnp.zeros(5), 0.1, 200.0)
    assert not valid


def test_sampling_equals_a_bilinear_resize_at_those_pixels():
    torch_free = jnp.asarray(np.random.default_rng(0).uniform(1, 9, (6, 10)))
    resized = jax.image.resize(torch_free, (24, 35), "linear", antialias=False)
    rows, columns = np.meshgrid(np.arange(24), np.arange(35), indexing="ij")
    xy = jnp.asarray(np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], -1))
    sampled = metrics.sample_bilinear(torch_free, xy, (24, 35))
    np.testing.assert_allclose(sampled.reshape(24, 35), resized, rtol=1e-5)


def test_tables_merge_exactly_and_average_cameras_without_weights():
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(7, 2, len(metrics.NAMES)))
    valid = np.ones((7, 2), bool)
    valid[3:, 1] = False
    whole, left, right = (metrics.CameraTable.empty(("A", "B")) for _ in range(3))
    whole.add(values, valid)
    left.add(values[:2], valid[:2])
    right.add(values[2:], valid[2:])
    result = whole.compute()
    merged = left.merge(right).compute()
    expected = (values[:, 0, 0].mean() + values[:3, 1, 0].mean()) / 2
    assert result["mean"]["abs_rel"] == pytest.approx(expected)
    assert merged["mean"] == pytest.approx(result["mean"])


def test_a_table_without_images_says_so():
    with pytest.raises(ValueError, match="no image had a valid LiDAR pixel"):
        metrics.CameraTable.empty(("A",)).compute()


def test_printed_table_has_a_row_a_camera_and_the_mean():
    table = metrics.CameraTable.empty(("A", "B"))
    table.add(np.ones((1, 2, len(metrics.NAMES))), np.ones((1, 2), bool))
    text = metrics.format_table({"student": table.compute()})
    assert "| student | A |" in text and "| student | mean of cameras |" in text
