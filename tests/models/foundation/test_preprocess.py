"""The image processor inside the teacher against transformers' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fsmde_jax.models.foundation.preprocess import Preprocessing, resize_8bit

DEPTH_ANYTHING = {
    "do_resize": True,
    "ensure_multiple_of": 14,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "keep_aspect_ratio": True,
    "resample": 3,
    "size": {"height": 518, "width": 518},
}
DPT = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": 384}


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:75, :120]
    smooth = 127 + 127 * np.sin(rows / 9) * np.cos(columns / 7)
    noise = rng.integers(-60, 60, (75, 120, 3))
    return np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(75, 120), (98, 154), (42, 70), (75, 64), (200, 120)])
def test_resizing_equals_pillow(image, size, interpolation):
    code = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    reference = Image.fromarray(image).resize(size[::-1], code[interpolation])
    ours = resize_8bit(jnp.asarray(image, jnp.float32)[None], size, interpolation)[0]
    different = np.asarray(ours) != np.asarray(reference, np.float32)
    # Pillow sums in fixed point: what lies halfway between two integers may fall to either,
    # and the simple fractions of bilinear weights often lie there.
    assert different.mean() < {"bilinear": 2e-2, "bicubic": 1e-3}[interpolation]
    assert np.abs(np.asarray(ours) - np.asarray(reference, np.float32)).max() <= 1


@pytest.mark.parametrize("values", [DEPTH_ANYTHING, DPT | {"ensure_multiple_of": 32}])
@pytest.mark.parametrize("size", [(75, 120), (120, 75), (384, 640)])
def test_input_equals_that_of_transformers_processor(values, size):
    pytest.importorskip("torch")
    from transformers import DPTImageProcessorPil

    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    image = np.asarray(Image.fromarray(image[::8, ::8]).resize(size[::-1]))
    processor = DPTImageProcessorPil(**values)
    reference = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    ours = Preprocessing.from_hf(values)
    target = ours.target_size(*size)
    assert reference.shape[1:] == target
    found = jax.jit(lambda x: ours(x, target))(jnp.asarray(image)[None])[0]
    difference = np.abs(np.asarray(found).transpose(2, 0, 1) - reference)
    grey_level = 1 / 255 / 0.224
    assert difference.max() < 1.01 * grey_level and (difference > 1e-5).mean() < 1e-3


def test_bytes_go_to_one_and_minus_one():
    image = jnp.asarray([[[[0, 255, 51]]]], jnp.uint8)
    np.testing.assert_allclose(Preprocessing()(image, (1, 1)), [[[[-1.0, 1.0, -0.6]]]], atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resample": 1}, "resample is 1"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"do_pad": True}, "do_pad is True"),
    ],
)
def test_other_processors_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_hf(values)
