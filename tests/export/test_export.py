import functools
import importlib
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny_run import prepare_recording, tiny_config

import fsmde_jax
from fsmde_jax import config as config_lib
from fsmde_jax.errors import UserError
from fsmde_jax.export import formats
from fsmde_jax.export.load import load_export
from fsmde_jax.models.student import Student, StudentConfig
from fsmde_jax.run.load import load_student
from fsmde_jax.train import loop


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    config = tiny_config(prepare_recording(root))
    config.objective.update(dict.fromkeys(("ckd_divergence", "ckd_crossing", "vrkd"), 0.0))
    config.train.steps = 2
    assert loop.train(config, root / "run") is None
    return root / "run"


def run_readme(folder, more=""):
    """Runs the README's code beside its files, in a process that knows nothing of the package."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code += more + "\nimport sys; assert 'fsmde_jax' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def three_of(test):
    """Three samples that differ, from the self-test."""
    images = [test["image"], test["image"][:, ::-1], 255 - test["image"]]
    scales = np.array([1.0, 1.3, 0.7], np.float32)[:, None, None, None]
    return np.concatenate(images), np.tile(test["intrinsics"], (3, 1, 1, 1)) * scales


@pytest.mark.parametrize("format_", ["stablehlo", "onnx"])
def test_a_function_is_the_students_in_a_process_without_the_package(workdir, tmp_path, format_):
    for package in ("onnx", "onnxruntime") if format_ == "onnx" else ("flatbuffers",):
        pytest.importorskip(package)
    folder = tmp_path / "out"
    formats.export(workdir, format_, folder)
    (difference,) = run_readme(folder)
    test = np.load(folder / "self_test.npz")
    assert float(difference) < 1e-4 * test["depth_m"].min()
    assert test["confidence"].shape == test["depth_m"].shape
    assert ((test["confidence"] > 0) & (test["confidence"] <= 1)).all()

    student = load_student(config_lib.load_config(workdir), workdir)
    image, intrinsics = three_of(test)
    expected = jax.jit(formats.inference(student))(image, intrinsics)
    if format_ == "onnx":
        session = importlib.import_module("onnxruntime").InferenceSession(folder / "student.onnx")
        found = session.run(None, {"image": image, "intrinsics": intrinsics})
    else:
        loaded = jax.export.deserialize((folder / "student.stablehlo").read_bytes())
        assert set(loaded.platforms) == {"cpu", "cuda", "tpu"}
        found = loaded.call(image, intrinsics)
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4)


CALLS = {
    "stablehlo": "student.call(image, intrinsics)",
    "onnx": 'student.run(None, {"image": image, "intrinsics": intrinsics})',
}


@pytest.mark.parametrize("format_", CALLS)
def test_real_frames_in_a_process_without_the_package(workdir, shared_dir, tmp_path, format_):
    for package in ("onnx", "onnxruntime") if format_ == "onnx" else ("flatbuffers",):
        pytest.importorskip(package)
    folder = tmp_path / "out"
    formats.export(workdir, format_, folder)
    test = np.load(folder / "self_test.npz")
    _, cameras, height, width, _ = test["image"].shape
    frames = sorted((shared_dir / "real/dgp/scene_01/rgb").rglob("*.jpg"))
    assert len(frames) == 9
    frames = [np.asarray(Image.open(frame).resize((width, height))) for frame in frames]
    image = np.stack(
        [np.take(frames, range(i, i + cameras), axis=0, mode="wrap") for i in (0, 3, 6)]
    )
    intrinsics = np.tile(test["intrinsics"], (3, 1, 1, 1))
    student = load_student(config_lib.load_config(workdir), workdir)
    depth_m, confidence = jax.jit(formats.inference(student))(image, intrinsics)
    values = {"depth_m": depth_m, "confidence": confidence}
    np.savez(folder / "real.npz", image=image, intrinsics=intrinsics, **values)
    more = f"""
real = np.load("real.npz")
for batch in (1, 3):
    image, intrinsics = real["image"][:batch], real["intrinsics"][:batch]
    for name, found in zip(("depth_m", "confidence"), {CALLS[format_]}, strict=True):
        np.testing.assert_allclose(found, real[name][:batch], rtol=1e-4)
"""
    run_readme(folder, more)


def test_parameters_are_read_without_the_package(workdir, tmp_path):
    folder = tmp_path / "out"
    formats.export(workdir, "orbax", folder)
    more = "import jax; print(sorted(params), sum(x.size for x in jax.tree.leaves(params)))"
    (line,) = run_readme(folder, more)
    assert line.startswith("['decoder', 'encoder', 'head'] ")
    about = json.loads((folder / "student.json").read_text())
    assert len(about["cameras"]) == len(about["vehicle_from_camera"]) == 6
    assert about["canonical_focal_px"] == 60.0 and about["depth_range_m"] == [0.1, 200.0]


@pytest.mark.parametrize("format_", ["hub", "orbax"])
def test_what_is_read_back_is_the_student_bit_for_bit(workdir, tmp_path, format_):
    folder = tmp_path / "out"
    formats.export(workdir, format_, folder)
    found, about = load_export(folder)
    wanted = load_student(config_lib.load_config(workdir), workdir)
    ours, theirs = (dict(nnx.to_flat_state(nnx.state(one))) for one in (wanted, found))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(theirs[path][...], leaf[...])
        assert theirs[path].dtype == leaf.dtype
    sample = np.load(workdir / "example.npz")
    of_run, of_export = fsmde_jax.load(workdir), fsmde_jax.load(folder)
    assert (of_export.name, of_export.image_size) == (of_run.name, of_run.image_size)
    assert of_run.image_size == (32, 64) and about["cameras"] == sample["cameras"].tolist()
    first, second = (one(sample["image"], sample["intrinsics"]) for one in (of_run, of_export))
    np.testing.assert_array_equal(first.depth_m, second.depth_m)
    np.testing.assert_array_equal(first.confidence, second.confidence)


def test_the_card_has_the_figures_of_the_runs_report(workdir, tmp_path):
    formats.export(workdir, "hub", tmp_path / "without")
    card = (tmp_path / "without/README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: fsmde_jax\n")
    assert "no report when it was exported" in card and "32x64" in card
    names = {"README.md", "config.json", "model.safetensors", "model.safetensors.sha256"}
    assert {path.name for path in (tmp_path / "without").iterdir()} == names
    run = shutil.copytree(workdir, tmp_path / "run")
    mean = {"abs_rel": 0.25, "rmse_m": 11.4, "delta1": 0.674}
    student = {"mean": mean, "scenes": {}, "images": 4}
    about = {"settings": {"mirroring": "none"}, "text": "tiny on ddad val"}
    (run / "report").mkdir()
    report = {"about": about, "methods": {"student": student}}
    (run / "report/results.json").write_text(json.dumps(report))
    formats.export(run, "hub", tmp_path / "with")
    said = "AbsRel 0.250, RMSE 11.40 m, δ < 1.25 0.674 (tiny on ddad val)."
    assert said in (tmp_path / "with/README.md").read_text()


def test_a_damaged_export_is_named(workdir, tmp_path):
    formats.export(workdir, "hub", tmp_path / "hub")
    weights = tmp_path / "hub/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: its SHA-256"):
        load_export(tmp_path / "hub")
    formats.export(workdir, "orbax", tmp_path / "orbax")
    about = json.loads((tmp_path / "orbax/student.json").read_text())
    about["bins"]["num_bins"] = 16
    (tmp_path / "orbax/student.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"params does not fit this version of fsmde_jax: params/"):
        load_export(tmp_path / "orbax")
    shutil.rmtree(tmp_path / "orbax/params")
    with pytest.raises(UserError, match=r"orbax/params is missing"):
        load_export(tmp_path / "orbax")


@pytest.fixture
def moved(workdir, tmp_path, monkeypatch):
    """The run alone, elsewhere: its data is gone, and the command runs in another folder."""
    run = shutil.copytree(workdir, tmp_path / "elsewhere" / "moved")
    values = json.loads((run / "config.json").read_text())
    values["data"]["data_dir"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(values))
    monkeypatch.chdir(run.parent)
    return pathlib.Path("moved")


def test_a_run_is_exported_without_its_data(workdir, moved, tmp_path):
    formats.export(moved, "orbax", tmp_path / "out")
    found, sample = np.load(tmp_path / "out" / "self_test.npz"), np.load(workdir / "example.npz")
    np.testing.assert_array_equal(found["image"], sample["image"][None])
    assert found["image"].shape == (1, 6, 32, 64, 3) and found["image"].std() > 1
    (moved / "example.npz").write_bytes((moved / "example.npz").read_bytes()[:-300])
    with pytest.raises(UserError, match=r"example\.npz is damaged"):
        formats.export(moved, "orbax", tmp_path / "again")
    (moved / "example.npz").unlink()
    with pytest.raises(UserError, match=r"was made before a run kept an example"):
        formats.export(moved, "orbax", tmp_path / "again")
    formats.export(workdir, "orbax", tmp_path / "again")  # a run of before, whose data is there


def test_an_export_that_fails_leaves_nothing_and_the_same_command_goes_on(
    workdir, tmp_path, monkeypatch
):
    def full(*_):
        (tmp_path / ".unfinished-out" / "half").touch()
        raise ValueError("OUT_OF_RANGE: Error writing a/0.0: No space left on device")  # as Orbax

    with monkeypatch.context() as patch:
        patch.setattr(formats.checkpoints, "save_tree", full)
        with pytest.raises(UserError, match=r"out cannot be written \(the disk is full\)"):
            formats.export(workdir, "orbax", tmp_path / "out")
        assert not any(tmp_path.iterdir())
    left = tmp_path / ".unfinished-out"  # as a kill leaves it
    left.mkdir()
    for name in (".made_by_fsmde_jax", "half"):
        (left / name).touch()
    formats.export(workdir, "orbax", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    names = {"params", "self_test.npz", "student.json", "README.md"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names


def test_a_full_disk_is_one_line_out_of_orbax_too(tmp_path):
    """Its threads log a traceback; in a process of its own, which may write small files only."""
    code = f"""
import pathlib, resource
import numpy as np
from fsmde_jax import cli, files
from fsmde_jax.run import checkpoints
cli.set_up()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
with cli.errors_as_lines(), files.new_folder(pathlib.Path({str(tmp_path / "out")!r})) as folder:
    checkpoints.save_tree(folder / "params", {{"a": np.random.normal(size=(300, 300))}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    said = f"error: {tmp_path / 'out'} cannot be written (the file is larger than allowed)"
    assert done.stderr.splitlines()[-1] == said and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_exported_is_named(workdir, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"--format=onnx needs the package onnx"):
            formats.export(workdir, "onnx", tmp_path / "out")
    with pytest.raises(UserError, match=r"--format=tflite: use one of hub, orbax, stablehlo, onnx"):
        formats.export(workdir, "tflite", tmp_path / "out")
    with pytest.raises(UserError, match="is there already"):
        formats.export(workdir, "orbax", workdir)
    with pytest.raises(UserError, match="is no run's folder"):
        formats.export(tmp_path, "orbax", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        formats.export(workdir, "orbax", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("size", "centers_of", "centers_kind", "mean_of"),
    [
        ("resnet18", "image", "unbounded", "depth"),
        ("resnet18", "rig", "widths", "inverse_depth"),
        ("mobilenetv2", "image", "widths", "log_depth"),
        ("efficientnet_lite0", "image", "widths", "depth"),
    ],
)
def test_onnx_knows_every_kind_of_student(size, centers_of, centers_kind, mean_of):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx_graph = pytest.importorskip("fsmde_jax.export.formats.onnx_graph")
    build = functools.partial(
        Student,
        StudentConfig.named(size),
        num_bins=8,
        min_depth_m=0.1,
        max_depth_m=80.0,
        canonical_focal_px=40.0,
        centers_of=centers_of,
        centers_kind=centers_kind,
        mean_of=mean_of,
    )
    student = nnx.jit(lambda: build(rngs=nnx.Rngs(0)))()
    student.eval()
    rng = np.random.default_rng(0)
    inputs = {
        "image": rng.integers(0, 255, (2, 3, 32, 64, 3), np.uint8),
        "intrinsics": np.tile(np.eye(3, dtype=np.float32) * 35, (2, 3, 1, 1)),
    }
    function = formats.inference(student)
    model = onnx_graph.convert(function, formats.free_batch(inputs), formats.OUTPUTS)
    if size in ("mobilenetv2", "efficientnet_lite0"):
        groups = [
            attribute.i
            for node in model.graph.node
            for attribute in node.attribute
            if node.op_type == "Conv" and attribute.name == "group"
        ]
        # A depthwise convolution stays one, whatever JAX does instead on CPUs.
        assert sum(group > 1 for group in groups) == len(student.encoder.blocks)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, inputs)
    for ours, theirs in zip(jax.jit(function)(*inputs.values()), found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4)


def test_onnx_names_what_it_does_not_know():
    onnx_graph = pytest.importorskip("fsmde_jax.export.formats.onnx_graph")
    spec = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(UserError, match=r"does not know JAX's 'sort'"):
        onnx_graph.convert(lambda x: (jnp.sort(x),), {"x": spec}, ["y"])
