"""Depth maps from files: formats, units, what is missing, and the command."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_run import prepare_recording, tiny_config

from fsmde_jax.config import ConfigError
from fsmde_jax.data import pipeline
from fsmde_jax.evaluate import measure, metrics
from fsmde_jax.evaluate.depth_maps import PredictionError, Predictions

SIZE = (20, 30)
REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    found = tiny_config(prepare_recording(tmp_path_factory.mktemp("predictions")))
    found.evaluation.pictures = 0
    return found


def maps_of(config, seed=0):
    """Depth in metres by sample id and camera."""
    source, _ = pipeline.open_data(config.data, "val")
    rng = np.random.default_rng(seed)
    return {
        (source[i]["sample_id"], camera): rng.uniform(2, 60, SIZE).astype(np.float32)
        for i in range(len(source))
        for camera in source[i]["camera_names"]
    }


def write(folder, maps, suffix, unit_m=1.0):
    for (sample_id, camera), depth_m in maps.items():
        path = folder / sample_id / (camera + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = depth_m / unit_m
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".npz":
            np.savez(path, depth=values, confidence=values)
        else:
            Image.fromarray(np.round(values).astype(np.uint16)).save(path)
    return folder


@pytest.mark.parametrize(("suffix", "unit_m"), [(".npy", None), (".npz", 0.1), (".png", 1 / 256)])
def test_files_of_every_kind_give_the_same_figures(config, tmp_path, suffix, unit_m):
    maps = maps_of(config)
    reference = measure.evaluate_predictions(
        config, Predictions(write(tmp_path / "a", maps, ".npy")), tmp_path / "out_a"
    )["predictions"]
    folder = write(tmp_path / "b", maps, suffix, unit_m or 1.0)
    found = measure.evaluate_predictions(config, Predictions(folder, unit_m), tmp_path / "out_b")
    for name in metrics.NAMES:
        assert found["predictions"]["mean"][name] == pytest.approx(
            reference["mean"][name], rel=1e-3
        )
    assert found["predictions"]["covered"] == {"images": 18, "of": 18}


def test_a_missing_prediction_is_named_or_skipped_and_counted(config, tmp_path):
    maps = maps_of(config)
    gone = sorted(maps)[4]
    folder = write(tmp_path / "p", {key: m for key, m in maps.items() if key != gone}, ".npy")
    with pytest.raises(PredictionError, match=rf"{gone[0]}/{gone[1]}\.npy.*is missing.*skip"):
        measure.evaluate_predictions(config, Predictions(folder), tmp_path / "out")
    found = measure.evaluate_predictions(config, Predictions(folder, skip=True), tmp_path / "out")
    assert found["predictions"]["covered"] == {"images": 17, "of": 18}
    assert found["predictions"]["images"][gone[1]] == 2
    assert "Covers 17 of 18 images" in (tmp_path / "out" / "results.md").read_text()


def test_another_unit_is_called_out(config, tmp_path):
    folder = write(tmp_path / "p", maps_of(config), ".npy", unit_m=0.001)
    with pytest.raises(ConfigError, match=r"median of prediction / LiDAR is .*another unit"):
        measure.evaluate_predictions(config, Predictions(folder), tmp_path / "out")
    measure.evaluate_predictions(config, Predictions(folder, unit_m=0.001), tmp_path / "out")


def _shape(path):
    np.save(path, np.ones((3, 4)))


def _colours(path):
    np.save(path, np.ones((*SIZE, 3)))


def _truncated(path):
    path.write_bytes(path.read_bytes()[:90])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_shape, "is 3x4, the other predictions are 20x30"),
        (_colours, r"one number a pixel, is float64 \(20, 30, 3\)"),
        (_truncated, "cannot be read"),
    ],
)
def test_broken_files_are_named(config, tmp_path, spoil, text):
    maps = maps_of(config)
    folder = write(tmp_path / "p", maps, ".npy")
    sample_id, camera = sorted(maps)[-1]
    spoil(folder / sample_id / f"{camera}.npy")
    with pytest.raises(PredictionError, match=rf"{camera}\.npy: .*{text}"):
        measure.evaluate_predictions(config, Predictions(folder), tmp_path / "out")


def test_a_png_needs_its_unit_and_sixteen_bits(config, tmp_path):
    folder = write(tmp_path / "p", maps_of(config), ".png", 1 / 256)
    with pytest.raises(PredictionError, match=r"\.png: a PNG needs --unit_m"):
        Predictions(folder)
    Image.new("L", SIZE[::-1]).save(next(folder.rglob("*.png")))
    with pytest.raises(PredictionError, match="8 bits a pixel"):
        Predictions(folder, 1 / 256).add(_first_sample(config))


def _first_sample(config):
    source, _ = pipeline.open_data(config.data, "val")
    return source[0]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(PredictionError, match=r"holds no \.npy"):
        Predictions(tmp_path)
    with pytest.raises(PredictionError, match="no such folder"):
        Predictions(tmp_path / "nowhere")


def test_what_is_not_depth_becomes_zero(tmp_path):
    values = np.full(SIZE, 5.0)
    values[0, :3] = np.nan, np.inf, -1.0
    folder = tmp_path / "s"
    folder.mkdir()
    np.save(folder / "A.npy", values)
    sample = {
        "sample_id": "s", "camera_names": ["A"], "lidar_counts": np.array([1]),
        "lidar_depth_m": np.ones(1, np.float32),
    }  # fmt: skip
    found = Predictions(tmp_path).add(sample)["prediction"][0]
    assert found[0, :3].tolist() == [0, 0, 0] and found[1, 1] == 5


def run(module, *arguments):
    """A command of the package in a process of its own."""
    command = [sys.executable, "-m", f"fsmde_jax.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=240)


def test_the_commands_measure_compare_and_fail_by_name(config, tmp_path):
    maps = maps_of(config)
    good = write(tmp_path / "good", maps, ".npy")
    half = write(tmp_path / "half", {k: m for k, m in maps.items() if "CAMERA_01" in k}, ".npy")
    file = tmp_path / "config.py"
    file.write_text(
        "from fsmde_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.data.data_dir = {config.data.data_dir!r}\n"
        "    config.data.config_name = '32x64_png'\n"
        "    config.evaluation.pictures = 0\n"
        "    return config\n"
    )
    measured = run("evaluate", f"--config={file}", f"--predictions={good}", "--protocol=packnet")
    assert measured.returncode == 0, measured.stderr
    assert "protocol packnet: LiDAR at native pixels, 0 to 200 m" in measured.stdout
    assert "| predictions |" in measured.stdout
    report = tmp_path / "good_report"
    compared = run("evaluate.compare", str(report), f"{report}:predictions")
    assert "| +0.0000 |" in compared.stdout
    broken = run("evaluate", f"--config={file}", f"--predictions={half}")
    assert broken.returncode == 1
    assert "error: " in broken.stderr and "Traceback" not in broken.stderr
    assert "is missing; " in broken.stderr and "holds 3 depth maps. --on_error" in broken.stderr
    skipped = run("evaluate", f"--config={file}", f"--predictions={half}", "--on_error=skip")
    assert skipped.returncode == 0 and "Covers 3 of 18 images" in skipped.stdout
    assert skipped.stderr.count("skipped: ") == 11 and "skipped: 5 more" in skipped.stderr
    neither = run("evaluate", f"--config={file}")
    assert neither.returncode != 0
    assert "--checkpoint=RUN or --predictions=DIR" in neither.stderr + neither.stdout
    other = run("evaluate.compare", str(report), f"{report}:teacher")
    assert other.returncode == 1 and "no method 'teacher'" in other.stderr
