import json
import pickle

import dgp_fixture
import numpy as np
import pytest

from fsmde_jax.data.readers import dgp, recording
from fsmde_jax.data.readers.recording import RecordingError


@pytest.fixture
def root(tmp_path):
    return dgp_fixture.write_recording(tmp_path / "raw")


def open_scene(root, scene_id="000000"):
    return dgp.Scene(dgp_fixture.scene_json(root, scene_id))


def read_everything(root):
    dataset_json = dgp.find(root)
    for split in ("train", "val"):
        for scene_id, path in dgp.scene_paths(dataset_json, split).items():
            scene = dgp.Scene(path, scene_id)
            for sample in map(scene.sample, range(len(scene))):
                dgp.read_points(sample.lidar)
                for camera in sample.cameras:
                    recording.read_image(camera)


def test_a_sound_recording_reads_to_its_end(root):
    read_everything(root)


def test_splits_keep_the_order_of_the_file(root):
    dataset_json = root / "tiny.json"
    assert dgp.find(root) == dataset_json
    assert list(dgp.scene_paths(dataset_json, "train")) == ["000000", "000001"]
    assert list(dgp.scene_paths(dataset_json, "val")) == ["000002"]
    with pytest.raises(RecordingError, match=r"no split 'test', there are train, val"):
        dgp.scene_paths(dataset_json, "test")


def test_sensors_are_paired_by_datum_keys_under_canonical_names(root):
    sample = open_scene(root).sample(2)
    assert sample.index == 2 and sample.scene_id == "000000"
    assert [camera.name for camera in sample.cameras] == sorted(dgp_fixture.RING_YAW_DEG)
    assert {camera.image_path.name for camera in sample.cameras} == {"2002.png"}
    assert sample.lidar.cloud_path.name == "1002.npz"
    assert sample.cameras[0].size == (dgp_fixture.HEIGHT, dgp_fixture.WIDTH)
    assert open_scene(root, "000001").sample(0).cameras[0].image_path.suffix == ".jpg"


def test_poses_are_float64_and_the_sign_of_a_quaternion_means_nothing(root):
    sample = open_scene(root).sample(1)
    for camera in sample.cameras:
        assert camera.world_from_camera.dtype == np.float64
        assert camera.world_from_camera[0, 3] == dgp_fixture.camera_position(1)[0]
        yaw = np.radians(dgp_fixture.VEHICLE_YAW_DEG + dgp_fixture.RING_YAW_DEG[camera.name])
        right, down, forward = camera.world_from_camera[:3, :3].T
        np.testing.assert_allclose(forward, [np.cos(yaw), np.sin(yaw), 0], atol=1e-12)
        np.testing.assert_allclose(right, [np.sin(yaw), -np.cos(yaw), 0], atol=1e-12)
        np.testing.assert_allclose(down, [0, 0, -1], atol=1e-12)
        mount = camera.vehicle_from_camera
        expected = sample.lidar.world_from_lidar[:3, :3] @ mount[:3, :3]
        np.testing.assert_allclose(camera.world_from_camera[:3, :3], expected, atol=1e-12)


def test_a_quaternion_slightly_off_is_normalised(root):
    def stretch(scene):
        rotation = scene["data"][0]["datum"]
        rotation = next(iter(rotation.values()))["pose"]["rotation"]
        for name in rotation:
            rotation[name] *= 1.0005

    path = dgp_fixture._edit(dgp_fixture.scene_json(root, "000000"), stretch)
    scene = dgp.Scene(path)
    for sample in map(scene.sample, range(3)):
        for pose in (sample.lidar.world_from_lidar, *(c.world_from_camera for c in sample.cameras)):
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)


def test_the_number_of_cameras_may_vary(root):
    drop = {"CAMERA_050", "CAMERA_070"}

    def change(scene):
        keys = scene["samples"][0]["datum_keys"]
        scene["samples"][0]["datum_keys"] = [key for key in keys if key not in drop]

    scene = dgp.Scene(dgp_fixture._edit(dgp_fixture.scene_json(root, "000000"), change))
    assert [len(scene.sample(index).cameras) for index in range(3)] == [4, 6, 6]


def test_other_kinds_of_sensor_are_left_out(root):
    def add_radar(scene):
        scene["data"].append({"key": "r", "id": {"name": "R"}, "datum": {"radar_point_cloud": {}}})
        scene["samples"][0]["datum_keys"].append("r")

    scene = dgp.Scene(dgp_fixture._edit(dgp_fixture.scene_json(root, "000000"), add_radar))
    assert len(scene.sample(0).cameras) == 6


@pytest.mark.parametrize("name", dgp_fixture.BREAKS)
def test_broken_input_is_named(root, name):
    fault = dgp_fixture.BREAKS[name]
    path = fault.apply(root)
    with pytest.raises(RecordingError) as caught:
        read_everything(root)
    assert caught.value.path == path
    assert str(path) in str(caught.value) and fault.says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_survive_the_way_back_from_a_worker(tmp_path):
    error = pickle.loads(pickle.dumps(RecordingError(tmp_path, "is broken")))
    assert error.path == tmp_path and str(error) == f"{tmp_path}: is broken"


def test_the_dataset_file_is_found_or_its_absence_explained(root, tmp_path):
    assert dgp.find(root / "tiny.json") == root / "tiny.json"
    with pytest.raises(FileNotFoundError):
        dgp.find(tmp_path / "absent")
    dgp_fixture.write_json(root / "other.json", {"scene_splits": {}})
    with pytest.raises(RecordingError, match=r"other\.json, tiny\.json"):
        dgp.find(root)
    (root / "other.json").unlink()
    (root / "tiny.json").write_text('{"scene_splits": {')
    with pytest.raises(RecordingError, match=r"tiny\.json: not valid JSON"):
        dgp.find(root)


def test_two_files_of_one_scene_are_ambiguous(root):
    filenames = ["000000/scene_a.json", "000000/scene_b.json"]
    dgp_fixture.write_json(root / "tiny.json", {"scene_splits": {"0": {"filenames": filenames}}})
    with pytest.raises(RecordingError, match="two files of scene 000000"):
        dgp.scene_paths(root / "tiny.json", "train")


def test_real_poses_include_the_extrinsics(shared_dir):
    """The real car stands still, so vehicle pose times extrinsics must be the camera's pose."""
    dataset_json = dgp.find(shared_dir / "real" / "dgp")
    (path,) = dgp.scene_paths(dataset_json, "val").values()
    scene = dgp.Scene(path)
    assert len(scene) == len(json.loads(path.read_text())["samples"]) == 3
    for sample in map(scene.sample, range(3)):
        assert [camera.name for camera in sample.cameras] == ["CAMERA_01", "CAMERA_05", "CAMERA_06"]
        for camera in sample.cameras:
            expected = sample.lidar.world_from_lidar @ camera.vehicle_from_camera
            np.testing.assert_allclose(camera.world_from_camera, expected, atol=2e-3)
            assert recording.read_image(camera).size == (1936, 1216)
        assert dgp.read_points(sample.lidar).shape[1] == 3
