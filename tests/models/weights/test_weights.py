"""Loading of foreign weights: what fits is used whole, what does not is named, all at once."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from fsmde_jax.models.encoders import mobilenet, resnet
from fsmde_jax.models.foundation.dpt import DPT, DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing
from fsmde_jax.models.foundation.vit import ViT
from fsmde_jax.models.weights.files import SHIPPED, SafetensorsFile, WeightsError
from fsmde_jax.models.weights.hub_config import default_preprocessing, foundation_config
from fsmde_jax.models.weights.load import (
    load_encoder,
    load_foundation,
    load_state_dict_into,
    read_foundation_config,
)
from fsmde_jax.models.weights.save import save_foundation
from fsmde_jax.models.weights.tables import DEPTH_ANYTHING_TABLE, DPT_TABLE, RESNET_TABLE, table_of

CONFIG = {
    "model_type": "dpt",
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 8,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [4, 5, 6, 7],
    "fusion_hidden_size": 8,
}


def foreign_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a transformers checkpoint with CONFIG."""
    layers = {
        "dpt.embeddings.patch_embeddings.projection": (12, 3, 8, 8),
        "head.head.0": (4, 8, 3, 3),
        "head.head.2": (32, 4, 3, 3),
        "head.head.4": (1, 32, 1, 1),
    }
    norms = ["dpt.layernorm"]
    for i in range(4):
        block = f"dpt.encoder.layer.{i}"
        layers |= {f"{block}.attention.attention.{n}": (12, 12) for n in ("query", "key", "value")}
        layers[f"{block}.attention.output.dense"] = (12, 12)
        layers[f"{block}.intermediate.dense"] = (20, 12)
        layers[f"{block}.output.dense"] = (12, 20)
        norms += [f"{block}.layernorm_before", f"{block}.layernorm_after"]
        layers[f"neck.reassemble_stage.readout_projects.{i}.0"] = (12, 24)
        layers[f"neck.reassemble_stage.layers.{i}.projection"] = (4 + i, 12, 1, 1)
        fusion = f"neck.fusion_stage.layers.{i}"
        layers[f"{fusion}.projection"] = (8, 8, 1, 1)
        for unit in (1, 2):
            for conv in (1, 2):
                layers[f"{fusion}.residual_layer{unit}.convolution{conv}"] = (8, 8, 3, 3)
    for i, (c, k) in {0: (4, 4), 1: (5, 2), 3: (7, 3)}.items():
        layers[f"neck.reassemble_stage.layers.{i}.resize"] = (c, c, k, k)
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": (shape[0],) for name, shape in layers.items()}
    shapes |= {f"{name}.{kind}": (12,) for name in norms for kind in ("weight", "bias")}
    shapes |= {f"neck.convs.{i}.weight": (8, 4 + i, 3, 3) for i in range(4)}
    shapes["dpt.embeddings.cls_token"] = (1, 1, 12)
    shapes["dpt.embeddings.position_embeddings"] = (1, 5, 12)
    return shapes


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in foreign_shapes().items()}


@pytest.fixture
def folder(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def load(source) -> tuple[DPTConfig, nnx.State]:
    """A checkpoint's architecture and parameters, on one device."""
    config, _ = read_foundation_config(source)
    shapes = nnx.state(nnx.eval_shape(lambda: DPT(config, rngs=nnx.Rngs(0))), nnx.Param)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return config, load_foundation(
        source, config, shapes, jax.tree.map(lambda _: one_device, shapes)
    )


def tiny_dpt() -> DPT:
    return DPT(foundation_config(CONFIG), rngs=nnx.Rngs(0))


def test_names_and_shapes_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    import transformers

    with torch.device("meta"):
        model = transformers.DPTForDepthEstimation(transformers.DPTConfig(**CONFIG))
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == foreign_shapes()


@pytest.mark.parametrize("form", ["folder", "file", "text"])
def test_folder_and_file_load(form, folder, tensors):
    source = {"folder": folder, "file": folder / "model.safetensors", "text": str(folder)}[form]
    config, state = load(source)
    assert config == foundation_config(CONFIG)
    model = tiny_dpt()
    load_state_dict_into(model, tensors, DPT_TABLE)
    jax.tree.map(np.testing.assert_array_equal, state, nnx.state(model, nnx.Param))
    kernel = model.backbone.blocks[1].mlp_in.kernel[...]
    np.testing.assert_array_equal(
        kernel, tensors["dpt.encoder.layer.1.intermediate.dense.weight"].T
    )


def test_loaded_state_runs_in_a_model(folder):
    config, state = load(folder)
    model = nnx.eval_shape(lambda: DPT(config, rngs=nnx.Rngs(0)))
    graph, _ = nnx.split(model)
    out = jax.jit(lambda s, x: nnx.merge(graph, s)(x))(state, jnp.ones((1, 16, 32, 3)))
    assert out.prediction.shape == (1, 32, 64)  # factors 4, 2, 1, 0.5 over patches of 8


def test_half_precision_and_pretraining_pooler_are_accepted(folder, tensors):
    tensors = {key: tensor.astype(np.float16) for key, tensor in tensors.items()}
    tensors["dpt.pooler.dense.weight"] = np.zeros((12, 12), np.float16)
    tensors["dpt.pooler.dense.bias"] = np.zeros(12, np.float16)
    save_file(tensors, folder / "model.safetensors")
    _, state = load(folder)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state))


def test_idle_unit_of_first_fusion_layer_may_be_absent(tensors):
    idle = [key for key in tensors if key.startswith("neck.fusion_stage.layers.0.residual_layer1")]
    assert len(idle) == 4
    for key in idle:
        del tensors[key]
    load_state_dict_into(tiny_dpt(), tensors, DPT_TABLE)


def test_all_violations_are_listed_together(tensors):
    del tensors["dpt.encoder.layer.3.attention.attention.key.bias"]
    tensors["dpt.encoder.layer.9.output.dense.bias"] = np.zeros(12, np.float32)
    tensors["head.head.7.weight"] = np.zeros(3, np.float32)
    tensors["head.head.0.weight"] = tensors["head.head.0.weight"].transpose(1, 0, 2, 3)
    tensors["dpt.layernorm.weight"] = np.zeros((12, 1), np.float32)
    model = tiny_dpt()
    before = jax.tree.map(np.asarray, nnx.state(model))
    with pytest.raises(WeightsError) as error:
        load_state_dict_into(model, tensors, DPT_TABLE, "some file")
    text = str(error.value)
    assert text.startswith("some file does not fit the model, 5 faults:")
    for part in (
        "backbone.blocks.3.attention.key.bias: no key fills it",
        "dpt.encoder.layer.9.output.dense.bias: the model has no parameter backbone.blocks.9",
        "head.head.7.weight: matches 0 patterns",
        "head.head.0.weight: shape (8, 4, 3, 3) becomes (3, 3, 4, 8), but depth_head.conv1.kernel",
        "dpt.layernorm.weight: shape (12, 1)",
    ):
        assert part in text
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def test_every_single_missing_key_is_noticed(tensors):
    model = tiny_dpt()
    for key in tensors:
        if "layers.0.residual_layer1" not in key:
            rest = {k: v for k, v in tensors.items() if k != key}
            with pytest.raises(WeightsError, match="1 faults"):
                load_state_dict_into(model, rest, DPT_TABLE)


def test_a_saved_model_loads_here_and_in_transformers(tmp_path):
    model = tiny_dpt()
    state = nnx.state(model, nnx.Param)
    save_foundation(tmp_path, model.config, Preprocessing(size=(16, 16)), state)
    config, loaded = load(tmp_path)
    assert config == model.config
    assert read_foundation_config(tmp_path)[1] == Preprocessing(size=(16, 16))
    jax.tree.map(np.testing.assert_array_equal, loaded, state)
    torch = pytest.importorskip("torch")
    from torch_reference import to_torch
    from transformers import DPTForDepthEstimation

    image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    torch_model = DPTForDepthEstimation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        reference = torch_model(to_torch(image)).predicted_depth.numpy()
    prediction = nnx.jit(lambda m, x: m(x).prediction)(model, jnp.asarray(image))
    np.testing.assert_allclose(prediction, reference, rtol=1e-4)


@pytest.mark.parametrize("family", ["hybrid", "depth_anything"])
def test_every_change_of_a_file_is_noticed(family):
    """Each key dropped, doubled under another name, or (where its shape tells) transposed."""
    pytest.importorskip("torch")
    import dpt_cases
    import torch_reference

    kind, options, _ = dpt_cases.CASES[family]
    torch_model = getattr(torch_reference, kind)(**options)
    tensors = torch_reference.state_dict(torch_model)
    config = foundation_config(torch_model.config.to_dict())
    model = nnx.eval_shape(lambda: DPT(config, rngs=nnx.Rngs(0)))
    idle = ("layers.0.residual_layer1", "mask_token")
    for key in [key for key in tensors if not any(name in key for name in idle)]:
        rest = {k: v for k, v in tensors.items() if k != key}
        with pytest.raises(WeightsError, match="no key fills it"):
            load_state_dict_into(model, rest, table_of(config))
        turned = tensors[key].T
        if turned.shape != tensors[key].shape:
            with pytest.raises(WeightsError, match="becomes"):
                load_state_dict_into(model, {**tensors, key: turned}, table_of(config))
    hub_spelling = {"q_proj": "attention.query", "attention.query": "q_proj"}
    (key,) = (k for k in tensors if "layer.1." in k and k.endswith(("q_proj.bias", "query.bias")))
    for ours, other in hub_spelling.items():
        if ours in key:
            doubled = {**tensors, key.replace(ours, other): tensors[key]}
            with pytest.raises(WeightsError, match=r"attention\.query\.bias: filled 2 times"):
                load_state_dict_into(model, doubled, table_of(config))


def test_the_hubs_spelling_of_dinov2_loads_as_transformers_5s():
    pytest.importorskip("torch")
    import dpt_cases
    import torch_reference

    _, options, _ = dpt_cases.CASES["depth_anything"]
    torch_model = torch_reference.depth_anything(**options)
    tensors = torch_reference.state_dict(torch_model)
    config = foundation_config(torch_model.config.to_dict())
    old = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    hub = {}
    for key, tensor in tensors.items():
        for new, name in (old | {"o_proj": "output.dense"}).items():
            key = key.replace(new, name)
        hub[key] = tensor
    assert hub.keys() != tensors.keys()
    models = [DPT(config, rngs=nnx.Rngs(i)) for i in range(2)]
    for model, state_dict in zip(models, (tensors, hub), strict=True):
        load_state_dict_into(model, state_dict, table_of(config))
    jax.tree.map(np.testing.assert_array_equal, *(nnx.state(model) for model in models))


def test_real_dinov2_equals_torch_on_real_photos(shared_dir):
    """Last-layer features at 518x518 and at a size that is not square."""
    torch = pytest.importorskip("torch")
    from PIL import Image
    from torch_reference import to_torch
    from transformers import Dinov2Model

    folder = shared_dir / "weights" / "dinov2_small_hf"
    torch_model = Dinov2Model.from_pretrained(folder).eval()
    with safe_open(folder / "model.safetensors", "numpy") as file:
        tensors = {f"backbone.{key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = DPTConfig.depth_anything("small")
    model = nnx.Module()
    model.backbone = ViT(config, rngs=nnx.Rngs(0))
    load_state_dict_into(model, tensors, DEPTH_ANYTHING_TABLE)
    features = nnx.jit(lambda vit, x: vit.encode(vit.embed(x), ())[1])
    photo = next((shared_dir / "real" / "dgp").rglob("CAMERA_01/*.jpg"))
    for size in ((518, 518), (392, 644)):
        image = np.asarray(Image.open(photo).resize(size[::-1]))[None]
        pixels = default_preprocessing(config)(jnp.asarray(image), size)
        with torch.no_grad():
            reference = torch_model(to_torch(np.asarray(pixels))).last_hidden_state.numpy()
        error = np.abs(features(model.backbone, pixels) - reference).max() / np.abs(reference).max()
        assert error < 1e-4, (size, error)


def test_doubled_key_is_noticed():
    model = nnx.eval_shape(lambda: resnet.resnet_tiny(rngs=nnx.Rngs(0)))
    twice = {
        f"{p}embedder.embedder.convolution.weight": np.zeros((16, 3, 7, 7), np.float32)
        for p in ("", "resnet.")
    }
    with pytest.raises(WeightsError, match=r"stem\.conv\.kernel: filled 2 times, by"):
        load_state_dict_into(model, twice, RESNET_TABLE)


def test_resnet_classifier_checkpoint_loads(tmp_path):
    pytest.importorskip("torch")
    import torch_reference
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic"
    )
    torch_model = torch_reference.randomise(transformers.ResNetForImageClassification(config), 0)
    tensors = torch_reference.state_dict(torch_model)
    save_file(tensors, tmp_path / "model.safetensors")
    model = resnet.resnet_tiny(rngs=nnx.Rngs(0))
    load_encoder(tmp_path, model)
    mean = tensors["resnet.encoder.stages.1.layers.0.shortcut.normalization.running_mean"]
    np.testing.assert_array_equal(model.stages[1][0].shortcut.norm.mean[...], mean)


@pytest.mark.parametrize("prefix", ["", "mobilenet_v2."])
def test_mobilenet_checkpoint_loads_with_or_without_its_classifier(tmp_path, prefix):
    pytest.importorskip("torch")
    import torch_reference
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    classifier = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=2))
    torch_model = torch_reference.randomise(classifier if prefix else classifier.mobilenet_v2, 0)
    tensors = torch_reference.state_dict(torch_model)
    save_file(tensors, tmp_path / "model.safetensors")
    model = nnx.jit(lambda: mobilenet.mobilenetv2(rngs=nnx.Rngs(0)))()
    load_encoder(tmp_path / "model.safetensors", model)
    mean = tensors[f"{prefix}layer.3.conv_3x3.normalization.running_mean"]
    np.testing.assert_array_equal(model.blocks[4].depthwise.norm.mean[...], mean)


def test_an_encoder_of_another_architecture_is_one_line(tmp_path):
    other = {"layer.0.conv_3x3.convolution.weight": np.zeros((96, 1, 3, 3), np.float32)}
    save_file(other, tmp_path / "model.safetensors")
    model = nnx.eval_shape(lambda: resnet.resnet18(rngs=nnx.Rngs(0)))
    with pytest.raises(WeightsError, match=r"another architecture.*encoder_weights") as error:
        load_encoder(tmp_path, model)
    assert "\n" not in str(error.value) and "config.student.size" in str(error.value)


def relabelled(file, dtype, other):
    """The file's header says `other` for `dtype`, which has as many bits."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(f'"{dtype}"'.encode(), f'"{other}"'.encode())
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


def read_all(file):
    opened = SafetensorsFile(file)
    return {key: opened.read(key) for key in opened.shapes}


def test_what_we_write_has_a_checksum_that_is_verified(tmp_path):
    values = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    state = nnx.State({"out": {"kernel": nnx.Param(values)}})
    arguments = (MiniConfig(), Preprocessing(size=(16, 16)), state)
    save_foundation(tmp_path, *arguments, dtype=np.float16)
    file, beside = tmp_path / "model.safetensors", tmp_path / "model.safetensors.sha256"
    np.testing.assert_array_equal(read_all(file)["out.kernel"], values.astype(np.float16))
    whole, digest = file.read_bytes(), hashlib.sha256(file.read_bytes()).hexdigest()
    assert beside.read_text() == f"{digest}  model.safetensors\n"
    flipped = whole[:-99] + bytes([whole[-99] ^ 1]) + whole[-98:]
    for content in (flipped, whole[:-100], whole + b"0"):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=r"model\.safetensors is damaged: its SHA-256"):
            read_all(file)
    file.write_bytes(flipped)
    save_foundation(tmp_path, *arguments, dtype=np.float16)
    assert (tmp_path / "model.safetensors.before").read_bytes() == flipped
    save_foundation(tmp_path, *arguments)  # what it wrote itself it replaces
    assert not (tmp_path / "model.safetensors.before.2").exists()
    np.testing.assert_array_equal(read_all(file)["out.kernel"], values)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_has_its_checksum(name):
    file = SHIPPED[name] / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.with_name("model.safetensors.sha256").read_text().split()[0] == digest


def test_files_of_the_hubs_cache_are_checked_by_their_names(folder, tmp_path):
    """As huggingface_hub lays them out: large files by SHA-256, small ones by git's SHA-1."""
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/0"
    for path in (blobs, snapshot):
        path.mkdir(parents=True)
    small, large = ((folder / n).read_bytes() for n in ("config.json", "model.safetensors"))
    names = (hashlib.sha1(b"blob %d\0" % len(small) + small), hashlib.sha256(large))
    for file, content, digest, read in (
        (
            snapshot / "config.json",
            small,
            names[0],
            lambda file: read_foundation_config(file.parent),
        ),
        (snapshot / "model.safetensors", large, names[1], read_all),
    ):
        blob = blobs / digest.hexdigest()
        blob.write_bytes(content)
        file.symlink_to(f"../../blobs/{blob.name}")
        read(file)
        blob.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(
            WeightsError, match=rf"{file.name} is damaged: its checksum .*{blob.name}"
        ):
            read(file)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(tmp_path, value):
    tensors = {"fine": np.ones(3), "wrong": np.array([1.0, value, 2.0]), "count": np.arange(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a\.safetensors: wrong has 1 values that are not fini"):
        read_all(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("dtype", "other"), [("F16", "BF16"), ("BF16", "F16")])
@pytest.mark.parametrize("scale", [0.002, 0.1])
def test_another_16_bit_label_is_seen_in_a_strangers_file(tmp_path, dtype, other, scale):
    names = {"F16": "float16", "BF16": "bfloat16"}
    file = tmp_path / "model.safetensors"
    kernel = (scale * np.random.default_rng(0).normal(size=(64, 64))).astype(names[dtype])
    save_file({"norm": np.ones(8, names[dtype]), "kernel": kernel}, file)
    read_all(file)
    relabelled(file, dtype, other)
    with pytest.raises(WeightsError, match=f" as if {names[dtype]} were labelled {names[other]}"):
        read_all(file)


def test_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read.*truncated"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ('{"model_type": "glpn"}', "config.json: model_type is 'glpn'"),
        ("[]", "config.json"),
    ],
)
def test_bad_config_is_named(folder, text, message):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_absent_sources_are_named(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(WeightsError, match=r"model\.safetensors: missing; convert"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="no such file or folder"):
        load(tmp_path / "nowhere" / "at all")

    def offline(repo, **kwargs):
        raise FileNotFoundError("no route to the hub")

    monkeypatch.setattr("fsmde_jax.models.weights.files.snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"Intel/dpt-large: neither.*no route.*HF_HUB_OFFLINE"):
        load("Intel/dpt-large")
