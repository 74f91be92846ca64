import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2
from tiny_run import prepare_recording, tiny_config

from fsmde_jax import (
    checkpoints,
    evaluate,
    scoring,
    sharding,
    state,
    tasks,
    train,
    trivial,
    visualize,
)
from fsmde_jax.data import pipeline, prepared


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_recording(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def config(data_dir):
    return tiny_config(data_dir)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """An uninterrupted run, evaluated once on its way."""
    workdir = tmp_path_factory.mktemp("finished")
    config = config.copy_and_resolve_references()
    config.train.eval_every = 4
    assert train.train(config, workdir) is None
    return workdir


def read_metrics(workdir, kind="train"):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_nothing_reaches_the_teacher_and_it_is_in_no_checkpoint(config, finished):
    _, teacher, _ = state.place_model(
        config, state.Model(tasks.make_task(config), config.seed), sharding.make_mesh(config.mesh)
    )
    saved = sum(f.stat().st_size for f in (finished / "checkpoints").rglob("*") if f.is_file())
    teacher_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(teacher))
    names = {p.name for p in (finished / "checkpoints" / "6").iterdir()}
    assert names >= {"params", "batch_stats", "optimizer", "iterator", "identity"}
    assert not any("teacher" in name for name in names)
    assert teacher_bytes > 0 and saved > 0


def test_metrics_hold_loss_terms_and_norms(finished):
    records = read_metrics(finished)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    keys = {"loss", "silog", "ckd_divergence", "ckd_crossing", "vrkd"}
    keys |= {"grad_norm", "param_norm", "update_norm", "learning_rate"}
    assert keys <= set(records[0])
    assert {"images_per_second", "eta_s"} <= set(read_metrics(finished, "speed")[0])
    assert list(finished.glob("events.*"))
    assert json.loads((finished / "config.json").read_text())["name"] == "tiny"


def test_an_evaluation_in_training_shows_the_first_ring(config, finished):
    assert [record["step"] for record in read_metrics(finished, "eval")] == [4]
    (picture,) = [
        np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        for event in read_events(next(finished.glob("events.*")))
        for value in event.summary.value
        if (value.tag, event.step) == ("eval/ring", 4)
    ]
    batches = pipeline.eval_batches(
        config.data, "val", sharding.batch_sharding(sharding.make_mesh(config.mesh))
    )
    first = {name: np.asarray(array)[0] for name, array in next(batches).items()}
    flat = visualize.ring_views({**first, "depth_m": np.ones((6, 4, 8))}, 80.0)
    assert picture.shape == flat.shape == (320, 1920, 3)  # five times as large as prepared
    np.testing.assert_array_equal(picture[:160], flat[:160])
    assert picture[160:].std() > 0


def read_events(path):
    """TensorBoard's file: records of a length (8 bytes), 4 bytes, the event, 4 bytes."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        yield event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length


def test_muon_turns_kernels_by_orthogonal_matrices_as_large_as_adamws_updates(config):
    config = config.copy_and_resolve_references()
    config.optimizer.update({"name": "muon", "warmup_fraction": 0.0, "weight_decay": 0.0})
    optimizer = train.make_optimizer(config)
    values = np.random.default_rng(0).standard_normal
    kernel = values((3, 3, 4, 8)) * np.geomspace(1, 10, 8)
    grads = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(values(8))}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    stretches = np.linalg.svd(updates["kernel"].reshape(36, 8), compute_uv=False)
    assert stretches.max() / stretches.min() < 2.0  # of the gradient itself: more than ten
    rate = config.optimizer.learning_rate
    assert np.std(updates["kernel"]) == pytest.approx(0.2 * rate, rel=0.3)
    np.testing.assert_allclose(np.abs(updates["bias"]), rate, rtol=0.5)  # Nesterov's first step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    optimizer, config, finished, tmp_path, monkeypatch
):
    """Dies without saving after step 5; the checkpoint of step 4 goes on."""
    if optimizer != config.optimizer.name:
        config = config.copy_and_resolve_references()
        config.optimizer.name, finished = optimizer, tmp_path / "finished"
        assert train.train(config, finished) is None

    class Killed(Exception):
        pass

    original = train.Timer.tick

    def tick(self, step):
        if step == 5:
            raise Killed
        original(self, step)

    monkeypatch.setattr(train.Timer, "tick", tick)
    with pytest.raises(Killed):
        train.train(config, tmp_path / "run")
    monkeypatch.undo()
    assert train.train(config, tmp_path / "run") is None
    assert read_metrics(tmp_path / "run") == read_metrics(finished)
    expected, found = (
        checkpoints.load_params(
            folder, state.Model(tasks.make_task(config), config.seed).params, {"task": "student"}
        )
        for folder in (finished, tmp_path / "run")
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "6" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    assert train.train(config, tmp_path / "run") is None
    assert read_metrics(tmp_path / "run") == read_metrics(finished)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.student.update(canonical_focal_px=50.0), r"student is .*60\.0.*50\.0"),
        (lambda c: c.teacher.update(binning="soft"), r"dpt_tiny/head .*dpt_tiny/soft "),
    ],
)
def test_a_checkpoint_of_another_model_or_teacher_is_refused(config, finished, change, message):
    other = config.copy_and_resolve_references()
    change(other)
    with pytest.raises(checkpoints.CheckpointError, match=message):
        train.train(other, finished)


def test_a_loss_that_is_not_finite_stops_with_the_sample_ids(config, tmp_path, monkeypatch):
    original = pipeline.put_on_devices

    def poisoned(batch, sharding):
        if 3 in batch["sample_index"].tolist():
            batch = {**batch, "lidar_depth_m": np.full_like(batch["lidar_depth_m"], np.inf)}
        return original(batch, sharding)

    monkeypatch.setattr(pipeline, "put_on_devices", poisoned)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(FloatingPointError, match=r"step 1: loss .*000001/00000.*not_finite"):
        train.train(config, tmp_path)
    assert signal.getsignal(signal.SIGINT) == before  # Ctrl-C means what it did
    assert (tmp_path / "not_finite" / "checkpoints" / "0").is_dir()


def test_evaluation_reads_the_checkpoint_and_writes_the_report(config, finished, monkeypatch):
    """Also: each picture of the split is decoded once, and none for the trivial predictor."""
    decoded, decode = [], prepared.decode_images

    def counted(encoded):
        decoded.append(len(encoded))
        return decode(encoded)

    monkeypatch.setattr(prepared, "decode_images", counted)
    trivial._of_split.cache_clear()
    results = evaluate.evaluate_run(config, finished)
    assert decoded == [6, 6, 6]  # three samples of six cameras
    assert list(results) == ["student", "trivial", "teacher"]
    assert json.loads((finished / "report" / "results.json").read_text())["methods"] == results
    assert set(results["student"]["cameras"]) == set(config.data.cameras)
    text = (finished / "report" / "results.md").read_text()
    assert "| trivial |" in text and "| CAMERA_09 |" in text
    assert len(list((finished / "report").glob("*.png"))) == 1


def test_evaluation_counts_padding_for_nothing(config, finished):
    """Three validation samples in a batch of eight."""
    predictor = scoring.Predictor(lambda batch: jnp.full((8, 6, 4, 4), 10.0))
    mesh = sharding.make_mesh(config.mesh)
    result = evaluate.evaluate_split(config, {"ten": predictor}, "val", mesh)[0]["ten"]
    source, cameras = pipeline.open_data(config.data, "val")
    errors = {name: [] for name in cameras}
    for sample in (source[i] for i in range(len(source))):
        ends = np.cumsum(sample["lidar_counts"])
        for i, name in enumerate(sample["camera_names"]):
            truth = sample["lidar_depth_m"][ends[i] - sample["lidar_counts"][i] : ends[i]]
            truth = truth[(truth > 0.1) & (truth < 200)]
            errors[name].append(np.mean(np.abs(10 - truth) / truth))
    for name in cameras:
        assert result["cameras"][name]["abs_rel"] == pytest.approx(np.mean(errors[name]), rel=1e-5)


def test_trivial_predictor_is_the_median_of_the_training_lidar(config):
    source, cameras = pipeline.open_data(config.data, "train")
    depth = trivial.trivial_depth(config, cameras)
    rows, columns = trivial.GRID
    cells = {}
    for sample in (source[i] for i in range(len(source))):
        ends = np.cumsum(sample["lidar_counts"])
        i = sample["camera_names"].index("CAMERA_09")
        for p in range(ends[i] - sample["lidar_counts"][i], ends[i]):
            u, v = sample["lidar_uv"][p]
            cell = (int((v + 0.5) * rows / 30), int((u + 0.5) * columns / 48))
            cells.setdefault(cell, []).append(sample["lidar_depth_m"][p])
    camera = cameras.index("CAMERA_09")
    for cell, values in cells.items():
        lower = sorted(values)[(len(values) - 1) // 2]
        assert depth[camera][cell] == pytest.approx(lower, rel=0.04)
    assert (depth > 0).all()


def test_terminate_saves_and_the_same_command_goes_on(data_dir, tmp_path):
    """The real process: SIGTERM, exit code 143, then on to the end."""
    script = tmp_path / "config.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from tiny_run import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(data_dir)!r})\n"
        "    config.train.steps = 400\n"
        "    config.train.checkpoint_every = 1000\n"
        "    config.data.batch_size = 1\n"
        "    config.data.eval_batch_size = 1\n"
        "    return config\n"
    )
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "fsmde_jax.main", f"--config={script}", f"--workdir={workdir}"]
    one_device = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = {**os.environ, "XLA_FLAGS": one_device}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (workdir / "metrics.jsonl").exists():
        time.sleep(0.2)
    while time.monotonic() < deadline and not read_metrics(workdir):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    saved = checkpoints.latest_step(workdir)
    assert saved and saved < 400
    resumed = subprocess.run(
        [*command, f"--config.train.steps={saved + 2}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert read_metrics(workdir)[-1]["step"] == saved + 2
    assert "| student |" in resumed.stdout


def test_a_trained_student_predicts_metres_without_teacher_and_data(config, finished):
    student = state.load_student(config, finished)
    image = np.zeros((1, 2, 32, 64, 3), np.uint8)
    intrinsics = np.tile(np.diag([60.0, 60.0, 1.0]), (1, 2, 1, 1)).astype(np.float32)
    depth_m = student(jnp.asarray(image), jnp.asarray(intrinsics), jnp.ones((1, 2), bool)).depth_m
    assert depth_m.shape == (1, 2, 32, 64)
    assert (depth_m > 0.1).all() and (depth_m < 200).all()


def test_a_soft_teacher_needs_no_head(config, tmp_path):
    soft = config.copy_and_resolve_references()
    soft.teacher.binning, soft.train.steps = "soft", 2
    assert train.train(soft, tmp_path) is None
    records = read_metrics(tmp_path)
    assert len(records) == 2
    for record in records:
        assert all(np.isfinite(value) for name, value in record.items() if name != "kind")
        assert record["ckd_divergence"] > 0 and record["ckd_crossing"] > 0 and record["vrkd"] > 0
