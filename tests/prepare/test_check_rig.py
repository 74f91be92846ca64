import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rig_faults
from PIL import Image

from fsmde_jax.data.readers import dgp, nuscenes, rig_folder
from fsmde_jax.prepare.check import check as check_recording
from fsmde_jax.prepare.check_rig.report import check as check_rig
from fsmde_jax.prepare.scenes import PrepareError

REPOSITORY = Path(__file__).parents[2]
SPLITS = ("train", "val")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    return rig_faults.write_rig(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("fsmde_jax.prepare.check_rig.report._draw", lambda frame, out: None)


@pytest.fixture
def copy(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "rig"))


def check(root, out, reader=rig_folder, splits=SPLITS):
    return check_rig(reader, root, splits, out)


def subjects(report):
    return {Path(line.split(": ")[0]).name for line in report.splitlines()}


@pytest.mark.parametrize("name", rig_faults.FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(copy, tmp_path, name, no_pictures):
    plant, expected, says = rig_faults.FAULTS[name]
    plant(copy)
    report = check(copy, tmp_path / "out")
    assert subjects(report) == expected
    assert all(says in line for line in report.splitlines()), report


def test_a_sound_rig_is_left_in_peace(sound, tmp_path):
    assert check(sound, tmp_path / "out") == ""


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 2},
        {"seed": 3, "varied_rigs": True},
        {"seed": 0, "height": 160, "width": 256, "sample_stride": 20},  # as the demo's
    ],
)
def test_other_sound_rigs_are_left_in_peace(tmp_path, options, no_pictures):
    root = rig_faults.write_rig(tmp_path, **options)
    assert check(root, tmp_path / "out") == ""


@pytest.mark.parametrize("name, reader", [("dgp", dgp), ("nuscenes", nuscenes)])
def test_real_samples_are_left_in_peace(shared_dir, tmp_path, name, reader):
    # The nuScenes key frame is of a training scene, the other sample's scene is in both splits.
    assert check(shared_dir / "real" / name, tmp_path / "out", reader, ("train",)) == ""


def test_a_rig_without_lidar_can_be_checked(copy, tmp_path):
    for folder in copy.glob("*/lidar"):
        shutil.rmtree(folder)
    assert check(copy, tmp_path / "out") == ""


def test_a_fault_in_one_scene_names_the_scene(copy, tmp_path):
    for path in (copy / "000000" / "CAMERA_09").iterdir():
        path.write_bytes(b"no image")
    report = check(copy, tmp_path / "out")
    assert subjects(report) == {"000000.jpg", "000001.jpg"}
    assert all(line.endswith("[1 of 2 scenes: 000000]") for line in report.splitlines())
    assert "broken" in report


def test_pictures_show_the_ring_and_the_overlays(sound, tmp_path):
    check(sound, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"00000{i}_{kind}.png" for i in (0, 1) for kind in ("above", "lidar")}
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 1000  # something is drawn, in colour


def test_the_command_prints_what_it_found_and_fails(copy, tmp_path):
    rig_faults.FAULTS["one camera inverted"][0](copy)
    command = [sys.executable, "-m", "fsmde_jax.prepare", "--dataset=rig", "--check",
               f"--source={copy}", f"--data_dir={tmp_path}"]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert found.returncode == 1, found.stderr
    assert "CAMERA_08: its extrinsics look the wrong way round" in found.stdout
    assert (tmp_path / "rig_check" / "000000_lidar.png").is_file()


def test_a_sound_rig_ends_well_and_an_absent_one_is_named(sound, tmp_path, capsys, no_pictures):
    assert check_recording("rig", sound, tmp_path, SPLITS) == 0
    assert "nothing looks wrong" in capsys.readouterr().out
    with pytest.raises(PrepareError, match=r"no rig\.json"):
        check_recording("rig", tmp_path / "nowhere", tmp_path, SPLITS)
