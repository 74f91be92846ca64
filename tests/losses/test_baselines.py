"""The distillation baselines, and every arm of the ablation trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_run import prepare_recording, read_metrics, tiny_config

from fsmde_jax.config import default_config
from fsmde_jax.evaluate import measure
from fsmde_jax.losses import arms, baselines
from fsmde_jax.losses.objective import DISTILLATION, targets_of
from fsmde_jax.losses.view_relational import pool_tokens
from fsmde_jax.models.teacher import TeacherOutput
from fsmde_jax.run import checkpoints, state
from fsmde_jax.run.load import load_student
from fsmde_jax.tasks import make_task
from fsmde_jax.train import loop

RNG = np.random.default_rng(0)
B, N, H, W = 2, 3, 8, 12
PRESENT = jnp.array([[True, True, False], [True, False, True]])


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def tokens_of(features):
    return pool_tokens(features, (2, 3))


def of_present(per_camera):
    """The mean over the cameras of PRESENT."""
    return float(np.asarray(per_camera)[np.asarray(PRESENT)].mean())


def test_response_is_the_deviation_of_log_depths_in_each_image():
    teacher, student_m = normal(B, N, H, W), jnp.exp(normal(B, N, H, W))
    expected = of_present(np.std(np.log(student_m) - teacher, axis=(2, 3)))
    value = baselines.response_loss(teacher, student_m, PRESENT[..., None, None])
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_response_teaches_no_scale():
    """Least for the teacher's depth times any factor of each image; finite slopes there."""
    depth = jnp.exp(normal(B, N, H, W))
    scaled_m = depth * jnp.exp(normal(B, N, 1, 1))
    value, slope = jax.value_and_grad(baselines.response_loss, argnums=1)(
        jnp.log(depth), scaled_m, PRESENT[..., None, None]
    )
    assert float(value) == pytest.approx(1e-3, rel=1e-3)  # the root of the floor
    assert jnp.isfinite(slope).all()
    slope = jax.grad(baselines.response_loss, argnums=1)(
        normal(B, N, H, W), scaled_m, PRESENT[..., None, None]
    )
    np.testing.assert_allclose(jnp.sum(slope * scaled_m, axis=(2, 3)), 0, atol=1e-6)


def test_response_looks_at_valid_pixels_alone():
    depth = jnp.exp(normal(B, N, H, W))
    pixels = jnp.ones((B, N, H, W), bool).at[:, :, 0].set(False).at[0, 0].set(False)
    changed = jnp.where(pixels, 3.0 * depth, 50.0 * depth)
    value, slope = jax.value_and_grad(baselines.response_loss, argnums=1)(
        jnp.log(depth), changed, pixels
    )
    assert float(value) == pytest.approx(1e-3, rel=1e-3)  # the root of the floor
    assert jnp.isfinite(slope).all() and not slope[~pixels].any()


def test_targets_hold_the_log_depth_up_to_each_images_scale():
    depth = jnp.exp(normal(B, N, H, W))
    config = default_config().objective
    config.vrkd_grid = (2, 3)
    found = [
        targets_of(TeacherOutput(normal(B, N, H, W, 4), normal(B, N, H, W, 5), d), (H, W), config)
        for d in (depth, depth * jnp.exp(5 * normal(B, N, 1, 1)))
    ]
    log_depth = np.log(depth) - np.log(depth).mean(axis=(2, 3), keepdims=True)
    for targets in found:
        np.testing.assert_allclose(targets.log_depth, log_depth, atol=1e-5)


def test_feature_loss_is_zero_where_the_adapter_finds_the_teacher():
    """Student features are the teacher's times an invertible matrix, at any size."""
    teacher, matrix = normal(B, N, H, W, 5), normal(5, 5)
    adapter = baselines.FeatureAdapter(5, 5, rngs=nnx.Rngs(0))
    student_tokens = tokens_of(7.0 * teacher @ matrix)
    loss = lambda: float(  # noqa: E731
        baselines.feature_loss(tokens_of(teacher), adapter(student_tokens), PRESENT)
    )
    assert loss() > 0.1
    adapter.linear.kernel[...] = jnp.linalg.inv(matrix)
    assert loss() == pytest.approx(0, abs=1e-5)


def test_the_adapter_on_pooled_tokens_is_a_1x1_convolution_before_pooling():
    features = normal(B, N, H, W, 4)
    adapter = baselines.FeatureAdapter(4, 6, rngs=nnx.Rngs(0))
    convolved = features @ adapter.linear.kernel[...]
    np.testing.assert_allclose(adapter(tokens_of(features)), tokens_of(convolved), atol=1e-5)


def test_pairwise_loss_compares_cosines_within_each_camera():
    teacher, student = normal(B, N, H, W, 5), normal(B, N, H, W, 4)
    tokens = [np.asarray(tokens_of(features)) for features in (teacher, student)]
    similarity = [x @ x.transpose(0, 1, 3, 2) for x in tokens]
    expected = of_present(np.mean((similarity[0] - similarity[1]) ** 2, axis=(2, 3)))
    value = baselines.pairwise_loss(*map(jnp.asarray, tokens), PRESENT)
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_pairwise_loss_ignores_rotation_and_size_of_features():
    teacher = normal(B, N, H, W, 5)
    rotation = jnp.linalg.qr(normal(5, 5))[0]
    loss = baselines.pairwise_loss(tokens_of(teacher), tokens_of(3.0 * teacher @ rotation), PRESENT)
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_absent_cameras_count_for_nothing():
    tokens, other = tokens_of(normal(B, N, H, W, 5)), tokens_of(normal(B, N, H, W, 5))
    depth, other_depth = (jnp.exp(normal(B, N, H, W)) for _ in range(2))
    present = PRESENT[:, :, None, None]
    for loss, teacher, student, elsewhere, mask in (
        (baselines.response_loss, jnp.log(depth), depth, other_depth, present),
        (baselines.feature_loss, tokens, tokens, other, PRESENT),
        (baselines.pairwise_loss, tokens, tokens, other, PRESENT),
    ):
        only_absent = jnp.where(present, student, elsewhere)
        assert float(loss(teacher, only_absent, mask)) <= 1e-3 + 1e-6
        assert float(loss(teacher, only_absent, jnp.ones_like(mask))) > 0.01


# Every arm, trained


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = tiny_config(prepare_recording(tmp_path_factory.mktemp("arms")))
    config.teacher.binning = "soft"
    config.objective.vrkd_grid = (2, 4)
    config.train.steps = 2
    return config


def with_arm(config, arm, **objective):
    """The config of an arm; `objective` changes what shapes its terms."""
    config = config.copy_and_resolve_references()
    arms.set_arm(config, arm)
    config.objective.update(objective)
    return config


@pytest.mark.parametrize(
    ("arm", "objective"),
    [
        *((arm, {}) for arm in arms.ARMS),
        ("vrkd", {"vrkd_on": "probabilities"}),
        ("vrkd", {"vrkd_pairs": "all"}),
    ],
)
def test_every_arm_trains_on_its_own_terms(config, tmp_path, arm, objective):
    """With the online teacher; that a cached one says the same is test_cache_teacher.py's."""
    assert loop.train(with_arm(config, arm, **objective), tmp_path) is None
    records = read_metrics(tmp_path)
    assert len(records) == 2
    for record in records:
        assert set(record) & set(DISTILLATION) == set(arms.ARMS[arm])
        weighted = sum(weight * record[name] for name, weight in arms.ARMS[arm].items())
        assert record["loss"] == pytest.approx(record["silog"] + weighted, rel=1e-5)
        assert all(record[name] > 0 for name in arms.ARMS[arm])


def test_an_adapter_is_trained_evaluated_around_and_left_out_of_the_student(config, tmp_path):
    feature, workdir = with_arm(config, "feature"), tmp_path
    assert loop.train(feature, workdir) is None
    model = state.Model(make_task(feature), feature.seed)
    adapter = {"adapter": model.params["adapter"]}
    (trained,) = jax.tree.leaves(checkpoints.load_params(workdir, adapter, {"task": "student"}))
    (fresh,) = jax.tree.leaves(model.init()[0]["adapter"])
    assert np.abs(trained - fresh).max() > 0
    student = load_student(feature, workdir)
    assert not hasattr(student, "adapter")
    image = jnp.zeros((1, 2, 32, 64, 3), jnp.uint8)
    intrinsics = jnp.tile(jnp.diag(jnp.array([60.0, 60.0, 1.0])), (1, 2, 1, 1))
    depth_m = student(image, intrinsics, jnp.ones((1, 2), bool)).depth_m
    assert (depth_m > 0.1).all() and (depth_m < 200).all()
    assert "student" in measure.evaluate_run(feature, workdir)
    (workdir / "config.json").unlink()  # that would be refused before
    with pytest.raises(checkpoints.CheckpointError, match="feature_adapter is True"):
        loop.train(with_arm(config, "ckd"), workdir)
    assert checkpoints.latest_step(workdir) == 2


def test_arms_of_one_seed_start_from_the_same_student(config):
    """The adapter draws its parameters after the student's."""
    starts = []
    for arm in ("supervised", "feature"):
        params, _ = state.Model(make_task(with_arm(config, arm)), 0).init()
        starts.append({name: part for name, part in params.items() if name != "adapter"})
    for a, b in zip(*map(jax.tree.leaves, starts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="use one of supervised, response"):
        arms.set_arm(default_config(), "responce")
