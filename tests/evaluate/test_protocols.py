"""Every protocol against numbers of the public code itself, and against plain numpy.

`protocol_numbers.json` holds what the peers' own functions made of `protocol_inputs.py`
(`record_protocols.py` says how); numpy checks what they do not have: more scalings, batches and
hosts.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import protocol_inputs
import protocol_reference
import pytest
from jax.sharding import AxisType
from tiny_run import tiny_config

from fsmde_jax import config as config_lib
from fsmde_jax.config import SCALINGS, ConfigError
from fsmde_jax.data import lidar, pipeline, prepared
from fsmde_jax.data.readers import dgp
from fsmde_jax.evaluate import measure, metrics, protocols, report, scoring
from fsmde_jax.evaluate.depth_maps import Predictions
from fsmde_jax.prepare.folder import prepare
from fsmde_jax.run import sharding
from fsmde_jax.tasks import make_task

PROTOCOLS = ("ssdepth", "vfdepth", "packnet")  # surrounddepth is ssdepth of mirrored predictions
NUMBERS = json.loads(
    pathlib.Path(protocol_inputs.__file__).with_name("protocol_numbers.json").read_text()
)
DATASETS = ("ddad", "nuscenes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both recordings, prepared: three scenes of three samples, so the last batch of 4 is short."""
    root = tmp_path_factory.mktemp("protocols")
    for dataset in DATASETS:
        protocol_inputs.write(dataset, root / "raw" / dataset)
        protocol_inputs.write_masks(root / "masks" / dataset, dataset)
        raw = root / "raw" / dataset
        prepare(dataset, raw, root / "data", protocol_inputs.NETWORK, num_workers=1)
    return root


@pytest.fixture
def ddad(folder):
    return config_of(folder / "data", "ddad", "24x40")


def config_of(data_dir, dataset, name):
    config = tiny_config(data_dir)
    config.data.dataset = dataset
    config.data.config_name = name
    config.data.cameras = ()
    config.data.min_depth_m = protocol_inputs.MIN_DEPTH_M
    config.data.max_depth_m = protocol_inputs.MAX_DEPTH_M[dataset]
    config.data.eval_batch_size = 3
    config.mesh.data = 1
    return config


def mesh_of(devices):
    return jax.make_mesh(
        (devices, 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )


def streamed(config, mesh, scalings, direct=None, mirrored=None):
    """Figures by scaling, of predictions in place of a model's, as an evaluation has them."""
    if direct is None:
        direct, mirrored = protocol_inputs.make_predictions()
    tables = jnp.asarray(direct), jnp.asarray(direct if mirrored is None else mirrored)

    def predict(batch):
        of_mirror = batch["flipped"][:, None, None, None] if "flipped" in batch else False
        index = jnp.maximum(batch["sample_index"], 0)
        return jnp.where(of_mirror, tables[1][index], tables[0][index])

    predictor = measure._predictor(config, make_task(config), predict)
    predictors = {scaling: predictor._replace(scaling=scaling) for scaling in scalings}
    found, _ = measure.evaluate_split(config, predictors, config.data.eval_split, mesh)
    return {
        scaling: [found[scaling]["mean"][name] for name in metrics.NAMES] for scaling in scalings
    }


def check_close(found, expected):
    assert found.keys() == expected.keys()
    for name, figures in expected.items():
        np.testing.assert_allclose(found[name], figures, rtol=1e-6, err_msg=name)


# Numbers of the public code


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("rule", lidar.RULES)
def test_truth_is_that_of_the_public_code(folder, dataset, rule):
    expected = NUMBERS["truth"][f"{dataset} {rule}"]
    source = prepared.open_split(folder / "data", dataset, "24x40", "val")
    found = []
    for index in range(len(source)):
        sample = lidar.of_rule(source[index], rule)
        for points in lidar.slices_of(sample):
            depth_m, uv = sample["lidar_depth_m"][points].astype(float), sample["lidar_uv"][points]
            found.append([len(uv), depth_m.sum(), *(depth_m @ uv)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(
    ("protocol", "mirrored"), [*((name, "") for name in protocols.PROTOCOLS), ("packnet", "asked")]
)
def test_figures_are_those_of_the_public_code(folder, dataset, protocol, mirrored):
    config = config_of(folder / "data", dataset, "24x40")
    config.evaluation.protocol = protocol
    config.evaluation.flip_average = bool(mirrored)
    config_lib.validate(config)
    if protocol == "vfdepth":
        config.evaluation.masks = str(folder / "masks" / dataset)
    median = "median_camera" if protocol == "vfdepth" else "median_image"
    found = streamed(config, mesh_of(1), ("metric", median))
    variant = " mirrored" if mirrored else ""
    expected = {
        scaling: NUMBERS["figures"][f"{dataset} {protocol} {name}{variant}"]
        for scaling, name in (("metric", "metric"), (median, "median"))
    }
    check_close(found, expected)


# Plain numpy


def dense(config, scalings, maps):
    """The reference's figures; `maps`: by sample and camera, what it made of the clouds."""
    source, _ = pipeline.open_data(config.data, config.data.eval_split)
    scene_of = np.repeat(list(source.scenes), list(source.scenes.values()))
    predictions = random_predictions(config).astype(np.float64)
    samples = [
        ((scene_of[index], index, camera), predictions[index, camera], truth)
        for index, of_sample in enumerate(maps)
        for camera, truth in enumerate(of_sample)
    ]
    limits = (config.data.min_depth_m, config.data.max_depth_m)
    reference = getattr(protocol_reference, config.evaluation.protocol)
    size = tuple(source.rig["prepared_size"])
    extra = [size] if config.evaluation.protocol == "vfdepth" else []
    return {scaling: reference(samples, scaling, *limits, *extra) for scaling in scalings}


def random_predictions(config):
    """Near the truth's range, rough, one map an image; the same wherever it is called."""
    source, cameras = pipeline.open_data(config.data, config.data.eval_split)
    rng = np.random.default_rng(3)
    shape = (len(source), len(cameras), *protocol_inputs.NETWORK)
    return np.exp(rng.normal(2.2, 0.8, shape)).astype(np.float32)


def input_maps(rule):
    return [
        [
            protocol_reference.project(
                sample.points_m,
                sample.world_from_lidar(),
                sample.world_from_camera(camera),
                protocol_inputs.INTRINSICS,
                protocol_inputs.NATIVE,
                rule,
            )
            for camera in range(2)
        ]
        for scene in protocol_inputs.make_scenes()
        for sample in scene
    ]


@pytest.mark.parametrize(
    ("protocol", "dataset"), [("ssdepth", "nuscenes"), ("vfdepth", "nuscenes"), ("packnet", "ddad")]
)
def test_streaming_equals_full_resolution_maps(folder, dataset, protocol):
    config = config_of(folder / "data", dataset, "24x40")
    config.evaluation.protocol = protocol
    config.data.max_depth_m = 60.0  # so that some truth lies beyond
    rule = protocols.PROTOCOLS[protocol].lidar_rule if dataset == "nuscenes" else "dgp"
    found = streamed(config, mesh_of(1), SCALINGS, random_predictions(config))
    check_close(found, dense(config, SCALINGS, input_maps(rule)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_and_devices_change_nothing(ddad, protocol):
    ddad.evaluation.protocol = protocol
    found = []
    for batch_size, devices in ((1, 1), (5, 1), (6, 3), (8, 8)):
        ddad.data.eval_batch_size = batch_size
        found.append(streamed(ddad, mesh_of(devices), ["median_camera"]))
    for other in found[1:]:
        check_close(other, found[0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_real_samples(shared_dir, tmp_path_factory, protocol):
    root = tmp_path_factory.getbasetemp() / "real_protocols"
    if not root.exists():
        prepare("ddad", shared_dir / "real" / "dgp", root, (96, 160))
    config = config_of(root, "ddad", "96x160")
    config.data.eval_batch_size = 2
    config.evaluation.protocol = protocol
    if protocol == "vfdepth":
        with pytest.raises(ConfigError, match=r"has 3 samples in split 'val'.*a batch of 4"):
            streamed(config, mesh_of(1), ["metric"], random_predictions(config))
        return
    _, cameras = pipeline.open_data(config.data, "val")
    maps = []
    for path in dgp.scene_paths(dgp.find(shared_dir / "real" / "dgp"), "val").values():
        scene = dgp.Scene(path)
        for sample in map(scene.sample, range(len(scene))):
            points_m = dgp.read_points(sample.lidar)
            of_name = {
                camera.name: protocol_reference.project(
                    points_m,
                    sample.lidar.world_from_lidar,
                    camera.world_from_camera,
                    camera.intrinsics,
                    camera.size,
                    "dgp",
                )
                for camera in sample.cameras
            }
            maps.append([of_name[name] for name in cameras])
    scalings = ("metric", "median_image")
    found = streamed(config, mesh_of(1), scalings, random_predictions(config))
    check_close(found, dense(config, scalings, maps))


def test_uneven_hosts_find_the_same(ddad, tmp_path):
    """Two processes, one device each, over nine samples."""
    ddad.evaluation.protocol = "vfdepth"
    alone = streamed(ddad, mesh_of(1), ["median_camera"])
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "FSMDE_DATA": ddad.data.data_dir,
        "FSMDE_OUT": str(tmp_path),
        "FSMDE_PORT": str(_free_port()),
        "PYTHONPATH": os.pathsep.join([*sys.path]),
    }
    hosts = [
        subprocess.Popen([sys.executable, __file__, str(number)], env=environment)
        for number in (0, 1)
    ]
    assert [host.wait(timeout=240) for host in hosts] == [0, 0]
    for number in (0, 1):
        check_close(json.loads((tmp_path / f"{number}.json").read_text()), alone)


# What a protocol is not


def test_a_short_last_batch_is_left_out_and_said(ddad):
    ddad.evaluation.protocol = "vfdepth"
    predictor = scoring.Predictor(lambda batch: jnp.full((3, 2, 4, 4), 10.0))
    found, _ = measure.evaluate_split(ddad, {"ten": predictor}, "val", mesh_of(1))
    assert found["ten"]["covered"] == {"images": 16, "of": 18}
    assert sum(found["ten"]["images"].values()) == 4  # two batches of two cameras
    found["ten"]["scaling"] = "metric"
    assert "8 of 9 samples (whole batches of 4)" in report.about(ddad, found)["text"]


def test_a_split_shorter_than_a_batch_is_refused_by_name(ddad):
    ddad.evaluation.protocol = "vfdepth"
    predictor = scoring.Predictor(lambda batch: jnp.full((3, 2, 4, 4), 10.0))
    with pytest.raises(ConfigError, match=r"1 samples in split 'train'.*batch of 4.*'vfdepth'"):
        measure.evaluate_split(ddad, {"ten": predictor}, "train", mesh_of(1))


def test_everything_that_changes_a_figure_is_among_the_settings(folder, ddad):
    found = {"m": {"scenes": {}, "covered": {"images": 1, "of": 1}, "scaling": "median_image"}}

    def settings(**changes):
        config = config_of(folder / "data", changes.pop("dataset", "ddad"), "24x40")
        config.evaluation.update(changes)
        return report.about(config, found)["settings"]

    plain = settings()
    assert plain["protocol"] == "ssdepth" and plain["mirroring"] == "none"
    assert plain["scaling"] == "median_image" and plain["lidar_rule"] == "dgp"
    assert (plain["min_depth_m"], plain["max_depth_m"]) == (0.1, 200.0)
    assert settings(protocol="surrounddepth")["mirroring"] == "ramps"
    packnet = settings(protocol="packnet")
    assert packnet["min_depth_m"] == 0.0
    assert packnet | {"mirroring": "ramps"} == settings(protocol="packnet", flip_average=True)
    vfdepth = settings(protocol="vfdepth", masks="DIR", dataset="nuscenes")
    assert vfdepth["lidar_rule"] == "vfdepth" and vfdepth["short_batch"] == "left out"
    assert vfdepth["mask_rule"] == "network size, above 0"
    assert settings(masks="DIR")["mask_rule"] == "own size, above 127"
    assert settings(dataset="nuscenes")["lidar_rule"] == "surrounddepth"


@pytest.mark.parametrize(
    ("protocol", "flip_average", "text"),
    [
        ("surrounddepth", False, "'surrounddepth' averages.*--protocol=ssdepth"),
        ("packnet", True, "'packnet' averages.*no --flip_average"),
    ],
)
def test_depth_maps_from_files_are_never_called_mirrored(
    ddad, tmp_path, protocol, flip_average, text
):
    np.save(tmp_path / "map.npy", np.ones((4, 4)))
    ddad.evaluation.update({"protocol": protocol, "flip_average": flip_average})
    with pytest.raises(ConfigError, match=text):
        measure.evaluate_predictions(ddad, Predictions(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("protocol", ["ssdepth", "vfdepth"])
def test_protocols_without_mirror_images_refuse_them(ddad, protocol):
    ddad.evaluation.update({"protocol": protocol, "flip_average": True})
    with pytest.raises(ConfigError, match=f"flip_average is true, but protocol '{protocol}'"):
        config_lib.validate(ddad)


def test_each_camera_is_mirrored_where_it_is(ddad):
    """The mirrored batch has each image and its principal point the other way round."""
    image = np.random.default_rng(0).integers(0, 255, (1, 2, 3, 5, 3), np.uint8)
    intrinsics = np.broadcast_to([[9.0, 0.5, 1.25], [0, 9, 1], [0, 0, 1]], (1, 2, 3, 3))
    batch = {"image": image, "intrinsics": intrinsics, "sample_index": np.array([4])}
    seen = []

    def predict(batch):
        seen.append(jax.device_get(batch))
        return jnp.ones((1, 2, 3, 5))

    protocols.mirror_averaged(predict, inverse=False)(jax.tree.map(jnp.asarray, batch))
    direct, mirrored = seen
    np.testing.assert_array_equal(direct["image"], image)
    np.testing.assert_array_equal(mirrored["image"], image[:, :, :, ::-1])
    expected = [[9.0, -0.5, 3.75], [0, 9, 1], [0, 0, 1]]
    np.testing.assert_array_equal(mirrored["intrinsics"], [[expected] * 2])
    assert mirrored["sample_index"] == 4 and mirrored["flipped"].all()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _host(number: int) -> None:
    """One of the two processes of the test above."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"localhost:{os.environ['FSMDE_PORT']}"
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    config = config_of(pathlib.Path(os.environ["FSMDE_DATA"]), "ddad", "24x40")
    config.data.eval_batch_size = 2
    config.mesh.data = -1
    config.evaluation.protocol = "vfdepth"
    found = streamed(config, sharding.make_mesh(config.mesh), ["median_camera"])
    (pathlib.Path(os.environ["FSMDE_OUT"]) / f"{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _host(int(sys.argv[1]))
