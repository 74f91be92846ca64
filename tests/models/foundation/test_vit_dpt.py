"""DPT against transformers' torch model, stage by stage, on random weights; resizing; sizes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import relative_error
from dpt_cases import CASES, make_pair, random_image, stage_errors
from flax import nnx

from fsmde_jax.models.foundation.dpt import DPT, DPTConfig
from fsmde_jax.models.foundation.vit import attend
from fsmde_jax.models.layers.resize import resize_bicubic, resize_bilinear
from fsmde_jax.models.weights.hub_config import PUBLISHED, foundation_config, to_json
from fsmde_jax.models.weights.load import load_state_dict_into
from fsmde_jax.models.weights.tables import table_of

# Largest error over the largest reference value; what float32 leaves, with a factor to spare.
TOLERANCES = {"embed": 1e-5, "encode": 1e-5, "reassemble": 1e-5, "fuse": 2e-5, "head": 5e-5}


@pytest.fixture
def torch_reference():
    pytest.importorskip("torch")
    import torch_reference

    return torch_reference


@pytest.mark.parametrize("case", CASES)
def test_every_stage_equals_torch(case, torch_reference):
    torch_model, model, image = make_pair(case, torch_reference)
    reference = torch_reference.stages(torch_model, image)
    assert reference["head"][0].min() > 0  # the last ReLU hides no error
    errors = stage_errors(model, reference, image)
    assert all(errors[name] < TOLERANCES[name] for name in TOLERANCES), errors


def test_official_position_embedding_equals_torch(torch_reference):
    torch_model, model, image = make_pair("depth_anything_wide", torch_reference)
    hub = stage_errors(model, torch_reference.stages(torch_model, image), image)
    torch_reference.use_official_positions(torch_model)
    reference = torch_reference.stages(torch_model, image)
    assert stage_errors(model, reference, image)["embed"] > 100 * hub["embed"]  # they differ
    config = dataclasses.replace(model.config, position_offset=0.1)
    official = DPT(config, rngs=nnx.Rngs(0))
    nnx.update(official, nnx.state(model))
    errors = stage_errors(official, reference, image)
    assert all(errors[name] < TOLERANCES[name] for name in TOLERANCES), errors


@pytest.mark.parametrize("case", ["native", "hybrid", "depth_anything_wide"])
def test_whole_call_equals_torch(case, torch_reference):
    torch_model, model, image = make_pair(case, torch_reference)
    reference = torch_model(torch_reference.to_torch(image)).predicted_depth.detach().numpy()
    out = nnx.jit(lambda m, x: m(x))(model, jnp.asarray(image))
    assert relative_error(out.prediction, reference) < TOLERANCES["head"]
    assert out.features.shape[-1] == 16
    assert out.tokens.shape == (2, *model.config.grid(*image.shape[1:3]), 24)


@pytest.mark.parametrize("case", ["native", "hybrid", "depth_anything"])
@pytest.mark.parametrize("mutation", ["swap_query_key", "transpose_query"])
def test_parity_catches_what_shapes_do_not(case, mutation, torch_reference):
    torch_model, model, image = make_pair(case, torch_reference)
    tensors = torch_reference.state_dict(torch_model)
    keys = [key for key in tensors if "layer.2.attention" in key and key.endswith("weight")]
    (query,) = (key for key in keys if ".query." in key or ".q_proj." in key)
    (key,) = (key for key in keys if ".key." in key or ".k_proj." in key)
    if mutation == "swap_query_key":
        # Swapping the weights alone changes q k^T to k q^T: attention transposed.
        tensors[query], tensors[key] = tensors[key], tensors[query]
    else:
        tensors[query] = tensors[query].T
    load_state_dict_into(model, tensors, table_of(model.config))
    errors = stage_errors(model, torch_reference.stages(torch_model, image), image)
    assert errors["embed"] < TOLERANCES["embed"]
    assert errors["encode"] > 100 * TOLERANCES["encode"]
    assert errors["head"] > 10 * TOLERANCES["head"]


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("size", [(14, 22), (7, 11), (5, 17), (9, 10)])
def test_bicubic_equals_torch(size, offset, torch_reference):
    """By size as transformers does, and by factor as the official DINOv2 code does."""
    x = np.random.default_rng(0).normal(size=(2, 7, 11, 3)).astype(np.float32)
    target = dict(size=size)
    if offset:
        target = dict(
            scale_factor=tuple((n + offset) / m for n, m in zip(size, (7, 11), strict=True))
        )
    reference = torch_reference.torch.nn.functional.interpolate(
        torch_reference.to_torch(x), **target, mode="bicubic", align_corners=False
    )
    ours = resize_bicubic(jnp.asarray(x), size, offset=offset)
    if offset and size == (7, 11):  # the official code leaves the native size alone
        reference = torch_reference.to_torch(x)
    assert relative_error(ours, torch_reference.to_numpy(reference)) < 1e-5


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


@pytest.mark.parametrize("resize", [resize_bicubic, resize_bilinear])
def test_the_gradient_of_a_resize_is_its_transpose(resize):
    """On CPUs pixels are picked, and only the gradient is by matrices."""
    rng = np.random.default_rng(0)
    x, out_grad = (jnp.asarray(rng.normal(size=(2, *size, 3)), "f") for size in ((7, 5), (9, 8)))
    _, transposed = jax.vjp(lambda x: resize(x, (9, 8)), x)
    columns = jax.vmap(lambda one: resize(one.reshape(1, 7, 5, 1), (9, 8)).ravel())(jnp.eye(35))
    expected = jnp.einsum("bjc,ij->bic", out_grad.reshape(2, 72, 3), columns).reshape(x.shape)
    np.testing.assert_allclose(transposed(out_grad)[0], expected, atol=1e-5)


def test_tiny_model_is_alive_and_differentiable():
    model = DPT(DPTConfig.dpt_tiny(), rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    image = jnp.asarray(random_image(96, 160))

    def loss(params):
        out = nnx.merge(graph, params)(image)
        return jnp.mean(out.prediction**2) + jnp.mean(out.tokens**3), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert out.prediction.shape == (2, 48, 80) and out.features.shape == (2, 24, 40, 48)
    assert (out.prediction > 0).mean() > 0.99
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
    assert b.features.dtype == jnp.bfloat16 and b.prediction.dtype == jnp.float32
    assert relative_error(b.prediction, a.prediction) < 0.05


HUB = {
    "dpt_large": (
        {
            "model_type": "dpt",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "backbone_out_indices": [5, 11, 17, 23],
            "neck_hidden_sizes": [256, 512, 1024, 1024],
            "is_hybrid": None,
        },
        DPTConfig.dpt_large(),
    ),
    "dpt_hybrid": (
        {
            "model_type": "dpt",
            "is_hybrid": True,
            "neck_hidden_sizes": [256, 512, 768, 768],
            "reassemble_factors": [1, 1, 1, 0.5],
            "backbone_out_indices": [2, 5, 8, 11],
            "neck_ignore_stages": [0, 1],
            "backbone_config": {
                "global_padding": "same",
                "layer_type": "bottleneck",
                "depths": [3, 4, 9],
                "out_features": ["stage1", "stage2", "stage3"],
                "embedding_dynamic_padding": True,
            },
        },
        DPTConfig.dpt_hybrid(),
    ),
    "depth_anything_v1_large": (
        {
            "model_type": "depth_anything",
            "backbone_config": {
                "model_type": "dinov2",
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 518,
                "out_indices": [21, 22, 23, 24],
                "reshape_hidden_states": False,
            },
            "reassemble_hidden_size": 1024,
            "neck_hidden_sizes": [256, 512, 1024, 1024],
            "fusion_hidden_size": 256,
        },
        DPTConfig.depth_anything("large", version=1),
    ),
    "depth_anything_v2_small": (
        {
            "model_type": "depth_anything",
            "backbone_config": {
                "model_type": "dinov2",
                "hidden_size": 384,
                "num_attention_heads": 6,
                "image_size": 518,
                "out_features": ["stage3", "stage6", "stage9", "stage12"],
                "out_indices": [3, 6, 9, 12],
                "reshape_hidden_states": False,
            },
            "max_depth": None,
        },
        DPTConfig.depth_anything("small"),
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_named_sizes_are_those_of_the_hub(name):
    values, expected = HUB[name]
    assert foundation_config(values) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_back(name):
    assert foundation_config(json.loads(json.dumps(to_json(PUBLISHED[name])))) == PUBLISHED[name]


def test_metric_checkpoints_say_so():
    values = HUB["depth_anything_v2_small"][0]
    metric = foundation_config(values | {"depth_estimation_type": "metric", "max_depth": 80})
    assert metric.predicts_metres and metric.max_depth_m == 80
    assert not foundation_config(values).predicts_metres


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "glpn", "architectures": ["GLPNForDepthEstimation"]},
            r"'glpn' \(architecture GLPNForDepthEstimation\).*Supported: DPT with a plain ViT",
        ),
        (
            {"model_type": "dpt", "backbone_config": {"model_type": "beit"}},
            "backbone_config is .*beit",
        ),
        (
            {"model_type": "depth_anything", "backbone_config": {"model_type": "swin"}},
            "model_type is 'swin', supported: 'dinov2'",
        ),
        (
            {"model_type": "depth_anything", "backbone_config": {"use_swiglu_ffn": True}},
            "use_swiglu_ffn is True",
        ),
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
        foundation_config(fields)


def test_image_must_be_a_multiple_of_the_patch():
    model = nnx.eval_shape(lambda: DPT(DPTConfig.dpt_tiny(), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="100x160 is no multiple of patch_size 16"):
        nnx.eval_shape(lambda m: m(jnp.zeros((1, 100, 160, 3))), model)


@pytest.mark.parametrize("tokens", [600, 1301])  # the second in two strips
def test_attention_by_head_equals_attention_at_once(tokens):
    q, k, v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, tokens, 3, 8)), jnp.float32)
    np.testing.assert_allclose(
        jax.jit(attend)(q, k, v), jax.nn.dot_product_attention(q, k, v), atol=1e-5
    )
