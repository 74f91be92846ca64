"""DPT against transformers' torch model, stage by stage, on random weights; resizing; sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fsmde_jax.models.dpt import DPT, DPTConfig, normalise
from fsmde_jax.models.resize import resize_bilinear
from fsmde_jax.models.weights import DPT_TABLE, load_state_dict_into

# Largest error over the largest reference value; what float32 leaves, with a factor to spare.
TOLERANCES = {"embed": 1e-6, "encode": 1e-5, "reassemble": 1e-5, "fuse": 2e-5, "head": 5e-5}

TINY = dict(
    hidden_size=24,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=48,
    image_size=32,
    patch_size=8,
    backbone_out_indices=[0, 1, 2, 3],
    neck_hidden_sizes=[8, 12, 16, 24],
    fusion_hidden_size=16,
)

CASES = {
    "native": (dict(readout_type="project"), (32, 32)),
    "wide": (dict(readout_type="project", layer_norm_eps=1e-6), (24, 64)),
    "odd_grid": (dict(readout_type="add", reassemble_factors=[2, 1, 0.5, 0.25]), (40, 56)),
    "ignore": (dict(readout_type="ignore", qkv_bias=False, head_in_index=2), (32, 48)),
    "projection": (dict(fusion_hidden_size=256, add_projection=True), (16, 32)),
}


def relative_error(ours, reference) -> float:
    """Largest difference over the largest reference value."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def our_stages(model: DPT, image: jax.Array) -> dict[str, list[jax.Array]]:
    """Outputs of every stage, in the order of `DPT.__call__`."""
    tokens = model.embed(image)
    hidden_states, last = model.encode(tokens)
    maps = model.reassemble(hidden_states, model.config.grid(*image.shape[1:3]))
    fused = model.fuse(maps)
    return {
        "embed": [tokens],
        "encode": [*hidden_states, last],
        "reassemble": maps,
        "fuse": fused,
        "head": [model.head(fused[model.config.head_in_index])],
    }


def stage_errors(model: DPT, reference: dict, image: np.ndarray) -> dict[str, float]:
    """Largest relative error of each stage."""
    ours = nnx.jit(our_stages)(model, jnp.asarray(image))
    return {
        name: max(relative_error(*pair) for pair in zip(ours[name], reference[name], strict=True))
        for name in reference
    }


def random_image(*size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)


@pytest.fixture
def torch_reference():
    pytest.importorskip("torch")
    import torch_reference

    return torch_reference


@pytest.mark.parametrize("case", CASES)
def test_every_stage_equals_torch(case, torch_reference):
    options, size = CASES[case]
    torch_model = torch_reference.dpt(**{**TINY, **options})
    model = DPT(DPTConfig.from_hf(torch_model.config.to_dict()), rngs=nnx.Rngs(0))
    load_state_dict_into(model, torch_reference.state_dict(torch_model), DPT_TABLE)
    image = random_image(*size)
    reference = torch_reference.dpt_stages(torch_model, image)
    assert reference["head"][0].min() > 0  # the last ReLU hides no error
    errors = stage_errors(model, reference, image)
    assert all(errors[name] < TOLERANCES[name] for name in TOLERANCES), errors


def test_whole_call_equals_torch(torch_reference):
    torch_model = torch_reference.dpt(**TINY)
    model = DPT(DPTConfig.from_hf(torch_model.config.to_dict()), rngs=nnx.Rngs(0))
    load_state_dict_into(model, torch_reference.state_dict(torch_model), DPT_TABLE)
    image = random_image(32, 32)
    reference = torch_model(torch_reference.to_torch(image)).predicted_depth.detach().numpy()
    out = nnx.jit(lambda m, x: m(x))(model, jnp.asarray(image))
    assert relative_error(out.inverse_depth, reference) < TOLERANCES["head"]
    assert out.features.shape == (2, 32, 32, 16)  # head reads half of its output's resolution
    assert out.tokens.shape == (2, 4, 4, 24)


@pytest.mark.parametrize("mutation", ["swap_query_key", "transpose_query"])
def test_parity_catches_what_shapes_do_not(mutation, torch_reference):
    torch_model = torch_reference.dpt(**TINY)
    tensors = torch_reference.state_dict(torch_model)
    query, key = (f"dpt.encoder.layer.2.attention.attention.{n}.weight" for n in ("query", "key"))
    if mutation == "swap_query_key":
        # Swapping the weights alone changes q k^T to k q^T: attention transposed.
        tensors[query], tensors[key] = tensors[key], tensors[query]
    else:
        tensors[query] = tensors[query].T
    model = DPT(DPTConfig.from_hf(torch_model.config.to_dict()), rngs=nnx.Rngs(0))
    load_state_dict_into(model, tensors, DPT_TABLE)
    image = random_image(32, 32)
    errors = stage_errors(model, torch_reference.dpt_stages(torch_model, image), image)
    assert errors["embed"] < TOLERANCES["embed"]
    assert errors["encode"] > 100 * TOLERANCES["encode"]
    assert errors["head"] > 10 * TOLERANCES["head"]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(14, 22), (7, 11), (3, 5), (9, 10), (1, 1)])
def test_bilinear_equals_torch(size, align_corners, torch_reference):
    x = np.random.default_rng(0).normal(size=(2, 7, 11, 3)).astype(np.float32)
    reference = torch_reference.torch.nn.functional.interpolate(
        torch_reference.to_torch(x), size=size, mode="bilinear", align_corners=align_corners
    )
    ours = resize_bilinear(jnp.asarray(x), size, align_corners=align_corners)
    assert relative_error(ours, torch_reference.to_numpy(reference)) < 1e-5


def test_bilinear_keeps_a_ramp():
    ramp = jnp.arange(6.0)[None, :, None, None] * jnp.ones((1, 6, 4, 2))
    doubled = resize_bilinear(ramp, (12, 8))
    np.testing.assert_allclose(doubled[0, :3, 0, 0], [0.0, 0.25, 0.75], atol=1e-6)
    aligned = resize_bilinear(ramp, (11, 8), align_corners=True)
    np.testing.assert_allclose(aligned[0, :, 0, 0], np.arange(11) / 2, atol=1e-6)


def test_tiny_model_is_alive_and_differentiable():
    model = DPT(DPTConfig.dpt_tiny(), rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    image = jnp.asarray(random_image(96, 160))

    def loss(params):
        out = nnx.merge(graph, params)(image)
        return jnp.mean(out.inverse_depth**2) + jnp.mean(out.tokens**3), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert out.inverse_depth.shape == (2, 48, 80) and out.features.shape == (2, 24, 40, 48)
    assert (out.inverse_depth > 0).mean() > 0.99
    dead = [path for path, leaf in nnx.to_flat_state(gradients) if not jnp.any(leaf[...] != 0)]
    # Softmax does not see a constant added to all keys.
    assert all(path[-2:] == ("key", "bias") for path in dead), dead


def test_bfloat16_computes_near_float32_with_float32_parameters():
    image = jnp.asarray(random_image(96, 160))
    config = DPTConfig.dpt_tiny()
    full = DPT(config, rngs=nnx.Rngs(0))
    half = DPT(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(half)))
    call = nnx.jit(lambda m, x: m(x))
    a, b = call(full, image), call(half, image)
    assert b.features.dtype == jnp.bfloat16 and b.inverse_depth.dtype == jnp.float32
    assert relative_error(b.inverse_depth, a.inverse_depth) < 0.05


def test_normalise_maps_bytes_to_one_and_minus_one():
    image = jnp.asarray([[[0, 255, 51]]], jnp.uint8)
    np.testing.assert_allclose(normalise(image), [[[-1.0, 1.0, -0.6]]], atol=1e-6)


def test_large_configuration_is_that_of_the_hub():
    hub = {
        "model_type": "dpt",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "backbone_out_indices": [5, 11, 17, 23],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "is_hybrid": None,
    }
    assert DPTConfig.from_hf(hub) == DPTConfig.dpt_large()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "depth_anything"}, "model_type is 'depth_anything', supported: 'dpt'"),
        ({"model_type": "dpt", "is_hybrid": True}, "is_hybrid"),
        ({"model_type": "dpt", "readout_type": "sum"}, "readout_type 'sum'"),
        ({"model_type": "dpt", "num_hidden_layers": 4}, "backbone_out_indices"),
        ({"model_type": "dpt", "neck_hidden_sizes": [1, 2]}, "differ in length"),
        ({"model_type": "dpt", "num_attention_heads": 7}, "num_heads 7"),
        ({"model_type": "dpt", "image_size": 100}, "100x100"),
        ({"model_type": "dpt", "reassemble_factors": [3, 2, 1, 0.4]}, "0.4"),
    ],
)
def test_unsupported_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DPTConfig.from_hf(fields)


def test_image_must_be_a_multiple_of_the_patch():
    model = nnx.eval_shape(lambda: DPT(DPTConfig.dpt_tiny(), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="100x160 is no multiple of patch_size 16"):
        nnx.eval_shape(lambda m: m(jnp.zeros((1, 100, 160, 3))), model)
