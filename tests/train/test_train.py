import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx
from jax.sharding import AxisType
from PIL import Image
from tensorboardX.proto import event_pb2
from tiny_run import prepare_recording, read_metrics, tiny_config

from fsmde_jax import cli, files
from fsmde_jax import config as config_lib
from fsmde_jax.data import pipeline, prepared
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import measure, references, scoring
from fsmde_jax.models.foundation.vit import ViT, ViTConfig
from fsmde_jax.models.layers.conv_norm import ConvNorm
from fsmde_jax.pictures import ring
from fsmde_jax.run import checkpoints, fork, identity, sharding, state
from fsmde_jax.run.load import load_student, load_trained, place_model
from fsmde_jax.tasks import make_task
from fsmde_jax.train import loop
from fsmde_jax.train.log import MetricsWriter, Timer
from fsmde_jax.train.step import make_optimizer


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
    assert loop.train(config, workdir) is None
    return workdir


def test_nothing_reaches_the_teacher_and_it_is_in_no_checkpoint(config, finished):
    _, teacher, _ = place_model(
        config, state.Model(make_task(config), config.seed), sharding.make_mesh(config.mesh)
    )
    saved = sum(f.stat().st_size for f in (finished / "checkpoints").rglob("*") if f.is_file())
    teacher_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(teacher))
    names = {p.name for p in (finished / "checkpoints" / "6").iterdir()}
    assert names >= {"params", "batch_stats", "optimizer", "identity", "checksums.json"}
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
    flat = ring.ring_views({**first, "depth_m": np.ones((6, 4, 8))}, 80.0)
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
    optimizer = make_optimizer(config)
    values = np.random.default_rng(0).standard_normal
    kernel = values((3, 3, 4, 8)) * np.geomspace(1, 10, 8)
    grads = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(values(8))}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    stretches = np.linalg.svd(updates["kernel"].reshape(36, 8), compute_uv=False)
    assert stretches.max() / stretches.min() < 2.0  # of the gradient itself: more than ten
    rate = config.optimizer.learning_rate
    assert np.std(updates["kernel"]) == pytest.approx(0.2 * rate, rel=0.3)
    np.testing.assert_allclose(np.abs(updates["bias"]), rate, rtol=0.5)  # Nesterov's first step


class Parts(nnx.Module):
    """What networks of this package are made of."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.plain = ConvNorm(4, 8, kernel=3, rngs=rngs)
        self.depthwise = ConvNorm(8, 8, kernel=3, depthwise=True, rngs=rngs)
        config = ViTConfig((32, 32), hidden_size=8, num_layers=1, num_heads=2, layer_scale=True)
        self.vit = ViT(config, rngs=rngs)
        self.linear = nnx.Linear(4, 8, rngs=rngs)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_embeddings_depthwise_kernels_and_norms_neither_decay_nor_turn_by_muon(config, name):
    config = config.copy_and_resolve_references()
    config.optimizer.update({"name": name, "warmup_fraction": 0.0, "weight_decay": 0.1})
    optimizer = make_optimizer(config)
    shapes = nnx.state(nnx.eval_shape(Parts), nnx.Param)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, opt_state = optimizer.update(zeros, optimizer.init(params), params)
    moved = {
        ".".join(map(str, path)) for path, leaf in nnx.to_flat_state(updates) if jnp.any(leaf[...])
    }
    inner = {f"attention.{part}" for part in ("query", "key", "value", "output")}
    inner = {f"vit.blocks.0.{part}.kernel" for part in inner | {"mlp_in", "mlp_out"}}
    matrices = inner | {"plain.conv.kernel", "linear.kernel", "vit.patch_embedding.kernel"}
    assert moved == matrices
    if name == "muon":
        by_muon = opt_state[1].inner_states["muon"].inner_state[0].mu
        assert len(jax.tree.leaves(by_muon)) == len(matrices)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    optimizer, config, finished, tmp_path, monkeypatch
):
    """Dies without saving after step 5; the checkpoint of step 4 goes on."""
    if optimizer != config.optimizer.name:
        config = config.copy_and_resolve_references()
        config.optimizer.name, finished = optimizer, tmp_path / "finished"
        config.data.batch_size = 1
        axes = {"axis_names": ("data", "fsdp"), "axis_types": (AxisType.Auto,) * 2}
        one = jax.make_mesh((1, 1), devices=jax.devices()[:1], **axes)
        monkeypatch.setattr(sharding, "make_mesh", lambda _: one)  # eight would take a minute
        assert loop.train(config, finished) is None

    class Killed(Exception):
        pass

    original = Timer.tick

    def tick(self, step):
        if step == 5:
            raise Killed
        original(self, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Timer, "tick", tick)
        loop.train(config, tmp_path / "run")
    assert loop.train(config, tmp_path / "run") is None
    assert read_metrics(tmp_path / "run") == read_metrics(finished)
    expected, found = (
        checkpoints.load_params(
            folder, state.Model(make_task(config), config.seed).params, {"task": "student"}
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
    assert loop.train(config, tmp_path / "run") is None
    assert read_metrics(tmp_path / "run") == read_metrics(finished)


def content(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer.name": "muon"},
            r"optimizer\.name is 'adamw' there, 'muon' in the config.*--fork=NEW_WORKDIR",
        ),
        (
            {"optimizer.learning_rate": 0.1, "data.batch_size": 16, "train.steps": 99},
            r"config: data\.batch_size is 8 there, 16 in the config; optimizer\.learning_rate is "
            r"0\.0003 there, 0\.1 in the config\. ",
        ),
        ({"optimizer.ema_decay": 0.9}, r"optimizer\.ema_decay is 0\.0 there, 0\.9"),
        ({"objective.vrkd": 0.0}, r"objective\.vrkd is 1\.0 there, 0\.0"),
        ({"student.canonical_focal_px": 50.0}, r"canonical_focal_px is 60\.0 there, 50\.0"),
        ({"data.data_dir": "nowhere"}, "nowhere"),
        ({"train.steps": 4}, r"config\.train\.steps=4, but .* is at step 6"),
    ],
)
def test_a_refused_start_leaves_the_run_as_it_was(config, finished, changes, message):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(changes)
    before = content(finished)
    with pytest.raises(UserError, match=message):
        loop.train(other, finished)
    assert content(finished) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student.canonical_focal_px": 50.0}, r"student is .*60\.0.*50\.0"),
        ({"teacher.binning": "soft"}, r"dpt_tiny/head .*dpt_tiny/soft "),
    ],
)
def test_without_its_config_a_checkpoint_says_what_it_is_of(
    config, finished, tmp_path, changes, message
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "config.json").unlink()
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(changes)
    before = content(workdir)
    with pytest.raises(checkpoints.CheckpointError, match=message):
        loop.train(other, workdir)
    assert content(workdir) == before


def test_a_checkpoint_says_with_which_data_and_optimizer_it_was_trained(config, finished):
    other = config.copy_and_resolve_references()
    other.optimizer.name, other.optimizer.ema_decay = "muon", 0.5
    saved = json.loads((finished / "checkpoints" / "6" / "identity" / "metadata").read_text())
    source = pipeline.open_data(config.data, "val")[0]
    wanted = loop._identity(other, saved["teacher"], source)
    message = (
        r"optimizer is 'adamw' in the checkpoint, 'muon' in the config; ema is False .*, True .*; "
        r"data is '6 samples of 2 scenes \(\w+\)' in the checkpoint, '3 samples of 1 scenes"
    )
    with pytest.raises(checkpoints.CheckpointError, match=message):
        checkpoints.Checkpoints(finished, 2, wanted).restore({})


def test_two_trainings_in_one_folder_are_refused(config, finished):
    before = content(finished)
    with files.locked(finished / loop.LOCK, "training", remove=True):
        locked = content(finished)
        with pytest.raises(UserError, match=rf"lock: process {os.getpid()} on \S+ is training"):
            loop.train(config, finished)
        assert content(finished) == locked
    assert content(finished) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"teacher": 1}', "[" * 100_000, "not JSON"])
def test_a_damaged_config_is_one_line_and_stays(text, config, finished, tmp_path):
    """So is a user's own config.json in what is named as --workdir."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "config.json").write_text(text)
    for start in (lambda: loop.train(config, workdir), lambda: config_lib.load_config(workdir)):
        with pytest.raises(UserError, match=r"run/config\.json") as caught:
            start()
        assert len(str(caught.value).splitlines()) == 1
    assert (workdir / "config.json").read_text() == text


def test_a_refused_first_start_leaves_no_folder(config, tmp_path):
    other = config.copy_and_resolve_references()
    other.data.data_dir = "nowhere"
    with pytest.raises(UserError, match="nowhere"):
        loop.train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_are_rewritten_whole_and_what_cannot_be_read_is_kept(tmp_path, caplog):
    lines = ['{"step": 1}', '{"step": 2}', '{"stop": 3}', '{"step": 4}', '{"st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    writer = MetricsWriter(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == "\n".join(lines)
    assert "1 lines of" in caplog.text
    writer.write(4, "train", {"loss": 0.5})
    writer.show(4, "ring", np.zeros((2, 3, 3), np.uint8))
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text().endswith('"kind": "train", "loss": 0.5}\n')
    (events,) = tmp_path.glob("events.*")
    assert b"train/loss" in events.read_bytes() and b"ring" in events.read_bytes()
    (tmp_path / "metrics.jsonl").unlink()
    MetricsWriter(tmp_path, 3).close()
    assert "the lines before step 3 are lost" in caplog.text


def test_metrics_of_a_run_that_begins_anew_are_kept(tmp_path):
    """Its checkpoints are gone, or the file is the user's own."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    MetricsWriter(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "metrics.jsonl.earlier").read_text() == '{"step": 1}\n'


def test_a_full_disk_ends_events_with_an_error_and_not_in_silence(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SystemExit, match="file is larger"), cli.errors_as_lines():
            for step in range(100):
                writer.show(step, "ring", np.zeros((64, 64, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_batch_is_a_function_of_the_step_whatever_reads_it(config, monkeypatch):
    """From its number on as after those before it; of two processes each has its share of it."""
    alone = sharding.batch_sharding(sharding.make_mesh(config.mesh))
    monkeypatch.setattr(pipeline, "put_on_devices", lambda batch, sharding: batch)

    def batches(count, first_step=0):
        iterator = pipeline.train_batches(config.data, 3, alone, first_step=first_step)
        found = [next(iterator) for _ in range(count)]
        iterator.close()
        return found

    expected = batches(3)
    for found, one in zip(batches(2, first_step=1), expected[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, one)
    monkeypatch.setattr(pipeline.jax, "process_count", lambda: 2)
    for number in (0, 1):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda number=number: number)
        (share,) = batches(1, first_step=2)
        jax.tree.map(
            np.testing.assert_array_equal,
            share,
            jax.tree.map(lambda leaf, number=number: leaf[number::2], expected[2]),
        )


def test_a_fork_starts_from_what_a_run_measures_and_needs_it_no_more(config, finished, tmp_path):
    old = shutil.copytree(finished, tmp_path / "old")
    before, new = content(old), tmp_path / "new"
    fork.fork(old, new)
    assert content(old) == before
    shutil.rmtree(old)
    about = json.loads((new / "forked_from" / "about.json").read_text())
    assert about == {"run": str(old), "step": 6}
    other = config.copy_and_resolve_references()
    other.optimizer.update({"name": "muon", "learning_rate": 0.1, "ema_decay": 0.5})
    model = state.Model(make_task(other), other.seed)
    mesh = sharding.make_mesh(other.mesh)
    found = loop._start_weights(other, model, new, mesh)
    jax.tree.map(
        np.testing.assert_array_equal,
        found,
        load_trained(config, model, finished, {"task": "student"}),
    )
    fork.fork(old, new)  # the same command goes on
    with pytest.raises(UserError, match=r"is a fork of .*old, not of .*finished"):
        fork.fork(finished, new)
    with pytest.raises(UserError, match="is there already"):
        fork.fork(finished, finished)


def test_a_loss_that_is_not_finite_stops_with_the_sample_ids(config, tmp_path, monkeypatch):
    original = pipeline.put_on_devices

    def poisoned(batch, sharding):
        if 3 in batch["sample_index"].tolist():
            batch = {**batch, "lidar_depth_m": np.full_like(batch["lidar_depth_m"], np.inf)}
        return original(batch, sharding)

    monkeypatch.setattr(pipeline, "put_on_devices", poisoned)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(FloatingPointError, match=r"step 1: loss .*000001/00000.*not_finite"):
        loop.train(config, tmp_path)
    assert signal.getsignal(signal.SIGINT) == before  # Ctrl-C means what it did
    folder = tmp_path / "not_finite"
    found = config_lib.load_config(folder)
    assert found.data.to_dict() == config.data.to_dict()
    saved = json.loads((folder / "checkpoints" / "0" / "identity" / "metadata").read_text())
    model = state.Model(make_task(found), found.seed)
    wanted = identity.of_run(found, saved["teacher"])  # as an evaluation asks for
    assert jax.tree.leaves(load_trained(found, model, folder, wanted))
    assert load_student(found, folder)


def test_the_state_of_an_earlier_step_that_was_not_finite_is_kept(config, tmp_path):
    found = {"params": {"a": np.ones(3, np.float32)}}
    for step in (5, 9, 9):
        with pytest.raises(FloatingPointError):
            loop._check_finite(
                config,
                tmp_path,
                {"task": "student"},
                [],
                (step, np.float32(np.nan), np.float32(1), jnp.zeros(0, jnp.int32)),
                types.SimpleNamespace(items=lambda: found),
            )
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("not_finite*/checkpoints/*")}
    assert names == {"not_finite.earlier/checkpoints/4", "not_finite/checkpoints/8"}


def test_evaluation_reads_the_checkpoint_and_writes_the_report(config, finished, monkeypatch):
    """Also: each picture of the split is decoded once, and none for the trivial predictor."""
    decoded, decode = [], prepared.decode_images

    def counted(encoded):
        decoded.append(len(encoded))
        return decode(encoded)

    monkeypatch.setattr(prepared, "decode_images", counted)
    references._of_split.cache_clear()
    results = measure.evaluate_run(config, finished)
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
    result = measure.evaluate_split(config, {"ten": predictor}, "val", mesh)[0]["ten"]
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
    depth = references.trivial_depth(config, cameras)
    rows, columns = references.GRID
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
        f"sys.path.insert(0, {os.path.dirname(tiny_run.__file__)!r})\n"
        "from tiny_run import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(data_dir)!r})\n"
        "    config.train.steps = 400\n"
        "    config.train.checkpoint_every = 1000\n"
        "    config.data.batch_size = 1\n"
        "    config.data.eval_batch_size = 1\n"
        "    config.evaluation.references = False\n"
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
    student = load_student(config, finished)
    image = np.zeros((1, 2, 32, 64, 3), np.uint8)
    intrinsics = np.tile(np.diag([60.0, 60.0, 1.0]), (1, 2, 1, 1)).astype(np.float32)
    depth_m = student(jnp.asarray(image), jnp.asarray(intrinsics), jnp.ones((1, 2), bool)).depth_m
    assert depth_m.shape == (1, 2, 32, 64)
    assert (depth_m > 0.1).all() and (depth_m < 200).all()


def test_a_soft_teacher_needs_no_head(config, tmp_path, caplog):
    soft = config.copy_and_resolve_references()
    soft.teacher.binning, soft.train.steps = "soft", 2
    with caplog.at_level("INFO", "fsmde_jax"):
        assert loop.train(soft, tmp_path) is None
    # The silence of compiling has a beginning and an end.
    _, _, after = caplog.text.partition("compiling the training step, once")
    assert re.search(r"compiled in \d+ s", after)
    records = read_metrics(tmp_path)
    assert len(records) == 2
    for record in records:
        assert all(np.isfinite(value) for name, value in record.items() if name != "kind")
        assert record["ckd_divergence"] > 0 and record["ckd_crossing"] > 0 and record["vrkd"] > 0
