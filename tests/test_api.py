"""The front door: the shipped student on the shipped street, from `fsmde_jax.load` and `--demo`."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import fsmde_jax
from fsmde_jax import api
from fsmde_jax.data.readers import rig_folder
from fsmde_jax.errors import UserError
from fsmde_jax.export import load as exported
from fsmde_jax.models.weights import files as weight_files
from fsmde_jax.predict import forward, inputs, writer

SHIPPED = "student-mini-world"


@pytest.fixture(scope="module")
def student():
    return fsmde_jax.load(SHIPPED)


@pytest.fixture(scope="module")
def sample():
    """The street's first instant at the network's size."""
    items = inputs.of_recording("rig", rig_folder.find(writer.STREET), "val", (96, 160)).items
    return next(items).sample


@pytest.fixture(scope="module")
def ring(student, sample):
    return student(sample["image"], sample["intrinsics"])


def test_a_first_look_is_what_the_student_says(student, ring, sample, tmp_path):
    saves = (*writer.FIRST_SAVES, "npz")
    assert writer.first_look(tmp_path / "look", max_samples=1, saves=saves) == []
    assert (student.name, student.image_size) == (SHIPPED, (96, 160))
    for i, camera in enumerate(("CAMERA_01", "CAMERA_05", "CAMERA_06")):
        with np.load(tmp_path / f"look/npz/street/000000/{camera}.npz") as arrays:
            for name in ("depth_m", "confidence"):
                np.testing.assert_array_equal(getattr(ring, name)[i], arrays[name])
    for file in ("panel/street/000000.png", "birds_eye/street/000000.png", "about.json"):
        assert (tmp_path / "look" / file).stat().st_size > 100
    assert len(list((tmp_path / "look/pictures/street/000000").iterdir())) == 6
    cloud = ring.to_point_cloud(sample["vehicle_from_camera"])
    header = (tmp_path / "look/cloud/street/000000.ply").read_bytes()[:300]
    assert b"element vertex %d\n" % len(cloud.points_m) in header


def test_the_street_is_one_the_student_can_see(ring, sample):
    truth_m, xy = sample["lidar_depth_m"], sample["lidar_xy"].astype(int)
    errors = []
    for i in range(6):
        known = truth_m[i] > 0
        column, row = xy[i][known].T
        found_m = ring.depth_m[i][row.clip(0, 95), column.clip(0, 159)]
        errors.append(np.mean(np.abs(found_m / truth_m[i][known] - 1)))
    assert np.mean(errors) < 0.3


def test_one_image_is_as_in_its_ring_and_the_size_of_its_own(student, ring, sample):
    image, k = sample["image"][0], sample["intrinsics"][0]
    one = student(image, k.tolist())
    assert one.depth_m.shape == one.confidence.shape == (96, 160)
    np.testing.assert_allclose(one.depth_m, ring.depth_m[0], rtol=1e-3)
    large = np.asarray(Image.fromarray(image).resize((400, 240)))
    of_large = student(large, k * np.float32([2.5, 2.5, 1])[:, None])
    assert of_large.depth_m.shape == of_large.confidence.shape == (240, 400)
    assert of_large.depth_m.dtype == of_large.confidence.dtype == np.float32
    back = np.asarray(Image.fromarray(of_large.depth_m).resize((160, 96), Image.Resampling.BOX))
    assert np.median(np.abs(back / one.depth_m - 1)) < 0.1


def test_a_focal_length_stands_for_square_pixels_seen_through_the_centre(student, sample):
    image = sample["image"][0]
    found = student.predict(image, focal_px=180.0)
    expected = student(image, forward.intrinsics_of((96, 160), 180.0))
    np.testing.assert_array_equal(found.depth_m, expected.depth_m)
    twice = student.predict(image, focal_px=360.0)
    assert np.median(twice.depth_m / found.depth_m) == pytest.approx(2, rel=0.1)


def test_the_points_project_back_to_their_pixels(ring, sample):
    poses = sample["vehicle_from_camera"]
    cloud = ring.to_point_cloud(poses, max_depth_m=30.0)
    for i, (pose, k) in enumerate(zip(poses, sample["intrinsics"], strict=True)):
        points_m = cloud.points_m[cloud.camera == i]
        in_camera_m = (points_m - pose[:3, 3]) @ pose[:3, :3]
        assert len(points_m) > 3000 and in_camera_m[:, 2].max() < 30.01
        column, row = ((in_camera_m @ k.T)[:, :2] / in_camera_m[:, 2:]).T
        found = sample["image"][i][row.astype(int), column.astype(int)]
        np.testing.assert_array_equal(found, cloud.colours[cloud.camera == i])
    surest = ring.to_point_cloud(poses, min_confidence=float(np.median(ring.confidence)))
    assert 0.3 < len(surest.points_m) / len(ring.to_point_cloud(poses).points_m) < 0.8
    with pytest.raises(UserError, match=r"a ring of 6 cameras needs the pose of each, \[6, 4, 4\]"):
        ring.to_point_cloud()
    with pytest.raises(UserError, match=r"vehicle_from_camera has the shape \[4, 4\]; give \[6, 4"):
        ring.to_point_cloud(np.eye(4))


def test_a_camera_alone_looks_ahead(student, sample):
    one = student(sample["image"][0], sample["intrinsics"][0])
    points_m = one.to_point_cloud(max_depth_m=1000.0).points_m
    assert points_m[:, 0].min() > 0  # x is forward
    assert points_m[0, 1] > 0 and points_m[0, 2] > 0  # the first pixel: left of it and above


IMAGE = np.zeros((96, 160, 3), np.uint8)
K = np.float32([[180, 0, 80], [0, 180, 48], [0, 0, 1]])


@pytest.mark.parametrize(
    ("images", "intrinsics", "text"),
    [
        (IMAGE / 255.0, K, r"images are float64\[96, 160, 3\]: give uint8"),
        (IMAGE[..., 0], K, r"images have the shape \[96, 160\]: give RGB as"),
        (IMAGE[None, None], K, r"images have the shape \[1, 1, 96, 160, 3\]"),
        (IMAGE[:0], K, r"images have the shape \[0, 160, 3\]"),
        (IMAGE, K[None], r"intrinsics has the shape \[1, 3, 3\]; give \[3, 3\]$"),
        (IMAGE[None], np.tile(K, (2, 1, 1)), r"\[2, 3, 3\]; give \[3, 3\] or \[1, 3, 3\]"),
        (IMAGE, K * np.nan, "intrinsics has values that are not finite"),
        (IMAGE, K * 0, r"a focal length, or the last 1, is not above 0"),
        (IMAGE, [["a"]], "intrinsics is no array of numbers"),
    ],
)
def test_what_does_not_fit_is_named(student, images, intrinsics, text):
    with pytest.raises(UserError, match=text):
        student(images, intrinsics)


@pytest.mark.parametrize("focal_px", [None, 0.0, -3.0, float("nan")])
def test_a_focal_length_that_is_missing_or_none_is_named(student, focal_px):
    with pytest.raises(UserError, match=r"focal_px is .*: give the focal length in pixels"):
        student.predict(IMAGE, focal_px=focal_px)


def test_what_cannot_be_loaded_is_named(tmp_path):
    for source, text in (
        (tmp_path, r"neither a run's folder \(it has no config\.json and no checkpoints\) nor an"),
        (
            writer.STREET.with_name("mini-world"),
            r"neither a run's folder \(it has no checkpoints\)",
        ),
        (tmp_path / "nowhere", r"there is no such folder\. Name a run's folder, an export"),
        ("nowhere", r"shipped \(student-mini-world\)"),
        (pathlib.Path(__file__), r"test_api\.py is a file; name its folder"),
    ):
        with pytest.raises(UserError, match=text):
            fsmde_jax.load(source)
    (tmp_path / "student.json").write_text(json.dumps({"format": "onnx"}))
    with pytest.raises(UserError, match=r"for programs without fsmde_jax \(onnx; its README"):
        fsmde_jax.load(tmp_path)
    (tmp_path / "student.json").write_text(json.dumps({"format": "orbax", "student": "tiny"}))
    with pytest.raises(UserError, match=r"another version of fsmde_jax \(KeyError.*Export the run"):
        fsmde_jax.load(tmp_path)


def test_an_id_of_the_hub_is_fetched(monkeypatch):
    asked = []

    def fetch(source, allow_patterns):
        asked.append((source, sorted(allow_patterns)))
        if "ours" not in source:
            raise OSError("offline")
        return str(exported.SHIPPED[SHIPPED])

    monkeypatch.setattr(weight_files, "snapshot_download", fetch)
    assert fsmde_jax.load("someone/ours").name == SHIPPED
    assert asked == [("someone/ours", ["config.json", "model.safetensors"])]
    with pytest.raises(UserError, match=r"runs/nowhere: neither a local folder nor .* offline"):
        fsmde_jax.load("runs/nowhere")


def test_importing_the_package_is_cheap():
    code = "import sys, fsmde_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert fsmde_jax.load is api.load
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        fsmde_jax.lode  # noqa: B018


@pytest.mark.parametrize(
    ("folder", "most"), [(exported.SHIPPED[SHIPPED], 3e6), (writer.STREET, 1e6)]
)
def test_what_is_shipped_is_small(folder, most):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < most
