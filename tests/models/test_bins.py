import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsmde_jax.models.binned_depth import expected_depth
from fsmde_jax.models.bins import BinningHead, Bins, soft_clip
from fsmde_jax.models.foundation.dpt import DPTConfig, DPTOutput
from fsmde_jax.models.foundation.preprocess import Preprocessing
from fsmde_jax.models.teacher import Teacher, relative_depth, soft_bin_logits

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def make_head(**options):
    head = BinningHead(4, 6, 16, min_depth_m=0.1, max_depth_m=80.0, rngs=nnx.Rngs(0), **options)
    # A fresh head has even bins; make them differ from image to image.
    head.widths.kernel[...] = 0.05 * normal(*head.widths.kernel.shape)
    return head


@pytest.mark.parametrize("kind", ["widths", "unbounded"])
@pytest.mark.parametrize("of", ["image", "rig"])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.0])
def test_centers_increase_inside_the_range(kind, of, ratio):
    head = make_head(centers_kind=kind, centers_of=of)
    bins = head(
        normal(2, 3, 4, 5, 4), normal(2, 3, 6), jnp.full((2, 3), ratio), jnp.ones((2, 3), bool)
    )
    centers = np.asarray(bins.centers_m)
    assert (np.diff(centers) > 0).all()
    assert (centers > 0.1).all() and (centers < 80.0).all()
    assert bins.depth_m.shape == (2, 3, 4, 5)


def test_a_fresh_head_is_even_in_log_depth():
    head = BinningHead(4, 6, 16, min_depth_m=0.1, max_depth_m=80.0, rngs=nnx.Rngs(0))
    bins = head(normal(1, 1, 2, 2, 4), normal(1, 1, 6), jnp.ones((1, 1)), jnp.ones((1, 1), bool))
    gaps = np.diff(np.log(bins.centers_m[0, 0]))[3:-3]
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-3)


def test_twice_the_focal_length_is_twice_the_depth_away_from_the_limits():
    head = make_head()
    features, image = normal(1, 1, 3, 3, 4), normal(1, 1, 6)
    mask = jnp.ones((1, 1), bool)
    near = head(features, image, jnp.full((1, 1), 1.0), mask).centers_m
    far = head(features, image, jnp.full((1, 1), 2.0), mask).centers_m
    inside = (near > 0.5) & (far < 20.0)
    assert inside.sum() > 3
    np.testing.assert_allclose(far[inside], 2 * near[inside], rtol=0.02)


def test_rig_centers_ignore_absent_cameras():
    head = make_head(centers_of="rig")
    features, image = normal(1, 3, 2, 2, 4), normal(1, 3, 6)
    mask = jnp.array([[True, True, False]])
    first = head(features, image, jnp.ones((1, 3)), mask).centers_m
    changed = head(features, image.at[:, 2].set(99.0), jnp.ones((1, 3)), mask).centers_m
    np.testing.assert_array_equal(first, changed)
    np.testing.assert_allclose(first[0, 0], first[0, 1])


def test_soft_clip_is_the_identity_inside():
    x = jnp.linspace(0.0, 2.0, 9)
    np.testing.assert_allclose(soft_clip(x, -3.0, 5.0), x, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"), [("centers_of", "car"), ("centers_kind", "log"), ("mean_of", "log")]
)
def test_unknown_variants_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        make_head(**{key: value})


def test_soft_bins_run_from_near_to_far_and_ignore_affine_changes():
    inverse_depth = jnp.asarray(RNG.uniform(0.01, 0.5, (2, 8, 12)), jnp.float32)
    logits = soft_bin_logits(inverse_depth, 16, (-3.0, 1.5), 0.15)
    changed = soft_bin_logits(7.0 * inverse_depth + 2.0, 16, (-3.0, 1.5), 0.15)
    assert np.abs(nnx.softmax(logits) - nnx.softmax(changed)).max() < 1e-5
    likely = np.argmax(logits, axis=-1)[0]
    nearest = np.unravel_index(np.argmax(inverse_depth[0]), likely.shape)
    farthest = np.unravel_index(np.argmin(inverse_depth[0]), likely.shape)
    assert likely[nearest] < likely[farthest]


def make_teacher(prediction, max_depth_m):
    """A soft teacher whose foundation model predicts this."""
    config = dataclasses.replace(DPTConfig.dpt_tiny(), max_depth_m=max_depth_m)
    teacher = nnx.eval_shape(
        lambda: Teacher(
            config,
            Preprocessing(),
            resize="patch",
            binning="soft",
            num_bins=16,
            canonical_focal_px=100.0,
            soft_range=(-3.0, 1.5),
            soft_temperature=0.15,
            head_options={},
            rngs=nnx.Rngs(0),
        )
    )
    teacher._foundation = lambda image: DPTOutput(
        prediction, jnp.zeros((len(image), *prediction.shape[1:], 3)), jnp.zeros((1, 1, 1, 3))
    )
    image = jnp.zeros((1, len(prediction), 32, 48, 3), jnp.uint8)
    eye = jnp.tile(jnp.eye(3), (1, len(prediction), 1, 1))
    return teacher(image, eye, jnp.ones((1, len(prediction)), bool))


@pytest.mark.parametrize("max_depth_m", [None, 80.0])
def test_soft_teachers_bin_near_to_far_whatever_they_predict(max_depth_m):
    """Inverse depth and metres alike; an affine change of the prediction changes nothing."""
    depth_m = jnp.asarray(RNG.uniform(2.0, 70.0, (2, 8, 12)), jnp.float32)
    prediction = depth_m if max_depth_m else 1 / depth_m
    output = make_teacher(prediction, max_depth_m)
    changed = make_teacher(3.0 * prediction + 0.5, max_depth_m)
    difference = nnx.softmax(output.logits) - nnx.softmax(changed.logits)
    assert np.abs(difference).max() < 1e-5
    for camera in range(2):
        bins = np.argmax(output.logits, axis=-1)[0, camera].ravel()
        order = np.argsort(depth_m[camera].ravel())
        assert (np.diff(bins[order]) >= 0).all() and bins[order][0] < bins[order][-1]
    relative = output.depth_m[0].ravel() / output.depth_m[0].max()
    np.testing.assert_allclose(relative, depth_m.ravel() / depth_m.max(), rtol=1e-4)


def test_relative_depth_is_finite_and_falls_with_inverse_depth():
    depth = relative_depth(jnp.array([[[0.0, 0.1, 1.0]]]))
    assert np.isfinite(depth).all() and (np.diff(depth[0, 0]) < 0).all()


def test_a_fresh_head_believes_the_relative_prediction():
    head = BinningHead(
        5, 7, 16, min_depth_m=0.1, max_depth_m=80.0, relative_bins=True, rngs=nnx.Rngs(0)
    )
    features = jnp.asarray(RNG.normal(size=(1, 2, 4, 6, 5)), jnp.float32)
    place = RNG.integers(0, 16, (1, 2, 4, 6))
    relative = jnp.asarray(np.eye(16)[place], jnp.float32)
    bins = head(features, jnp.zeros((1, 2, 7)), jnp.ones((1, 2)), jnp.ones((1, 2), bool), relative)
    np.testing.assert_array_equal(np.argmax(bins.logits, axis=-1), place)


def test_confidence_falls_with_the_spread_of_log_depth():
    centers_m = jnp.array([[[2.0, 4.0, 16.0]]])
    logits = jnp.log(jnp.array([[1.0, 1e-9, 1e-9], [0.5, 0.5, 1e-9], [0.5, 1e-9, 0.5]]))
    confidence = Bins(logits[None, None, None], centers_m, depth_m=None).confidence[0, 0, 0]
    expected = [1.0, np.exp(-np.log(2) / 2), np.exp(-np.log(8) / 2)]
    np.testing.assert_allclose(confidence, expected, rtol=1e-3)


def test_confidence_is_right_where_it_is_nearly_certain():
    """1e-4 apart at 150 m: squares of the logarithm, 25, differ by less than float32 can say."""
    centers_m = jnp.array([[[150.0, 150.0 * np.exp(2e-4)]]], jnp.float32)
    found = Bins(jnp.zeros((1, 1, 1, 1, 2)), centers_m, depth_m=None).confidence.item()
    assert -np.log(found) == pytest.approx(1e-4, rel=0.05)


def test_depth_of_certain_bins_is_their_center():
    logits = jnp.full((1, 1, 1, 1, 3), -50.0).at[..., 1].set(50.0)
    depth_m = expected_depth(jax.nn.softmax(logits), jnp.array([[[1.0, 5.0, 9.0]]]))
    assert float(depth_m[0, 0, 0, 0]) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("mean_of", "expected_m"), [("depth", 4.0), ("log_depth", 12.0**0.5), ("inverse_depth", 3.0)]
)
def test_doubt_between_two_bins_is_their_mean(mean_of, expected_m):
    probabilities, centers_m = jnp.full((1, 1, 1, 1, 2), 0.5), jnp.array([[[2.0, 6.0]]])
    assert expected_depth(probabilities, centers_m, mean_of).item() == pytest.approx(expected_m)
