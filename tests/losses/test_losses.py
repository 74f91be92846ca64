import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsmde_jax.config import default_config
from fsmde_jax.losses import cross_interaction, depth, view_relational
from fsmde_jax.losses.baselines import FeatureAdapter
from fsmde_jax.losses.objective import (
    DISTILLATION,
    TeacherTargets,
    likelihood_on_lidar,
    student_objective,
    targets_of,
    true_targets,
)
from fsmde_jax.models.binned_depth import MEANS
from fsmde_jax.models.student import Student, StudentConfig
from fsmde_jax.models.teacher import TeacherOutput

RNG = np.random.default_rng(0)
B, N, H, W, K = 2, 3, 32, 64, 8


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def make_batch():
    xy = RNG.uniform([0, 0], [W, H], (B, N, 50, 2))
    truth = RNG.uniform(2, 60, (B, N, 50))
    truth[:, :, 40:] = 0
    return {
        "image": jnp.asarray(RNG.integers(0, 255, (B, N, H, W, 3)), jnp.uint8),
        "intrinsics": jnp.tile(jnp.eye(3) * 40.0, (B, N, 1, 1)),
        "camera_mask": jnp.ones((B, N), bool),
        "lidar_xy": jnp.asarray(xy, jnp.float32),
        "lidar_depth_m": jnp.asarray(truth, jnp.float32),
        "neighbour": jnp.tile(jnp.array([1, 2, 0], jnp.int32), (B, 1)),
        "neighbour_mask": jnp.ones((B, N), bool),
    }


@pytest.fixture(scope="module")
def student():
    return Student(
        StudentConfig.tiny(),
        num_bins=K,
        min_depth_m=0.1,
        max_depth_m=80.0,
        canonical_focal_px=40.0,
        centers_of="image",
        centers_kind="widths",
        rngs=nnx.Rngs(0),
    )


def teacher_output(seed=1):
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return TeacherOutput(make(B, N, 16, 32, K), make(B, N, 16, 32, 5), jnp.exp(make(B, N, H, W)))


def gradients_of_term(student, teacher, name, **options):
    """Gradient of one term with respect to the student's parameters, and to the teacher."""
    config = default_config().objective
    config.vrkd_grid = (4, 4)
    config.update({other: float(other == name) for other in ("silog", *DISTILLATION)}, **options)
    batch = make_batch()
    graphdef, params, rest = nnx.split(student, nnx.Param, ...)

    def loss(params, teacher):
        module = nnx.merge(graphdef, params, rest, copy=True)
        output = module(batch["image"], batch["intrinsics"], batch["camera_mask"])
        targets = targets_of(teacher, output.bins.logits.shape[2:4], config)
        adapter = module.adapter if name == "feature" else None
        return student_objective(output, targets, batch, config, adapter)[0]

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, teacher)


def size(tree) -> float:
    return float(sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("term", ["ckd_crossing", "ckd_structure"])
def test_crossing_moves_only_the_centers(student, term):
    grads, to_teacher = gradients_of_term(student, teacher_output(), term)
    assert size(grads["head"]["widths"]) > 0
    assert size(grads["head"]["classifier"]) == 0
    assert size(grads["decoder"]) == 0
    assert size(to_teacher) == 0


@pytest.mark.parametrize("mean_of", MEANS)
def test_structure_is_that_of_the_teachers_probabilities_on_the_students_centers(student, mean_of):
    """Nothing is left where the teacher's depth is theirs up to the scale of each image."""
    config = default_config().objective
    config.update({name: float(name == "ckd_structure") for name in ("silog", *DISTILLATION)})
    batch = make_batch() | {"lidar_depth_m": jnp.zeros((B, N, 50))}  # a street without LiDAR
    output = student(batch["image"], batch["intrinsics"], batch["camera_mask"])
    logits, centers_m = normal(*output.bins.logits.shape), output.bins.centers_m
    crossed_m = cross_interaction.crossed_depth(logits, centers_m, mean_of)
    log_depth = jnp.log(crossed_m) + normal(B, N, 1, 1)

    def loss(log_depth):
        targets = TeacherTargets(logits, None, log_depth)
        return float(student_objective(output, targets, batch, config, None, mean_of)[0])

    assert loss(log_depth) == pytest.approx(1e-3, rel=0.1)  # the root of the floor
    assert loss(normal(*log_depth.shape)) > 0.5


def test_divergence_moves_only_the_probabilities(student):
    grads, to_teacher = gradients_of_term(student, teacher_output(), "ckd_divergence")
    assert size(grads["head"]["classifier"]) > 0
    assert size(grads["head"]["widths"]) == 0
    assert size(grads["head"]["hidden"]) == 0
    assert size(to_teacher) == 0


@pytest.mark.parametrize(
    ("term", "options"),
    [
        ("vrkd", {}),
        ("vrkd", {"vrkd_pairs": "all"}),
        ("pairwise", {}),
    ],
)
def test_relations_of_features_move_the_decoder_and_no_head(student, term, options):
    grads, to_teacher = gradients_of_term(student, teacher_output(), term, **options)
    assert size(grads["decoder"]) > 0
    assert size(grads["head"]) == 0
    assert size(to_teacher) == 0


def test_relations_of_probabilities_move_them_and_no_centers(student):
    teacher = teacher_output()
    grads, to_teacher = gradients_of_term(student, teacher, "vrkd", vrkd_on="probabilities")
    assert size(grads["head"]["classifier"]) > 0
    assert size(grads["head"]["widths"]) == size(grads["head"]["hidden"]) == 0
    assert size(to_teacher) == 0


def test_response_moves_probabilities_and_centers(student):
    grads, to_teacher = gradients_of_term(student, teacher_output(), "response")
    assert size(grads["head"]["classifier"]) > 0
    assert size(grads["head"]["widths"]) > 0
    assert size(to_teacher) == 0


def test_features_move_the_decoder_and_the_adapter_and_no_head(student):
    with_adapter = nnx.clone(student)
    with_adapter.adapter = FeatureAdapter(32, 5, rngs=nnx.Rngs(1))
    grads, to_teacher = gradients_of_term(with_adapter, teacher_output(), "feature")
    assert size(grads["decoder"]) > 0
    assert size(grads["adapter"]) > 0
    assert size(grads["head"]) == 0
    assert size(to_teacher) == 0


def test_supervision_moves_both(student):
    grads, _ = gradients_of_term(student, teacher_output(), "silog")
    assert size(grads["head"]["classifier"]) > 0
    # Zero-initialised: the last layer of the centers moves first.
    assert size(grads["head"]["widths"]) > 0


def test_silog_equals_its_definition_and_ignores_padding():
    predicted, truth = RNG.uniform(1, 50, 30), RNG.uniform(1, 50, 30)
    valid = np.arange(30) < 20
    error = np.log(predicted[:20]) - np.log(truth[:20])
    expected = np.sqrt(np.mean(error**2) - 0.85 * np.mean(error) ** 2)
    value = depth.silog(jnp.asarray(predicted), jnp.asarray(truth * valid), jnp.asarray(valid))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_full_variance_focus_is_blind_to_scale():
    truth = jnp.asarray(RNG.uniform(1, 50, 30))
    valid = jnp.ones(30, bool)
    assert float(depth.silog(3.0 * truth, truth, valid, 1.0)) == pytest.approx(1e-3, rel=0.5)


def test_silog_without_points_is_finite():
    grad = jax.grad(lambda d: depth.silog(d, jnp.zeros(4), jnp.zeros(4, bool)))(jnp.ones(4))
    assert np.isfinite(grad).all()


def test_likelihood_equals_its_definition_and_ignores_padding():
    logits, centers = RNG.normal(size=(30, K)), np.sort(RNG.uniform(1, 80, (30, K)))
    truth, valid = RNG.uniform(1, 80, 30), np.arange(30) < 20
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    density = np.exp(-np.abs(np.log(truth)[:, None] - np.log(centers)) / 0.2) / 0.4
    expected = -np.log((share * density).sum(-1))[:20].mean()
    given = map(jnp.asarray, (logits, centers, truth * valid, valid))
    assert float(depth.bin_likelihood(*given, width=0.2)) == pytest.approx(expected, rel=1e-5)


def test_likelihood_is_best_where_the_bins_are_as_wide_as_their_errors():
    log_centers = np.linspace(0.0, 4.0, 41)
    log_truth = RNG.normal(2.0, 0.5, 4000)
    centers = jnp.tile(jnp.exp(jnp.asarray(log_centers)), (4000, 1))

    def nll(width):
        logits = jnp.tile(-(((log_centers - 2.0) / width) ** 2) / 2, (4000, 1))
        every = jnp.ones(4000, bool)
        return float(depth.bin_likelihood(logits, centers, jnp.exp(log_truth), every, width=0.05))

    assert nll(0.5) < min(nll(0.25), nll(1.0))


def test_likelihood_at_lidar_is_that_of_the_pixels_they_lie_in(student):
    batch = make_batch()
    bins = student(batch["image"], batch["intrinsics"], batch["camera_mask"]).bins
    rows, columns = RNG.integers(0, bins.logits.shape[2:4], (50, 2)).T
    stride = H // bins.logits.shape[2]
    xy = jnp.tile(jnp.stack([columns, rows], -1) * stride + stride / 2, (B, N, 1, 1))
    batch |= {"lidar_xy": xy.astype(jnp.float32)}
    value = likelihood_on_lidar(bins.logits, bins.centers_m, batch)
    truth = batch["lidar_depth_m"]
    centers = jnp.broadcast_to(bins.centers_m[:, :, None], (B, N, 50, K))
    expected = depth.bin_likelihood(bins.logits[:, :, rows, columns], centers, truth, truth > 0)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)


def test_affine_invariant_loss_ignores_scale_and_shift():
    truth = jnp.asarray(RNG.uniform(0, 1, (2, 16, 24)), jnp.float32)
    valid = jnp.asarray(RNG.uniform(size=(2, 16, 24)) < 0.8)
    loss = depth.affine_invariant_loss
    truth += 0.01
    assert float(loss(5.0 * truth + 3.0, truth, valid)) < 1e-4
    assert float(loss(-truth, truth, valid)) > 0.5  # near and far exchanged is not an alignment


def test_affine_invariant_loss_is_the_log_error_after_alignment():
    truth = jnp.asarray(RNG.uniform(0.02, 1, (1, 16, 24)), jnp.float32)
    predicted = truth + jnp.asarray(RNG.normal(0, 0.05, truth.shape), jnp.float32)
    valid = jnp.asarray(RNG.uniform(size=truth.shape) < 0.8)
    x, y = np.asarray(predicted)[valid], np.asarray(truth)[valid]
    scale, shift = np.polyfit(x, y, 1)
    ratio = (scale * x + shift) / y
    # Its slope goes on where the logarithm's would grow without end.
    residual = np.where(ratio > 0.25, np.log(np.maximum(ratio, 0.25)), np.log(0.25) + 4 * ratio - 1)
    value = depth.affine_invariant_loss(predicted, truth, valid, gradient_weight=0.0)
    assert float(value) == pytest.approx(np.abs(residual).mean(), rel=1e-4)
    with_edges = depth.affine_invariant_loss(predicted, truth, valid, gradient_weight=0.5)
    assert float(with_edges) > float(value)


LOSSES = (depth.affine_invariant_loss, depth.scale_invariant_loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_relative_losses_have_finite_gradients_where_nothing_is_known(loss):
    nothing = jnp.zeros((1, 8, 8), bool)
    grad = jax.grad(lambda x: loss(x, jnp.ones((1, 8, 8)), nothing))
    assert jnp.all(jnp.isfinite(grad(jnp.ones((1, 8, 8)))))


def test_what_is_far_off_hardly_counts_where_losses_saturate():
    truth = jnp.asarray(RNG.uniform(0.02, 1, (1, 16, 24)), jnp.float32)
    residual = jnp.asarray(RNG.normal(0, 0.3, truth.shape), jnp.float32)
    residual -= jnp.mean(residual)
    predicted, valid = truth * jnp.exp(residual), jnp.ones(truth.shape, bool)

    def loss(predicted, saturation):
        return depth.scale_invariant_loss(predicted, truth, valid, 0.0, saturation)

    plain = np.abs(np.asarray(residual))
    assert float(loss(predicted, 0.0)) == pytest.approx(plain.mean(), rel=1e-4)
    expected = (0.2 * (1 - np.exp(-plain / 0.2))).mean()
    assert float(loss(predicted, 0.2)) == pytest.approx(expected, rel=1e-4)
    assert float(loss(predicted, 1e4)) == pytest.approx(plain.mean(), rel=1e-3)


def test_scale_invariant_loss_is_the_log_error_whatever_the_scale():
    truth = jnp.asarray(RNG.uniform(0.02, 1, (2, 16, 24)), jnp.float32)
    predicted = truth * jnp.exp(normal(2, 16, 24) * 0.1)
    valid = jnp.asarray(RNG.uniform(size=truth.shape) < 0.8)
    error = np.where(valid, np.log(predicted / truth), np.nan)
    error -= np.nanmean(error, axis=(1, 2), keepdims=True)
    scale = jnp.array([5.0, 0.1])[:, None, None]
    value = depth.scale_invariant_loss(scale * predicted, truth, valid, gradient_weight=0.0)
    assert float(value) == pytest.approx(np.nanmean(np.abs(error)), rel=1e-4)
    assert float(depth.scale_invariant_loss(truth + 1.0, truth, valid)) > 0.1


def test_only_scale_invariant_loss_leads_out_of_near_taken_for_far():
    truth = jnp.asarray(RNG.uniform(0.02, 1, (1, 8, 8)), jnp.float32)
    affine, scale = (
        jax.grad(lambda x, loss=loss: loss(x, truth, truth > 0, 0.0))(1.1 - truth)
        for loss in LOSSES
    )
    # Along the contrast of the prediction, which has to turn.
    contrast = truth - truth.mean()
    assert float(jnp.sum(scale * contrast)) < -0.01
    assert abs(float(jnp.sum(affine * contrast))) < 1e-4


def test_divergence_is_zero_for_equal_logits_and_skips_what_is_not_valid():
    logits = normal(B, N, 4, 5, K)
    present = jnp.array([[True, True, False]] * B)[..., None, None]
    pixels = present & jnp.ones((4, 5), bool).at[0, 1].set(False)
    other = logits.at[:, 2].add(normal(B, 4, 5, K)).at[:, :, 0, 1].add(normal(B, N, K))
    divergence = cross_interaction.bin_divergence
    assert float(divergence(logits, other, pixels)) == pytest.approx(0, abs=1e-6)
    assert float(divergence(logits, other, present)) > 0.01
    assert float(divergence(logits, other, jnp.ones((B, N, 1, 1), bool))) > 0.01


def ring_pairs(mask):
    """Adjacent pairs on a ring of three."""
    neighbour = jnp.tile(jnp.array([1, 2, 0], jnp.int32), (B, 1))
    return view_relational.adjacent_pairs(neighbour, mask)


def test_relational_loss_is_zero_for_equal_tokens_and_uses_the_pairs():
    tokens = view_relational.pool_tokens(normal(B, N, 8, 8, 6), (2, 4))
    np.testing.assert_allclose(jnp.linalg.norm(tokens, axis=-1), 1.0, rtol=1e-5)
    pairs = ring_pairs(jnp.ones((B, N), bool))
    for form in ("kl", "squared"):
        loss = view_relational.view_relational_loss(tokens, tokens, pairs, form)
        assert float(loss) == pytest.approx(0, abs=1e-5)
    similarity = view_relational.pair_similarity(tokens, pairs)
    np.testing.assert_allclose(similarity[0, 2], tokens[0, 2] @ tokens[0, 0].T, atol=1e-6)


def test_relational_loss_without_pairs_is_zero():
    tokens = view_relational.pool_tokens(normal(B, N, 8, 8, 6), (2, 4))
    other = view_relational.pool_tokens(normal(B, N, 8, 8, 3), (2, 4))
    none = ring_pairs(jnp.zeros((B, N), bool))
    assert float(view_relational.view_relational_loss(tokens, other, none)) == 0
    alone = view_relational.all_pairs(jnp.tile(jnp.array([False, True, False]), (B, 1)))
    assert float(view_relational.view_relational_loss(tokens, other, alone)) == 0


def test_all_pairs_are_every_two_present_cameras_once():
    mask = jnp.array([[True, True, True, True], [True, False, True, True]])
    pairs = view_relational.all_pairs(mask)
    for b, expected in enumerate(
        [[(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], [(0, 2), (0, 3), (2, 3)]]
    ):
        chosen = np.asarray(pairs.mask[b])
        first, second = np.asarray(pairs.first[b])[chosen], np.asarray(pairs.second[b])[chosen]
        assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


@pytest.mark.parametrize("form", ["kl", "squared"])
def test_on_two_cameras_all_pairs_are_the_adjacent_one(form):
    """A partial ring of two: the second camera has nobody to its left."""
    tokens, other = (
        view_relational.pool_tokens(normal(B, 2, 8, 8, channels), (2, 4)) for channels in (6, 3)
    )
    neighbour = jnp.tile(jnp.array([1, 0], jnp.int32), (B, 1))
    overlaps = jnp.tile(jnp.array([True, False]), (B, 1))
    values = [
        float(view_relational.view_relational_loss(tokens, other, pairs, form))
        for pairs in (
            view_relational.adjacent_pairs(neighbour, overlaps),
            view_relational.all_pairs(jnp.ones((B, 2), bool)),
        )
    ]
    assert values[0] > 0 and values[1] == pytest.approx(values[0], rel=1e-6)


def test_absent_cameras_take_no_part_in_any_pairs():
    tokens, other = (
        view_relational.pool_tokens(normal(B, N, 8, 8, channels), (2, 4)) for channels in (6, 3)
    )
    changed = other.at[:, 1].set(other[:, 1, ::-1])
    pairs = view_relational.all_pairs(jnp.tile(jnp.array([True, False, True]), (B, 1)))
    loss = view_relational.view_relational_loss
    assert float(loss(tokens, other, pairs)) == float(loss(tokens, changed, pairs)) > 0


def test_relations_of_probabilities_are_those_of_the_logits(student):
    """Zero for a teacher with the student's logits, whatever its features."""
    batch, config = make_batch(), default_config().objective
    config.vrkd_grid, config.vrkd_on = (4, 4), "probabilities"
    config.update({name: float(name == "vrkd") for name in DISTILLATION})
    output = student(batch["image"], batch["intrinsics"], batch["camera_mask"])
    size = output.bins.logits.shape[2:4]
    values = []
    for teacher in (teacher_output(), teacher_output()._replace(logits=output.bins.logits)):
        targets = targets_of(teacher, size, config)
        values.append(float(student_objective(output, targets, batch, config)[1]["vrkd"]))
    assert values[0] > 1e-3 and values[1] == pytest.approx(0, abs=1e-6)


def test_a_grid_that_does_not_divide_shares_the_pixels_between_cells():
    features = normal(1, 1, 8, 9, 2)
    finer = jnp.repeat(features, 3, axis=2)  # 24 rows: three cells of eight
    tokens = view_relational.pool_tokens(features, (3, 3))
    np.testing.assert_allclose(tokens, view_relational.pool_tokens(finer, (3, 3)), atol=1e-6)


def test_a_grid_finer_than_the_features_is_refused():
    with pytest.raises(ValueError, match="vrkd_grid"):
        view_relational.pool_tokens(normal(1, 1, 8, 8, 2), (9, 4))


def test_unknown_form_is_refused():
    tokens = view_relational.pool_tokens(normal(B, N, 8, 8, 6), (2, 4))
    pairs = ring_pairs(jnp.ones((B, N), bool))
    with pytest.raises(ValueError, match="vrkd_form"):
        view_relational.view_relational_loss(tokens, tokens, pairs, "cosine")


def test_the_truth_teaches_depths_in_order_and_nothing_of_the_sky():
    """Its bins are the canonical camera's; on centers that fit them the depth comes back."""
    depth_m = jnp.asarray(RNG.uniform(2, 60, (B, N, 4, 6)), jnp.float32).at[:, :, 0].set(0.0)
    ratio = jnp.asarray(RNG.uniform(0.5, 2.0, (B, N)), jnp.float32)
    log_range = (np.log(0.2), np.log(400.0))
    targets = true_targets(depth_m, ratio, (4, 6), 64, log_range)
    np.testing.assert_array_equal(targets.valid, depth_m > 0)
    centers_m = jnp.exp(jnp.linspace(*log_range, 64)) * ratio[..., None]
    crossed = cross_interaction.crossed_depth(targets.logits, centers_m)
    error = np.abs(crossed / jnp.where(depth_m > 0, depth_m, 1.0) - 1)[depth_m > 0]
    assert error.max() < 0.08  # bins are 12 % wide


@pytest.mark.parametrize("supervision", ["lidar", "dense"])
def test_supervision_reads_what_the_config_names(student, supervision):
    config = default_config().objective
    config.supervision = supervision
    config.update(dict.fromkeys(DISTILLATION, 0.0))
    batch = make_batch()
    output = student(batch["image"], batch["intrinsics"], batch["camera_mask"])
    dense_m = jnp.where(RNG.random(output.depth_m.shape) < 0.5, 2.0 * output.depth_m, 0.0)
    loss, _ = student_objective(output, None, batch | {"dense_depth_m": dense_m}, config)
    if supervision == "dense":  # a factor of two everywhere
        assert float(loss) == pytest.approx(np.log(2) * np.sqrt(1 - 0.85), rel=1e-3)
    else:
        assert float(loss) > 0.3
