"""Every protocol, streamed over batches and hosts, against plain numpy on full-resolution maps."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import protocol_reference
import pytest
from jax.sharding import AxisType
from tiny_run import tiny_config

from fsmde_jax import evaluate, metrics, prepare, scoring, sharding
from fsmde_jax.data import pipeline
from fsmde_jax.data.world import WorldConfig, write_world

SIZE = (24, 40)  # of the predictions, other than that of the prepared images
PROTOCOLS = ("surrounddepth", "vfdepth", "packnet")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three unseen scenes of three samples: pools of four cross scenes, the last is short."""
    root = tmp_path_factory.mktemp("protocols")
    small = WorldConfig(
        train_scenes=1, val_scenes=3, samples_per_scene=3, sample_stride=20, height=48, width=80
    )
    write_world(small, root / "raw", progress=False)
    prepare.prepare("world", root / "raw", root / "data", (32, 48))
    return config_of(root / "data", "world", "32x48")


def config_of(data_dir, dataset, name):
    config = tiny_config(data_dir)
    config.data.dataset = dataset
    config.data.config_name = name
    config.data.max_depth_m = 60.0  # so that some truth lies beyond
    config.data.eval_batch_size = 3
    config.mesh.data = 1
    return config


def random_predictions(config):
    """Near the truth's range, rough, one map an image; the same wherever it is called."""
    source, cameras = pipeline.open_data(config.data, config.data.eval_split)
    rng = np.random.default_rng(3)
    shape = (len(source), len(cameras), *SIZE)
    return np.exp(rng.normal(2.2, 0.8, shape)).astype(np.float32)


def mesh_of(devices):
    return jax.make_mesh(
        (devices, 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )


def streamed(config, predictions, mesh):
    table = jnp.asarray(predictions)

    def predict(batch):
        return table[jnp.maximum(batch["sample_index"], 0)]

    predictor = scoring.Predictor(predict, config.evaluation.scaling)
    found = evaluate.evaluate_split(config, {"p": predictor}, config.data.eval_split, mesh)["p"]
    return np.array([found["mean"][name] for name in metrics.NAMES])


def dense(config, predictions):
    source, cameras = pipeline.open_data(config.data, config.data.eval_split)
    samples = []
    for index in range(len(source)):
        sample = source[index]
        ends = np.cumsum(sample["lidar_counts"])
        for i, camera in enumerate(sample["camera_names"]):
            points = slice(ends[i] - sample["lidar_counts"][i], ends[i])
            truth = protocol_reference.dense_truth(
                sample["lidar_uv"][points],
                sample["lidar_depth_m"][points],
                sample["native_sizes"][i],
            )
            prediction = predictions[index, cameras.index(camera)].astype(np.float64)
            samples.append(((sample["scene_id"], index, camera), prediction, truth))
    limits = (config.data.min_depth_m, config.data.max_depth_m)
    reference = getattr(protocol_reference, config.evaluation.protocol)
    extra = [tuple(source.rig["prepared_size"])] if reference.__name__ == "vfdepth" else []
    return reference(samples, config.evaluation.scaling, *limits, *extra)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("scaling", metrics.SCALINGS)
def test_streaming_equals_full_resolution_maps(world, protocol, scaling):
    world.evaluation.protocol, world.evaluation.scaling = protocol, scaling
    predictions = random_predictions(world)
    found = streamed(world, predictions, mesh_of(1))
    np.testing.assert_allclose(found, dense(world, predictions), rtol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_and_devices_change_nothing(world, protocol):
    world.evaluation.protocol, world.evaluation.scaling = protocol, "median_camera"
    predictions = random_predictions(world)
    found = []
    for batch_size, devices in ((1, 1), (5, 1), (6, 3), (8, 8)):
        world.data.eval_batch_size = batch_size
        found.append(streamed(world, predictions, mesh_of(devices)))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("scaling", ["metric", "median_image"])
def test_real_samples(shared_dir, tmp_path_factory, protocol, scaling):
    root = tmp_path_factory.getbasetemp() / "real_protocols"
    if not root.exists():
        prepare.prepare("ddad", shared_dir / "real" / "dgp", root, (96, 160))
    config = config_of(root, "ddad", "96x160")
    config.data.max_depth_m = 200.0
    config.data.eval_batch_size = 2
    config.evaluation.protocol, config.evaluation.scaling = protocol, scaling
    predictions = random_predictions(config)
    found = streamed(config, predictions, mesh_of(1))
    np.testing.assert_allclose(found, dense(config, predictions), rtol=1e-6)


def test_uneven_hosts_find_the_same(world, tmp_path):
    """Two processes, one device each, over nine samples."""
    world.evaluation.protocol, world.evaluation.scaling = "vfdepth", "median_camera"
    alone = streamed(world, random_predictions(world), mesh_of(1))
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "FSMDE_DATA": world.data.data_dir,
        "FSMDE_OUT": str(tmp_path),
        "FSMDE_PORT": str(_free_port()),
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path]),
    }
    hosts = [
        subprocess.Popen([sys.executable, __file__, str(number)], env=environment)
        for number in (0, 1)
    ]
    assert [host.wait(timeout=240) for host in hosts] == [0, 0]
    for number in (0, 1):
        found = json.loads((tmp_path / f"{number}.json").read_text())
        np.testing.assert_allclose(found, alone, rtol=1e-6)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _host(number: int) -> None:
    """One of the two processes of the test above."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"localhost:{os.environ['FSMDE_PORT']}"
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    config = config_of(pathlib.Path(os.environ["FSMDE_DATA"]), "world", "32x48")
    config.data.eval_batch_size = 2
    config.mesh.data = -1
    config.evaluation.protocol, config.evaluation.scaling = "vfdepth", "median_camera"
    predictions = random_predictions(config)
    found = streamed(config, predictions, sharding.make_mesh(config.mesh))
    (pathlib.Path(os.environ["FSMDE_OUT"]) / f"{number}.json").write_text(json.dumps(list(found)))


if __name__ == "__main__":
    _host(int(sys.argv[1]))
