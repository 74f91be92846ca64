"""The shipped teacher's architecture: no pixel is lost, and a checkpoint comes back whole."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fsmde_jax.models.foundation import mini
from fsmde_jax.models.weights import load, save
from fsmde_jax.models.weights.files import WeightsError
from fsmde_jax.models.weights.hub_config import default_preprocessing, foundation_config, to_json

SMALL = mini.MiniConfig((16, 24), (8, 16, 16), (1, 2), (16, 8))


@pytest.fixture(scope="module")
def model():
    return SMALL.build(rngs=nnx.Rngs(0))


def image(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def test_blocks_of_pixels_come_back_in_their_places():
    pixels = image(2, 4, 6, 3)
    blocks = mini._into_blocks(pixels)
    np.testing.assert_array_equal(blocks[0, 1, 2].reshape(2, 2, 3), pixels[0, 2:4, 4:6])
    np.testing.assert_array_equal(mini._out_of_blocks(blocks), pixels)


def test_a_prediction_for_every_pixel_and_features_at_half_the_size(model):
    out = model(image(2, 16, 40, 3))
    assert out.prediction.shape == (2, 16, 40)
    assert float(out.prediction.min()) > 0
    assert out.features.shape == (2, 8, 20, SMALL.feature_channels)
    assert out.tokens.shape == (2, 2, 5, 16)


def test_every_pixel_of_a_block_has_an_output_of_its_own(model):
    slope = jax.jacobian(lambda x: model(x).prediction[0, 4:6, 4:6].ravel())(image(1, 16, 16, 3))
    of_block = slope[:, 0, 4:6, 4:6].reshape(4, -1)
    assert np.linalg.matrix_rank(np.asarray(of_block), tol=1e-3 * np.abs(of_block).max()) == 4


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="decoder_channels must be one less"):
        mini.MiniConfig(encoder_channels=(8, 16), encoder_blocks=(1,), decoder_channels=(16, 8))
    with pytest.raises(ValueError, match="encoder_blocks must be one less"):
        mini.MiniConfig(encoder_channels=(8, 16), encoder_blocks=(1, 1), decoder_channels=(8,))


def test_its_config_is_read_back():
    assert foundation_config(json.loads(json.dumps(to_json(SMALL)))) == SMALL


def test_a_checkpoint_comes_back_whole_and_a_missing_key_is_named(model, tmp_path):
    state = nnx.state(model, nnx.Param)
    save.save_foundation(tmp_path, SMALL, default_preprocessing(SMALL), state)
    config, preprocessing = load.read_foundation_config(tmp_path)
    assert (config, preprocessing) == (SMALL, default_preprocessing(SMALL))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: place, state)
    loaded = load.load_foundation(tmp_path, config, state, shardings)
    jax.tree.map(np.testing.assert_array_equal, loaded, state)

    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["stem.conv.kernel"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.sha256").unlink()
    with pytest.raises(WeightsError, match=r"stem\.conv\.kernel: no key fills it"):
        load.load_foundation(tmp_path, config, state, shardings)
