"""The ResNet encoder against transformers' torch model; masks; statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import random_images, relative_error
from flax import nnx

from fsmde_jax.models.encoders import resnet
from fsmde_jax.models.layers.pooling import max_pool_3x3
from fsmde_jax.models.weights.load import load_state_dict_into
from fsmde_jax.models.weights.tables import RESNET_TABLE

SIZES = {
    "resnet18": (64, [64, 128, 256, 512], [2, 2, 2, 2]),
    "resnet34": (64, [64, 128, 256, 512], [3, 4, 6, 3]),
    "resnet_tiny": (16, [16, 32, 64, 128], [1, 1, 1, 1]),
}


@pytest.mark.parametrize("size", [(8, 6), (7, 10)])
@pytest.mark.parametrize("padding", [(0, 1), (1, 1)])
def test_max_pool_equals_xlas(size, padding):
    x = jax.nn.relu(jnp.asarray(random_images(2, *size)))
    weight = jnp.asarray(random_images(2, 4, 5))[:, :, :, :1]

    def ours(x):
        return max_pool_3x3(x, padding, padding)

    def theirs(x):
        return nnx.max_pool(x, (3, 3), (2, 2), (padding, padding))

    np.testing.assert_array_equal(ours(x), theirs(x))
    gradients = [
        jax.grad(lambda x, f=f: jnp.sum(f(x) * weight[:, : f(x).shape[1], : f(x).shape[2]]))(x)
        for f in (ours, theirs)
    ]
    # Where a window's maximum is tied at zero, behind a ReLU, who gets the gradient is arbitrary.
    np.testing.assert_allclose(*[jnp.where(x > 0, g, 0) for g in gradients], atol=1e-6)


def pair(name: str):
    """A random torch encoder and ours with its weights."""
    pytest.importorskip("torch")
    import torch_reference
    from transformers import ResNetConfig, ResNetModel

    stem, hidden, depths = SIZES[name]
    config = ResNetConfig(
        embedding_size=stem, hidden_sizes=hidden, depths=depths, layer_type="basic"
    )
    torch_model = torch_reference.randomise(ResNetModel(config), seed=5)
    model = getattr(resnet, name)(rngs=nnx.Rngs(0))
    load_state_dict_into(model, torch_reference.state_dict(torch_model), RESNET_TABLE)
    return torch_model, model, torch_reference


def torch_features(torch_model, reference, images: np.ndarray) -> list[np.ndarray]:
    """The stem before its pooling, then the four stages."""
    stem = []
    hook = torch_model.embedder.embedder.register_forward_hook(lambda m, i, o: stem.append(o))
    with reference.torch.no_grad():
        out = torch_model(reference.to_torch(images), output_hidden_states=True)
    hook.remove()
    return [reference.to_numpy(x) for x in (stem[0], *out.hidden_states[1:])]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", (64, 96)),
        ("resnet18", (50, 75)),
        ("resnet34", (50, 64)),
        ("resnet_tiny", (96, 160)),
    ],
)
def test_every_stage_equals_torch(name, size):
    torch_model, model, reference = pair(name)
    model.eval()
    images = random_images(2, *size)
    expected = torch_features(torch_model, reference, images)
    ours = nnx.jit(lambda m, x: m(x))(model, jnp.asarray(images))
    assert [x.shape[-1] for x in ours] == list(model.channels)
    errors = [relative_error(x, y) for x, y in zip(ours, expected, strict=True)]
    assert max(errors) < 1e-5, errors


def test_training_statistics_equal_torch():
    torch_model, model, reference = pair("resnet_tiny")
    torch_model.train()
    model.train()
    images = random_images(4, 96, 160)
    expected = torch_features(torch_model, reference, images)
    ours = nnx.jit(lambda m, x: m(x))(model, jnp.asarray(images))
    assert max(relative_error(x, y) for x, y in zip(ours, expected, strict=True)) < 1e-4
    updated = reference.state_dict(torch_model)
    mean = updated["encoder.stages.3.layers.0.layer.1.normalization.running_mean"]
    assert relative_error(model.stages[3][0].conv2.norm.mean[...], mean) < 1e-4
    var = updated["encoder.stages.3.layers.0.layer.1.normalization.running_var"]
    # Biased here, unbiased there: 1 / n, over 4 images of 3 x 5 pixels.
    assert relative_error(model.stages[3][0].conv2.norm.var[...], var) < 1 / 59
    assert relative_error(model.stages[3][0].conv2.norm.var[...], var) > 1e-4


def test_masked_images_leave_no_trace():
    images = jnp.asarray(random_images(3, 32, 64))
    mask = jnp.asarray([True, False, True])

    def run(images, mask):
        model = resnet.resnet_tiny(rngs=nnx.Rngs(0))
        model.train()
        features = model(images, mask)
        return features, nnx.state(model, nnx.BatchStat)

    features, statistics = jax.jit(run)(images.at[1].set(1e3), mask)
    kept, expected = jax.jit(lambda x: run(x, None))(images[mask])
    for ours, theirs in zip(features, kept, strict=True):
        np.testing.assert_allclose(ours[mask], theirs, rtol=1e-3, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), statistics, expected
    )


def test_gradient_of_masked_image_is_zero():
    mask = jnp.asarray([True, False])

    def loss(images):
        features = resnet.resnet_tiny(rngs=nnx.Rngs(0))(images, mask)
        return sum(jnp.sum(f[0] ** 2) for f in features)

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(random_images(2, 32, 32)))
    assert jnp.abs(gradient[0]).max() > 0 and jnp.all(gradient[1] == 0)


def test_eval_changes_no_statistics():
    model = resnet.resnet_tiny(rngs=nnx.Rngs(0))
    model.eval()
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.BatchStat))
    nnx.jit(lambda m, x: m(x))(model, jnp.asarray(random_images(1, 32, 32)))
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18", 11.177), ("resnet34", 21.285), ("resnet_tiny", 0.309)]
)
def test_parameters(name, millions):
    model = nnx.eval_shape(lambda: getattr(resnet, name)(rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert round(count / 1e6, 3) == millions
