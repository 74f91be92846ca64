"""The reader, its builder and the world in nuScenes' layout.

nuscenes-devkit 1.2.0 needs numpy below 2 and this package numpy 2, so the two cannot be installed
together; the projection is compared with a reference of its own here, which follows the devkit's
order of steps from the raw tables.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from dgp_fixture import Break, write_json
from PIL import Image
from scipy.spatial.transform import Rotation

from fsmde_jax.config import default_config
from fsmde_jax.data import lidar, pipeline, prepared
from fsmde_jax.data.readers import dgp, nuscenes, nuscenes_tables, recording
from fsmde_jax.data.readers.recording import RecordingError
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import measure
from fsmde_jax.prepare.folder import prepare
from fsmde_jax.prepare.scenes import PrepareError
from fsmde_jax.run import sharding
from fsmde_jax.world import WorldConfig, write_world
from fsmde_jax.world.nuscenes_layout import CHANNELS, VERSION, write_nuscenes

REPOSITORY = Path(__file__).parents[3]
SIZE = (50, 80)
SAMPLES = 4  # of a scene of the world; every second one is a key frame
KEY_FRAMES = 2
TRAIN_SCENES, VAL_SCENES = ("scene-0001", "scene-0002"), ("scene-0003",)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two streets to train on and one for validation, with thinned clouds."""
    folder = tmp_path_factory.mktemp("world")
    config = WorldConfig(0, 2, 1, SAMPLES, *SIZE, sample_stride=3)
    write_world(config, folder, num_workers=1, progress=False)
    for cloud in folder.rglob("point_cloud/*/*.npz"):
        np.savez(cloud, data=dgp.read_array(cloud)[::20])
    return folder


@pytest.fixture(scope="module")
def pristine(world, tmp_path_factory):
    """The world with a sweep between key frames."""
    folder = tmp_path_factory.mktemp("nuscenes")
    write_nuscenes(world, folder, key_every=2)
    return folder


@pytest.fixture
def raw(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "raw")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(raw, out, **options):
    options = {"image_size": SIZE, "config_name": "small", **options}
    return prepare("nuscenes", raw, out, **options)


def stored_samples(out, split="train"):
    return list(prepared.open_split(out, "nuscenes", "small", split))


def open_scenes(raw, folder, splits=("train", "val")):
    planned = nuscenes.plan(nuscenes.find(raw), splits, folder)
    return [nuscenes.Scene(path, name) for s in splits for name, path in planned[s].items()]


def read_everything(raw, folder):
    for scene in open_scenes(raw, folder):
        for sample in map(scene.sample, range(len(scene))):
            nuscenes.read_points(sample.lidar)
            for camera in sample.cameras:
                recording.read_image(camera)


# The layout, beside what the DGP reader says of the same world


@pytest.fixture(params=[1, 2])
def pairs(request, world, tmp_path):
    """(sample as the DGP reader sees it, as this one does, all DGP samples, `key_every`)."""
    write_nuscenes(world, tmp_path / "raw", key_every=request.param)
    dataset_json = dgp.find(world)
    scenes = [p for s in ("train", "val") for p in dgp.scene_paths(dataset_json, s).values()]
    found = []
    for path, scene in zip(scenes, open_scenes(tmp_path / "raw", tmp_path / "plan"), strict=True):
        there = dgp.Scene(path)
        assert len(scene) == SAMPLES / request.param
        for index in range(len(scene)):
            found.append((there, index * request.param, scene.sample(index)))
    assert len({sample.scene_id for _, _, sample in found}) == 3
    return found


def test_the_world_is_the_same_in_both_layouts(pairs):
    for scene, index, sample in pairs:
        expected = scene.sample(index)
        cameras = {camera.name: camera for camera in sample.cameras}
        assert set(cameras) == set(nuscenes.CAMERAS)
        for camera in expected.cameras:
            found = cameras[CHANNELS[camera.name]]
            assert found.size == camera.size == SIZE
            assert found.image_path.read_bytes() == camera.image_path.read_bytes()
            np.testing.assert_array_equal(found.intrinsics, camera.intrinsics)
            for field in ("vehicle_from_camera", "world_from_camera"):
                poses = getattr(found, field), getattr(camera, field)
                assert poses[0].dtype == np.float64
                np.testing.assert_allclose(*poses, rtol=0, atol=1e-9, err_msg=field)
        in_world = [
            transform(lidar.world_from_lidar, reader.read_points(lidar))
            for reader, lidar in ((nuscenes, sample.lidar), (dgp, expected.lidar))
        ]
        np.testing.assert_allclose(*in_world, rtol=0, atol=2e-5)  # float32 at 200 m
        assert not np.allclose(sample.lidar.world_from_lidar, expected.lidar.world_from_lidar)


def transform(a_from_b, points_m):
    return points_m @ a_from_b[:3, :3].T + a_from_b[:3, 3]


def test_cameras_look_where_their_names_say(pairs):
    for _, _, sample in pairs:
        yaw_deg = {
            camera.name: np.degrees(np.arctan2(*camera.vehicle_from_camera[[1, 0], 2]))
            for camera in sample.cameras
        }
        assert abs(yaw_deg["CAM_FRONT"]) < 10 and abs(yaw_deg["CAM_BACK"]) > 170
        assert 90 < yaw_deg["CAM_BACK_LEFT"] < 150 and -150 < yaw_deg["CAM_BACK_RIGHT"] < -90
        assert 30 < yaw_deg["CAM_FRONT_LEFT"] < 90 and -90 < yaw_deg["CAM_FRONT_RIGHT"] < -30


def test_frames_before_and_after_are_those_of_the_same_camera(pairs):
    for scene, index, sample in pairs:
        dgp_names = {channel: name for name, channel in CHANNELS.items()}
        for camera in sample.cameras:
            for frame, other in ((camera.previous, index - 1), (camera.next, index + 1)):
                if not 0 <= other < len(scene):
                    assert frame is None
                    continue
                expected = next(
                    c for c in scene.sample(other).cameras if c.name == dgp_names[camera.name]
                )
                np.testing.assert_allclose(
                    frame.world_from_camera, expected.world_from_camera, rtol=0, atol=1e-9
                )
                root = camera.image_path.parents[2]
                content = (root / frame.filename).read_bytes()
                assert content == expected.image_path.read_bytes()


def test_the_layout_is_linked_as_the_devkit_expects(pristine):
    def table(name):
        return json.loads((pristine / VERSION / f"{name}.json").read_text())

    samples = {row["token"]: row for row in table("sample")}
    data = {row["token"]: row for row in table("sample_data")}
    for scene in table("scene"):
        tokens = [scene["first_sample_token"]]
        while samples[tokens[-1]]["next"]:
            tokens.append(samples[tokens[-1]]["next"])
            assert samples[tokens[-1]]["prev"] == tokens[-2]
        assert tokens[-1] == scene["last_sample_token"]
        assert len(tokens) == scene["nbr_samples"] == KEY_FRAMES
    assert len(data) == 3 * SAMPLES * 7
    for row in data.values():
        folder = "samples" if row["is_key_frame"] else "sweeps"
        assert row["filename"].startswith(f"{folder}/") and (pristine / row["filename"]).is_file()
        assert row["sample_token"] in samples
        if row["next"]:
            following = data[row["next"]]
            assert following["prev"] == row["token"]
            assert following["timestamp"] - row["timestamp"] == 300_000  # microseconds
            assert following["calibrated_sensor_token"] == row["calibrated_sensor_token"]
    (world_map,) = table("map")
    assert (pristine / world_map["filename"]).is_file()


def test_a_layout_is_not_written_over_or_out_of_names(world, pristine, tmp_path):
    with pytest.raises(UserError, match="exists"):
        write_nuscenes(world, pristine)
    splits = {"0": [], "1": [f"{number:06d}/scene_a.json" for number in range(151)]}
    write_json(
        tmp_path / "world.json",
        {"scene_splits": {key: {"filenames": names} for key, names in splits.items()}},
    )
    with pytest.raises(UserError, match="151 val scenes, nuScenes names 150"):
        write_nuscenes(tmp_path, tmp_path / "out")


# What is stored


def test_prepared_samples_hold_the_frames_before_and_after(raw, out):
    summary = run(raw, out)
    assert summary.scenes == {"train": 2, "val": 1}
    assert summary.samples == {"train": 2 * KEY_FRAMES, "val": KEY_FRAMES}
    assert list(summary.points_per_image) == list(nuscenes.CAMERAS)
    expected = [
        sample
        for scene in open_scenes(raw, out / "plan", ("train",))
        for sample in map(scene.sample, range(len(scene)))
    ]
    for stored, sample in zip(stored_samples(out), expected, strict=True):
        assert stored["camera_names"] == list(nuscenes.CAMERAS)
        cameras = {camera.name: camera for camera in sample.cameras}
        for i, name in enumerate(nuscenes.CAMERAS):
            camera = cameras[name]
            np.testing.assert_array_equal(stored["world_from_camera"][i], camera.world_from_camera)
            for side, frame in (("previous", camera.previous), ("next", camera.next)):
                filename, pose = stored[f"{side}_files"][i], stored[f"world_from_{side}_camera"][i]
                assert filename == (frame.filename if frame else "")
                expected_pose = frame.world_from_camera if frame else np.zeros((4, 4))
                np.testing.assert_array_equal(pose, expected_pose)
    files = [sample["previous_files"][0] for sample in stored_samples(out)]
    assert [bool(file) for file in files] == [False, True, False, True]
    assert files[1].startswith("sweeps/CAM_FRONT/")


def test_the_pipeline_reads_prepared_samples(raw, out):
    run(raw, out)
    config = default_config().data
    config.dataset, config.config_name, config.data_dir = "nuscenes", "small", str(out)
    config.cameras = nuscenes.CAMERAS
    source, cameras = pipeline.open_data(config, "train")
    points = source.rig["max_points_per_image"]
    sample = pipeline.place_on_rig(pipeline.read_sample(source, 1), cameras, points)
    sample = pipeline.add_neighbours(sample)
    assert sample["camera_mask"].all() and sample["neighbour_mask"].all()
    assert sample["neighbour"].tolist() == [1, 2, 3, 4, 5, 0]
    assert ((sample["lidar_depth_m"] > 0).sum(axis=1) == source[1]["lidar_counts"]).all()


def test_tfds_builds_the_same_samples_its_own_way(raw, out):
    from tfds_builders import base
    from tfds_builders.nuscenes import nuscenes_dataset_builder

    run(raw, out)
    builder = nuscenes_dataset_builder.Builder(
        config=base.RigConfig(name="small", image_size=SIZE), data_dir=out / "tfds"
    )
    assert builder.name == "nuscenes"
    config = tfds.download.DownloadConfig(manual_dir=raw)
    builder.download_and_prepare(file_format="array_record", download_config=config)
    found = {s["sample_id"].decode(): s for s in builder.as_data_source("train")}
    for stored in stored_samples(out):
        sample = found.pop(stored["sample_id"])
        for field in ("lidar_uv", "world_from_previous_camera", "world_from_next_camera"):
            np.testing.assert_array_equal(sample[field], stored[field], err_msg=field)
        assert [file.decode() for file in sample["next_files"]] == stored["next_files"]
    assert not found


def test_what_is_missing_is_said_with_the_next_command(tmp_path):
    with pytest.raises(prepared.PreparedDataError) as caught:
        prepared.open_split(tmp_path, "nuscenes", "352x640", "train")
    for word in ("v1.0-trainval", "nuscenes.org", "sweeps/", "--dataset=nuscenes", "--source=RAW"):
        assert word in str(caught.value)


# Parity of the projection


def reference_points(root, version, sample_token, channel):
    """Column, row and depth of each point before the camera, step by step from the raw tables."""

    def rows(table):
        return json.loads((root / version / f"{table}.json").read_text())

    tables = {
        table: {row["token"]: row for row in rows(table)}
        for table in ("calibrated_sensor", "ego_pose", "sensor")
    }

    def of_channel(channel):
        for row in rows("sample_data"):
            calibration = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
            sensor = tables["sensor"][calibration["sensor_token"]]
            if (
                row["is_key_frame"]
                and row["sample_token"] == sample_token
                and sensor["channel"] == channel
            ):
                return row, calibration, tables["ego_pose"][row["ego_pose_token"]]
        raise AssertionError(channel)

    sweep, lidar_mount, lidar_ego = of_channel("LIDAR_TOP")
    _, camera_mount, camera_ego = of_channel(channel)
    content = np.fromfile(root / sweep["filename"], np.float32).reshape(-1, 5)
    points = content[:, :3].astype(np.float64)
    for pose in (lidar_mount, lidar_ego):  # to the vehicle then, to the world
        points = turn_of(pose).apply(points) + pose["translation"]
    for pose in (camera_ego, camera_mount):  # to the vehicle at the image's instant, to the camera
        points = turn_of(pose).inv().apply(points - pose["translation"])
    (fx, _, cx), (_, fy, cy), _ = camera_mount["camera_intrinsic"]
    x, y, z = points[points[:, 2] > 0].T
    return fx * x / z + cx, fy * y / z + cy, z


def turn_of(pose):
    w, x, y, z = pose["rotation"]
    return Rotation.from_quat([x, y, z, w])


def reference_map(points, size, rule):
    """Pixel -> depth, point after point: SurroundDepth rounds, then tests; VFDepth the other way"""
    (height, width), depths = size, {}
    for u, v, depth in zip(*points, strict=True):
        pixel = round(u), round(v)
        a, b = pixel if rule == "surrounddepth" else (u, v)
        if 0 <= a <= width - 1 and 0 <= b <= height - 1:
            depths[pixel] = depth
    return depths


def check_projection(root, version, sample_token, sample):
    """How many pixels the two rules give; each is the reference's, direct and as stored."""
    counts = np.zeros(2, int)
    for camera in sample.cameras:
        points = reference_points(root, version, sample_token, camera.name)
        where = (
            nuscenes.read_points(sample.lidar),
            sample.lidar.world_from_lidar,
            camera.world_from_camera,
            camera.intrinsics,
            camera.size,
        )
        stored_uv, stored_m, rules = lidar.project_for_rules(*where)
        for bit, rule in enumerate(("surrounddepth", "vfdepth")):
            expected = reference_map(points, camera.size, rule)
            of_rule = (rules >> bit & 1).astype(bool)
            for uv, depth_m in (
                lidar.project_points(*where, rule),
                (stored_uv[of_rule], stored_m[of_rule]),
            ):
                found = dict(zip(map(tuple, uv.tolist()), depth_m.tolist(), strict=True))
                assert found.keys() == expected.keys() and len(found) == len(uv) > 20
                np.testing.assert_allclose(
                    [found[pixel] for pixel in expected], list(expected.values()), rtol=0, atol=1e-9
                )
            counts[bit] += len(expected)
    return counts.tolist()


def test_projection_equals_the_reference_on_the_world(pristine, tmp_path):
    rows = json.loads((pristine / VERSION / "sample.json").read_text())
    rows.sort(key=lambda row: row["timestamp"])
    tokens = {row["timestamp"]: row["token"] for row in rows}
    for scene in open_scenes(pristine, tmp_path):
        sample = scene.sample(1)
        timestamp_us = int(sample.lidar.cloud_path.name.split(".")[0].split("__")[-1])
        check_projection(pristine, VERSION, tokens[timestamp_us], sample)


def test_projection_equals_the_reference_on_the_real_key_frame(shared_dir, tmp_path):
    root = shared_dir / "real" / "nuscenes"
    (scene,) = open_scenes(root, tmp_path, ("train",))
    (row,) = json.loads((root / "v1.0-test" / "sample.json").read_text())
    counts = check_projection(root, "v1.0-test", row["token"], scene.sample(0))
    assert counts == [22134, 22112]  # the peers' own code gives as many


def test_the_real_key_frame_is_read_without_its_missing_tables(shared_dir, out):
    root = shared_dir / "real" / "nuscenes"
    assert not (root / "v1.0-test" / "log.json").exists()
    assert run(root, out, splits=("train",)).samples == {"train": 1}
    (sample,) = stored_samples(out)
    assert sample["sample_id"] == "scene-0061/000000"
    assert sample["camera_names"] == list(nuscenes.CAMERAS)
    assert sample["native_sizes"].tolist() == [[900, 1600]] * 6
    assert (sample["lidar_counts"] > 3000).all()
    assert sample["previous_files"] == sample["next_files"] == [""] * 6
    with pytest.raises(RecordingError, match=r"scene\.json: no scene is of split val; .*: train"):
        run(root, out / "b")


def test_a_damaged_plan_is_named_instead_of_used(raw, tmp_path):
    """A flipped bit may leave valid JSON with another pose in it."""
    open_scenes(raw, tmp_path)
    path = tmp_path / "train-00001.json"
    whole = path.read_bytes()
    place = whole.index(b"0.", len(whole) // 2) + 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(RecordingError, match=r"train-00001\.json: the plan of a scene is damaged"):
        open_scenes(raw, tmp_path)
    path.write_bytes(whole)
    open_scenes(raw, tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: the list of planned scenes is damaged"):
        open_scenes(raw, tmp_path)


# Splits

# Numbers of the official training scenes (nuscenes-devkit, utils/splits.py).
TRAIN = (
    "1-2,4-11,19-34,41-76,120-135,138-139,149-152,154-155,157-168,170-185,187-188,190-196,199-200,"
    "202-204,206-214,218-220,222,224-264,283-306,315-318,321,323-324,328,347-386,388-403,405-408,"
    "410-459,461-465,467-469,471-472,474-480,499-502,504-515,517-518,525-539,541-546,566,568,"
    "570-578,580,582-600,639-679,681,683-689,695-698,700-701,703-719,726-728,730-731,733-741,744,"
    "746-747,749-752,757-765,767-769,786-787,789-792,803-806,808-813,815-817,819-822,847-856,858,"
    "860-866,868-873,875-878,880,882-903,945,947,949,952-953,955-961,975-984,988-992,994-1025,"
    "1044-1058,1074-1102,1104-1110"
)


def test_splits_are_the_official_ones():
    numbers = [
        number
        for part in TRAIN.split(",")
        for number in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)
    ]
    assert len(numbers) == 700
    for number in numbers:
        assert nuscenes.split_of(f"scene-{number:04d}", "v1.0-trainval") == "train"
    every = [nuscenes.split_of(f"scene-{n:04d}", "v1.0-trainval") for n in range(1, 1111)]
    assert every.count("val") == every.count("test") == 150
    mini = {61, 103, 553, 655, 757, 796, 916, 1077, 1094, 1100}
    val = {n for n in mini if nuscenes.split_of(f"scene-{n:04d}", "v1.0-mini") == "val"}
    assert val == {103, 916}
    assert nuscenes.split_of("scene-0553", "v1.0-trainval") == "val"
    assert nuscenes.split_of("our street 3", "v1.0-trainval") == "train"


def test_a_split_that_the_version_lacks_is_refused_by_name(raw, out):
    with pytest.raises(RecordingError, match=r"split test; splits in v1\.0-trainval: train, val"):
        run(raw, out, splits=("train", "test"))


def test_the_tables_are_found_or_their_absence_explained(raw, tmp_path, out):
    assert nuscenes.find(raw) == nuscenes.find(raw / VERSION) == raw / VERSION
    with pytest.raises(PrepareError, match=r"v1\.0-mini or v1\.0-trainval"):
        run(tmp_path / "absent", out)
    shutil.copytree(raw / VERSION, raw / "v1.0-mini")
    with pytest.raises(RecordingError, match=r"several versions \(v1\.0-mini, v1\.0-trainval\)"):
        run(raw, out)
    assert run(raw / VERSION, out).samples["val"] == KEY_FRAMES


# Tables that were cut, moved or changed


def edit(root, table, change):
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    changed = change(rows)
    write_json(path, changed if isinstance(changed, list) else rows)
    return path


def key_row(rows, channel="CAM_BACK", scene=TRAIN_SCENES[0], place=1):
    """A key-frame row of `sample_data`."""
    found = [r for r in rows if r["is_key_frame"] and f"/{scene}__{channel}__" in r["filename"]]
    return sorted(found, key=lambda row: row["timestamp"])[place]


def test_a_neighbour_without_rows_is_none(raw, tmp_path):
    def cut(rows):
        del key_row(rows, "CAM_FRONT")["prev"]
        key_row(rows, "CAM_BACK")["prev"] = None
        gone.add(key_row(rows, "CAM_BACK_LEFT")["prev"])
        gone_poses.add(key_row(rows, "CAM_BACK_RIGHT")["prev"])
        return [row for row in rows if row["token"] not in gone]

    gone, gone_poses = set(), set()
    edit(raw, "sample_data", cut)
    edit(raw, "ego_pose", lambda rows: [r for r in rows if r["token"] not in gone_poses])
    sample = open_scenes(raw, tmp_path / "plan")[0].sample(1)
    none = {camera.name for camera in sample.cameras if camera.previous is None}
    assert none == {"CAM_FRONT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"}
    assert all(camera.next for camera in sample.cameras)


def test_other_sensors_and_tables_are_not_asked_for(raw, out):
    for table in ("log", "map", "instance", "sample_annotation", "category", "visibility"):
        (raw / VERSION / f"{table}.json").unlink()
    edit(
        raw, "sensor", lambda rows: rows.append(dict(token="r", channel="RADAR", modality="radar"))
    )
    edit(raw, "calibrated_sensor", lambda rows: rows.append(dict(token="c", sensor_token="r")))
    edit(
        raw,
        "sample_data",
        lambda rows: rows.append(
            dict(key_row(rows), token="d", calibrated_sensor_token="c", filename=None)
        ),
    )
    assert run(raw, out).samples["train"] == 2 * KEY_FRAMES


def test_large_tables_are_read_in_pieces(raw, tmp_path, monkeypatch):
    whole = [scene.sample(1) for scene in open_scenes(raw, tmp_path / "a")]
    monkeypatch.setattr(nuscenes_tables, "_CHUNK", 900)  # a row has up to 700 characters
    pieces = [scene.sample(1) for scene in open_scenes(raw, tmp_path / "b")]
    for a, b in zip(whole, pieces, strict=True):
        for left, right in zip(a.cameras, b.cameras, strict=True):
            assert left.image_path == right.image_path
            np.testing.assert_array_equal(left.world_from_camera, right.world_from_camera)


def test_a_plan_of_other_tables_is_not_used(raw, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("fsmde_jax.prepare.scenes.write_scene", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(raw, out)
    assert list(out.rglob("plan/plan.json"))
    edit(raw, "sample", lambda rows: rows.pop())
    assert sum(run(raw, out).samples.values()) == 3 * KEY_FRAMES - 1


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_interrupted_plan_is_made_again(raw, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(nuscenes, "_described", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(raw, out)
    assert run(raw, out).samples == {"train": 2 * KEY_FRAMES, "val": KEY_FRAMES}


def test_a_finished_dataset_is_left_alone_and_another_source_refused(raw, out):
    first = run(raw, out)
    before = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    assert run(raw, out).already_there
    edit(raw, "sample", lambda rows: rows.pop())
    with pytest.raises(PrepareError, match="dataset_json_sha256"):
        run(raw, out)
    assert {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")} == before


# Bad input


def blob(channel, change, place=1):
    """Damages the file of a key frame of the first scene."""

    def apply(root):
        rows = json.loads((root / VERSION / "sample_data.json").read_text())
        path = root / key_row(rows, channel, place=place)["filename"]
        change(path)
        return path

    return apply


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 20 * 20 - 3])


def points(value, rows=5):
    return lambda path: path.write_bytes(np.full((rows, 5), value, np.float32).tobytes())


def rows_of(table, change, named=None):
    """Edits a table; the error names it, or the table `named`."""
    return lambda root: edit(root, table, change).with_name(f"{named or table}.json")


def data(**fields):
    """Sets fields of the row of one key frame; None is what an empty cell becomes."""
    return lambda rows: key_row(rows).update(fields)


def without_data(field):
    return lambda rows: key_row(rows).pop(field)


def pose(**fields):
    """Sets fields of the pose of one key frame."""

    def apply(root):
        rows = json.loads((root / VERSION / "sample_data.json").read_text())
        token = key_row(rows)["ego_pose_token"]
        return edit(root, "ego_pose", lambda poses: find(poses, token).update(fields))

    return apply


def find(rows, token):
    return next(row for row in rows if row["token"] == token)


def calibration(**fields):
    """Sets fields of the calibration of one camera of the first scene."""

    def apply(root):
        rows = json.loads((root / VERSION / "sample_data.json").read_text())
        token = key_row(rows)["calibrated_sensor_token"]
        return edit(root, "calibrated_sensor", lambda c: find(c, token).update(fields))

    return apply


def without_pose(root):
    rows = json.loads((root / VERSION / "sample_data.json").read_text())
    token = key_row(rows)["ego_pose_token"]
    edit(root, "ego_pose", lambda poses: [row for row in poses if row["token"] != token])
    return root / VERSION / "sample_data.json"


def neighbour_pose(root):
    rows = json.loads((root / VERSION / "sample_data.json").read_text())
    token = find(rows, key_row(rows)["prev"])["ego_pose_token"]
    return edit(root, "ego_pose", lambda p: find(p, token).update(rotation=[1, 1, 0, 0]))


def only(*channels):
    """Keeps key frames of some channels of one sample."""

    def change(rows):
        sample = key_row(rows)["sample_token"]
        return [
            row
            for row in rows
            if row["sample_token"] != sample
            or not row["is_key_frame"]
            or any(f"__{channel}__" in row["filename"] for channel in channels)
        ]

    return change


def no_samples(rows):
    scene = min(rows, key=lambda row: row["timestamp"])["scene_token"]
    return [row for row in rows if row["scene_token"] != scene]


def no_sweeps(root):
    sweeps = sorted(root.glob(f"samples/LIDAR_TOP/{TRAIN_SCENES[0]}__*"))
    for path in sweeps:
        path.unlink()
    return sweeps[0]


SQUARE = [[20.0, 0, 9], [0, 20, 9], [0, 0, 1]]
_SCENE = {"lost_samples": KEY_FRAMES, "skipped_entries": 1}
_ALL = {"lost_samples": KEY_FRAMES, "skipped_entries": KEY_FRAMES}
BREAKS = {
    "image missing": Break(blob("CAM_BACK", Path.unlink), "missing"),
    "image truncated": Break(blob("CAM_BACK", cut_in_half), "truncated"),
    "image of another size": Break(
        blob("CAM_BACK", lambda path: Image.new("RGB", (9, 7)).save(path)), "7x9"
    ),
    "sweep missing": Break(blob("LIDAR_TOP", Path.unlink), "missing"),
    "sweep truncated": Break(blob("LIDAR_TOP", cut_in_half), "truncated"),
    "sweep empty": Break(blob("LIDAR_TOP", points(1, rows=0)), "no points"),
    "sweep with NaN": Break(blob("LIDAR_TOP", points(np.nan)), "NaN"),
    "all sweeps of a scene missing": Break(no_sweeps, "partial", **_SCENE),
    "scene without samples": Break(rows_of("sample", no_samples), "scene-0001", **_SCENE),
    "no file name": Break(rows_of("sample_data", data(filename=None)), "`filename`"),
    "no height": Break(rows_of("sample_data", data(height=None)), "`height`"),
    "size of 0": Break(rows_of("sample_data", data(width=0)), "`width` is 0"),
    "no calibration token": Break(
        rows_of("sample_data", without_data("calibrated_sensor_token")), "`calibrated_sensor_token`"
    ),
    "no token": Break(rows_of("sample_data", without_data("token")), "`token`"),
    "calibration nowhere": Break(
        rows_of("sample_data", data(calibrated_sensor_token="x")), "not in calibrated_sensor.json"
    ),
    "calibration token is a list": Break(
        rows_of("sample_data", data(calibrated_sensor_token=["x"])), "`calibrated_sensor_token`"
    ),
    "pose nowhere": Break(without_pose, "not in ego_pose.json"),
    "pose token is a number": Break(
        rows_of("sample_data", data(ego_pose_token=7)), "`ego_pose_token`"
    ),
    "pose not a rotation": Break(pose(rotation=[1, 0, 0, 1]), "norm 1.41421"),
    "pose of three numbers": Break(pose(rotation=[1, 0, 0]), "`rotation` has 3 numbers of 4"),
    "pose without translation": Break(pose(translation=None), "`translation`"),
    "translation infinite": Break(pose(translation=[0, np.inf, 0]), "not a finite number"),
    "a neighbour's pose not a rotation": Break(neighbour_pose, "norm", **_ALL),
    "a neighbour of another sensor": Break(
        rows_of("sample_data", lambda r: key_row(r).update(prev=key_row(r, "CAM_FRONT")["prev"])),
        "`prev` leads to a row of another sensor",
    ),
    "a channel twice": Break(
        rows_of("sample_data", lambda rows: rows.append(dict(key_row(rows), token="again"))),
        "second row of CAM_BACK",
    ),
    "no sweep in the sample": Break(
        rows_of("sample_data", only(*nuscenes.CAMERAS)), "no LIDAR_TOP"
    ),
    "no camera in the sample": Break(rows_of("sample_data", only("LIDAR_TOP")), "cameras none"),
    "sensor nowhere": Break(calibration(sensor_token="x"), "not in sensor.json", **_ALL),
    "intrinsics empty": Break(calibration(camera_intrinsic=[]), "3x3", **_ALL),
    "intrinsics NaN": Break(
        calibration(camera_intrinsic=[[20, 0, np.nan], *SQUARE[1:]]), "not a finite", **_ALL
    ),
    "focal length negative": Break(
        calibration(camera_intrinsic=[[-20, 0, 9], *SQUARE[1:]]), "positive", **_ALL
    ),
    "intrinsics transposed": Break(
        calibration(camera_intrinsic=np.transpose(SQUARE).tolist()), "[0, 0, 1]", **_ALL
    ),
    "extrinsics not a rotation": Break(calibration(rotation=[0.9, 0, 0, 0]), "norm 0.9", **_ALL),
}


def table_file(table, change):
    def apply(root):
        path = root / VERSION / f"{table}.json"
        change(path)
        return path

    return apply


# Without these tables no sample can be told from another, so they stop even `--on_error=skip`.
FATAL = {
    **{
        f"{table} missing": Break(table_file(table, Path.unlink), "missing")
        for table in nuscenes.TABLES
    },
    "table cut short": Break(table_file("sample_data", cut_in_half), "cut short"),
    "table empty": Break(table_file("ego_pose", lambda path: path.write_text("")), "not a list"),
    "table not a list": Break(table_file("sensor", lambda path: path.write_text("{}")), "list"),
    "table not text": Break(
        table_file("sensor", lambda path: path.write_bytes(b"[\xff]")), "not valid JSON"
    ),
    "row not an object": Break(rows_of("sample", lambda rows: rows.insert(2, 7)), "rows[2]"),
    "row without token": Break(rows_of("sensor", lambda rows: rows[3].pop("token")), "rows[3]"),
    "token twice": Break(
        rows_of("calibrated_sensor", lambda rows: rows.append(rows[0])), "second row"
    ),
    "key frame unknown": Break(
        rows_of("sample_data", lambda rows: rows[5].update(is_key_frame=None)), "`is_key_frame`"
    ),
    "sample without time": Break(
        rows_of("sample", lambda rows: rows[0].update(timestamp="1")), "`timestamp`"
    ),
    "sample without scene": Break(
        rows_of("sample", lambda rows: rows[0].update(scene_token=1)), "`scene_token`"
    ),
    "scene without name": Break(rows_of("scene", lambda rows: rows[1].update(name=None)), "`name`"),
    "scene name is a path": Break(
        rows_of("scene", lambda rows: rows[1].update(name="../a")), "plain name"
    ),
    "scene twice": Break(
        rows_of("scene", lambda rows: rows[1].update(name=TRAIN_SCENES[0])), "second scene"
    ),
}


@pytest.mark.parametrize("name", [*BREAKS, *FATAL])
def test_broken_input_is_named(raw, tmp_path, name):
    read_everything(raw, tmp_path / "sound")
    fault = (BREAKS | FATAL)[name]
    path = fault.apply(raw)
    with pytest.raises(RecordingError) as caught:
        read_everything(raw, tmp_path / "plan")
    assert caught.value.path.resolve() == path.resolve()
    assert str(path) in str(caught.value) and fault.says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BREAKS)
def test_bad_input_is_skipped_and_counted(raw, out, name):
    fault = BREAKS[name]
    path = fault.apply(raw)
    summary = run(raw, out, on_error="skip")
    kept = 2 * KEY_FRAMES - fault.lost_samples
    assert summary.samples == {"train": kept, "val": KEY_FRAMES}
    assert len(summary.skipped) == fault.skipped_entries
    for entry in summary.skipped:
        assert TRAIN_SCENES[0] in entry["what"]
        assert str(path) in entry["why"] and fault.says in entry["why"]


@pytest.mark.parametrize("name", FATAL)
def test_broken_tables_leave_nothing_that_looks_whole(raw, out, name):
    FATAL[name].apply(raw)
    with pytest.raises(RecordingError):
        run(raw, out, on_error="skip")
    assert not [path for path in out.rglob(prepared.VERSION) if path.is_dir()]


def test_the_command_fails_on_a_missing_sweep_unless_it_is_skipped(raw, out):
    path = BREAKS["sweep missing"].apply(raw)
    python = [sys.executable, "-m", "fsmde_jax.prepare", "--dataset=nuscenes", f"--source={raw}"]
    python += [f"--data_dir={out}", "--num_workers=1"]
    done = [
        subprocess.run([*python, *more], cwd=REPOSITORY, capture_output=True, text=True)
        for more in ((), ("--on_error=skip",))
    ]
    assert [run.returncode for run in done] == [1, 0], done
    assert f"error: {path}: the sweep is missing" in done[0].stderr
    assert "Traceback" not in done[0].stderr
    assert "1 skipped" in done[1].stdout and str(path) in done[1].stdout
    assert (out / "nuscenes/352x640/2.0.0").is_dir()


# How VFDepth masks it


def test_vfdepths_masks_are_grey_at_their_edge_and_count_there(pristine, tmp_path):
    """Resized to the network with antialiasing, every value above 0 is road scene.

    The masks are black from row 30 of 50, which is row 15 of 25. There Lanczos leaves 14 of 255,
    in row 16 nothing, and in row 17 a ripple of 1.
    """
    config = default_config()
    config.data.update({"dataset": "nuscenes", "data_dir": str(tmp_path / "data")})
    config.data.update({"config_name": "small", "cameras": ()})
    run(pristine, tmp_path / "data", image_size=(25, 40))
    (tmp_path / "masks").mkdir()
    grey = np.repeat(np.where(np.arange(50) < 30, 255, 0).astype(np.uint8)[:, None], 80, axis=1)
    for name in nuscenes.CAMERAS:
        Image.fromarray(grey).save(tmp_path / "masks" / f"{name}.png")
    below = {}
    for protocol in ("ssdepth", "vfdepth"):
        config.evaluation.update({"protocol": protocol, "masks": str(tmp_path / "masks")})
        mesh = sharding.make_mesh(config.mesh)
        batch = next(iter(measure._batches(config, "val", mesh)))
        rows = np.asarray(batch["lidar_uv"])[..., 1][np.asarray(batch["lidar_depth_m"]) > 0]
        below[protocol] = set(rows[rows >= (29 if protocol == "ssdepth" else 15)].tolist())
    assert below == {"ssdepth": {29}, "vfdepth": {15, 17}}
