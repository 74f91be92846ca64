"""MobileNetV2 and EfficientNet-Lite0 against torch, and on real photos with real weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import random_images, relative_error
from flax import nnx
from PIL import Image
from safetensors import safe_open

from fsmde_jax.models.encoders import mobilenet
from fsmde_jax.models.student import ENCODERS, Student, StudentConfig
from fsmde_jax.models.weights.load import load_encoder, load_state_dict_into
from fsmde_jax.models.weights.tables import encoder_table

ENDS = {"mobilenetv2": (0, 2, 5, 12, 16), "efficientnet_lite0": (0, 2, 4, 10, 15)}


def built(name: str):
    return nnx.jit(lambda: ENCODERS[name](rngs=nnx.Rngs(0)))()


def pair(name: str):
    """A random torch encoder and ours with its weights."""
    pytest.importorskip("torch")
    import torch_reference
    from transformers import MobileNetV2Config, MobileNetV2Model

    if name == "mobilenetv2":
        torch_model = MobileNetV2Model(MobileNetV2Config())
    else:
        torch_model = torch_reference.EfficientNetLite0()
    torch_reference.randomise(torch_model, seed=5)
    model = built(name)
    tensors = torch_reference.state_dict(torch_model)
    load_state_dict_into(model, tensors, encoder_table(model))
    return torch_model, model, torch_reference


def torch_features(torch_model, reference, images: np.ndarray) -> list[np.ndarray]:
    """The output of every block, the first one's included."""
    if isinstance(torch_model, reference.EfficientNetLite0):
        blocks = torch_model._blocks
    else:
        blocks = [torch_model.conv_stem, *torch_model.layer]
    seen = []
    hooks = [b.register_forward_hook(lambda m, i, out: seen.append(out)) for b in blocks]
    with reference.torch.no_grad():
        torch_model(reference.to_torch(images))
    for hook in hooks:
        hook.remove()
    return [reference.to_numpy(x) for x in seen]


@pytest.mark.parametrize("name", ENDS)
def test_every_stage_equals_torch_at_even_and_odd_sizes(name):
    torch_model, model, reference = pair(name)
    model.eval()
    for size in ((64, 96), (50, 75)):
        images = random_images(2, *size)
        expected = torch_features(torch_model, reference, images)
        ours = nnx.jit(lambda m, x: m(x))(model, jnp.asarray(images))
        assert [x.shape[-1] for x in ours] == list(model.channels)
        errors = [relative_error(x, expected[i]) for x, i in zip(ours, ENDS[name], strict=True)]
        assert max(errors) < 2e-5, errors


def test_masked_images_leave_no_trace():
    images = jnp.asarray(random_images(3, 32, 64))
    mask = jnp.asarray([True, False, True])

    def run(images, mask):
        model = mobilenet.mobilenetv2(rngs=nnx.Rngs(0))
        model.train()
        return model(images, mask)[1], nnx.state(model.blocks[2], nnx.BatchStat)

    features, statistics = jax.jit(run)(images.at[1].set(1e3), mask)
    kept, expected = jax.jit(lambda x: run(x, None))(images[mask])
    np.testing.assert_allclose(features[mask], kept, rtol=1e-3, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), statistics, expected
    )


@pytest.mark.parametrize(
    ("name", "millions"), [("mobilenetv2", 1.812), ("efficientnet_lite0", 2.959)]
)
def test_parameters(name, millions):
    model = nnx.eval_shape(lambda: ENCODERS[name](rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert round(count / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("size", "black", "white"),
    [
        ("resnet18", (0.485 / -0.229, 0.456 / -0.224), (0.515 / 0.229, 0.544 / 0.224)),
        ("mobilenetv2", (-1, -1), (1, 1)),
        ("efficientnet_lite0", (-127 / 128, -127 / 128), (1, 1)),
    ],
)
def test_each_encoder_sees_the_images_its_weights_know(size, black, white):
    options = dict(num_bins=4, min_depth_m=0.1, max_depth_m=80.0, canonical_focal_px=40.0)
    options |= dict(centers_of="image", centers_kind="widths")
    student = nnx.eval_shape(
        lambda: Student(StudentConfig.named(size), **options, rngs=nnx.Rngs(0))
    )
    for value, expected in ((0, black), (255, white)):
        seen = student.normalise(jnp.full((1, 3), value, jnp.uint8))
        np.testing.assert_allclose(seen[0, :2], expected, rtol=1e-5)


# A thing's number in ImageNet, a camera, and where it is on its first photo (left, upper, right,
# lower).
THINGS = {
    "moving van": (675, "nuscenes/samples/CAM_FRONT", (101, 168, 605, 672)),
    "traffic light": (920, "dgp/scene_01/rgb/CAMERA_01", (724, 396, 884, 556)),
    "sports car": (817, "dgp/scene_01/rgb/CAMERA_01", (729, 457, 1367, 1095)),
    "minivan": (656, "dgp/scene_01/rgb/CAMERA_05", (1347, 531, 1557, 741)),
    "trolleybus": (874, "dgp/scene_01/rgb/CAMERA_01", (484, 496, 660, 672)),
}


def test_real_weights_name_things_on_real_photos(shared_dir):
    """The classifier is built here from the keys that the encoder leaves out."""
    folder = shared_dir / "weights" / "efficientnet_lite0"
    model = built("efficientnet_lite0")
    load_encoder(folder, model)
    model.eval()
    with safe_open(folder / "model.safetensors", "numpy") as file:
        head = {key: file.get_tensor(key) for key in file.keys() if key[:3] != "_bl"}  # noqa: SIM118
    crops = []
    for _, camera, box in THINGS.values():
        photo = Image.open(min((shared_dir / "real" / camera).glob("*.jpg")))
        crops.append(np.asarray(photo.crop(box).resize((224, 224), Image.Resampling.BICUBIC)))
    pixels = (np.stack(crops).astype(np.float32) - 127) / 128
    x = (
        np.asarray(nnx.jit(lambda m, x: m(x)[-1])(model, pixels))
        @ head["_conv_head.weight"][:, :, 0, 0].T
    )
    scale = head["_bn1.weight"] / np.sqrt(head["_bn1.running_var"] + 1e-3)
    x = np.clip((x - head["_bn1.running_mean"]) * scale + head["_bn1.bias"], 0, 6)
    logits = x.mean((1, 2)) @ head["_fc.weight"].T + head["_fc.bias"]
    assert logits.argmax(1).tolist() == [number for number, _, _ in THINGS.values()]
