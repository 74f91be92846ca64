import functools
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import dgp_fixture
import numpy as np
import pytest
import tensorflow_datasets as tfds
from dgp_fixture import BREAKS, HEIGHT, NUM_SAMPLES, WIDTH
from PIL import Image

from fsmde_jax import rig
from fsmde_jax.data import lidar, prepared
from fsmde_jax.data.prepared import PreparedSplit
from fsmde_jax.data.readers import dgp, recording
from fsmde_jax.data.readers.recording import RecordingError
from fsmde_jax.errors import UserError
from fsmde_jax.prepare import check, scenes
from fsmde_jax.prepare.folder import Summary, prepare, verify
from fsmde_jax.prepare.scenes import PrepareError

SIZE = (15, 24)
NATIVE = (HEIGHT, WIDTH)
RING = list(dgp_fixture.RING_YAW_DEG)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def raw(tmp_path):
    return dgp_fixture.write_recording(tmp_path / "raw")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(raw, out, **options):
    return prepare(
        **{"dataset": "ddad", "source": raw, "data_dir": out, "image_size": SIZE} | options
    )


def split_of(out, split="train", config_name="15x24", dataset="ddad"):
    return prepared.open_split(out, dataset, config_name, split)


def looks_whole(out):
    return [path for path in out.rglob(prepared.VERSION) if path.is_dir()]


def direct_samples(raw, split):
    for scene_id, path in dgp.scene_paths(raw / "tiny.json", split).items():
        scene = dgp.Scene(path, scene_id)
        yield from map(scene.sample, range(len(scene)))


def assert_same_samples(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# What is stored


def test_stored_samples_equal_direct_reading(raw, out):
    summary = run(raw, out, image_size=NATIVE, image_format="png")
    assert summary.scenes == {"train": 2, "val": 1}
    assert summary.samples == {"train": 2 * NUM_SAMPLES, "val": NUM_SAMPLES}
    for split in ("train", "val"):
        source = split_of(out, split, f"{HEIGHT}x{WIDTH}_png")
        for stored, sample in zip(source, direct_samples(raw, split), strict=True):
            check_stored(stored, sample)


def check_stored(stored, sample):
    cameras = {camera.name: camera for camera in sample.cameras}
    assert stored["camera_names"] == RING
    assert stored["scene_id"] == sample.scene_id and stored["index"] == sample.index
    assert stored["sample_id"] == f"{sample.scene_id}/{sample.index:06d}"
    assert stored["previous_index"] == sample.index - 1
    assert stored["next_index"] == (sample.index + 1 if sample.index + 1 < NUM_SAMPLES else -1)
    ends = np.cumsum(stored["lidar_counts"])
    assert ends[-1] == len(stored["lidar_uv"]) == len(stored["lidar_depth_m"])
    points_m = dgp.read_points(sample.lidar)
    for i, name in enumerate(RING):
        camera = cameras[name]
        uv, depth_m = lidar.project_points(
            points_m,
            sample.lidar.world_from_lidar,
            camera.world_from_camera,
            camera.intrinsics,
            camera.size,
        )
        here = slice(ends[i] - stored["lidar_counts"][i], ends[i])
        assert len(uv) > 10
        np.testing.assert_array_equal(stored["lidar_uv"][here], uv)
        np.testing.assert_array_equal(stored["lidar_depth_m"][here], depth_m.astype(np.float32))
        np.testing.assert_array_equal(stored["images"][i], np.asarray(recording.read_image(camera)))
        np.testing.assert_array_equal(stored["native_intrinsics"][i], camera.intrinsics)
        np.testing.assert_array_equal(stored["world_from_camera"][i], camera.world_from_camera)
        np.testing.assert_array_equal(stored["vehicle_from_camera"][i], camera.vehicle_from_camera)
        assert tuple(stored["native_sizes"][i]) == camera.size


def test_images_are_resized_with_their_intrinsics(raw, out):
    run(raw, out, image_size=(15, 16))
    (stored, *_) = split_of(out, "train", "15x16")
    assert stored["images"].shape == (6, 15, 16, 3) and stored["images"].dtype == np.uint8
    assert stored["intrinsics"].dtype == np.float64
    expected = rig.scale_intrinsics(stored["native_intrinsics"], NATIVE, (15, 16))
    np.testing.assert_array_equal(stored["intrinsics"], expected)
    np.testing.assert_allclose(stored["intrinsics"][0, 0, 0], 25.0 * 16 / 48)
    np.testing.assert_allclose(stored["intrinsics"][0, 1, 2], 15.2 * 15 / 30)


def test_shrinking_averages_instead_of_aliasing(raw, out):
    """Stripes of one native pixel become grey."""
    stripes = np.zeros((*NATIVE, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(raw / "000000/rgb/CAMERA_01/2000.png")
    run(raw, out, image_size=(10, 12), image_format="png")
    (stored, *_) = split_of(out, "train", "10x12_png")
    assert abs(stored["images"][0][:, 2:-2].astype(float) - 127.5).max() < 15


def test_the_number_of_cameras_may_vary(raw, out):
    def drop_two(scene):
        for sample in scene["samples"][:2]:
            sample["datum_keys"] = [
                key for key in sample["datum_keys"] if key[:9] not in ("CAMERA_05", "CAMERA_09")
            ]

    dgp_fixture._edit(dgp_fixture.scene_json(raw, "000000"), drop_two)
    summary = run(raw, out)
    assert list(summary.points_per_image) == RING
    assert summary.images["CAMERA_05"] == 7 and summary.images["CAMERA_01"] == 9
    source = split_of(out)
    assert source[0]["camera_names"] == ["CAMERA_01", "CAMERA_07", "CAMERA_08", "CAMERA_06"]
    assert source[0]["images"].shape[0] == source[0]["lidar_counts"].shape[0] == 4
    assert source[2]["camera_names"] == source.rig["cameras"] == RING


def test_one_camera_works(tmp_path, out):
    run(dgp_fixture.write_recording(tmp_path / "one", ("CAMERA_09",)), out)
    sample = split_of(out)[3]
    assert sample["images"].shape == (1, *SIZE, 3) and sample["world_from_camera"].shape == (
        1,
        4,
        4,
    )


def test_several_processes_write_the_same(raw, out):
    here = run(raw, out).directory
    apart = run(raw, out / "b", num_workers=2).directory
    for shard in here.glob("*.array_record-*"):
        assert shard.read_bytes() == (apart / shard.name).read_bytes()
    for split in ("train", "val"):
        assert_same_samples(split_of(out, split), split_of(out / "b", split))


def test_dense_truth_of_the_world_by_nearest_pixel(raw, out):
    rng = np.random.default_rng(0)
    dense = rng.uniform(1, 90, NATIVE).astype(np.float16)
    dense[:5] = np.inf
    for image in raw.glob("*/rgb/*/*"):
        folder = image.parents[2] / "depth" / image.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{image.stem}.npz", data=dense)
    run(raw, out, dataset="world", dense_depth=True, config_name="pretrain_15x24")
    sample = split_of(out, "val", "pretrain_15x24", "world")[0]
    assert sample["dense_depth_m"].shape == (6, *SIZE)
    expected = np.where(np.isfinite(dense), dense, 0)[1::2, 1::2]
    np.testing.assert_array_equal(sample["dense_depth_m"][4], expected)
    run(raw, out, dataset="world")
    assert "dense_depth_m" not in split_of(out, "val", dataset="world")[0]
    np.savez(folder / f"{image.stem}.npz", data=dense[:4])
    with pytest.raises(RecordingError, match=r"depth/.*npz: `data` is \(4, 48\)"):
        run(raw, out / "b", dataset="world", dense_depth=True)


def test_tfds_builds_the_same_samples_its_own_way(raw, out):
    from tfds_builders import base
    from tfds_builders.ddad import ddad_dataset_builder as ddad

    run(raw, out)
    (raw / "notes.json").unlink()
    config = base.RigConfig(name="15x24", image_size=SIZE)
    builder = ddad.Builder(config=config, data_dir=out / "tfds")
    assert builder.name == "ddad"
    config = tfds.download.DownloadConfig(manual_dir=raw)
    builder.download_and_prepare(file_format="array_record", download_config=config)
    found = {
        sample["sample_id"].decode(): sample["lidar_uv"]
        for sample in builder.as_data_source("train")
    }
    for stored in split_of(out):
        np.testing.assert_array_equal(found.pop(stored["sample_id"]), stored["lidar_uv"])
    assert not found


def test_real_sample(shared_dir, out):
    summary = run(shared_dir / "real" / "dgp", out, image_size=(96, 160))
    assert summary.samples == {"train": 3, "val": 3}
    assert list(summary.points_per_image) == ["CAMERA_01", "CAMERA_05", "CAMERA_06"]
    sample = split_of(out, "val", "96x160")[2]
    assert sample["native_sizes"].tolist() == [[1216, 1936]] * 3
    assert sample["images"].std() > 20
    assert (sample["lidar_counts"] > 4000).all()


# Reading


def test_a_split_is_random_access_and_travels_to_workers(raw, out):
    run(raw, out)
    source = split_of(out)
    again = pickle.loads(pickle.dumps(source))
    assert len(again) == 6 and again.directory == source.directory
    assert_same_samples([again[4]], [source[np.int64(4)]])
    for index in (-1, 6):
        with pytest.raises(IndexError):
            source[index]


def test_what_is_missing_is_said_with_the_next_command(raw, out):
    with pytest.raises(prepared.PreparedDataError) as caught:
        split_of(out)
    for word in ("ddad_train_val", "257 GB", "CC BY-NC-SA 4.0", "--source=RAW", "--config_name"):
        assert word in str(caught.value)
    with pytest.raises(prepared.PreparedDataError, match=r"demo\.py"):
        split_of(out, dataset="world")
    run(raw, out)
    with pytest.raises(prepared.PreparedDataError, match=r"no split 'test'; it has train, val"):
        split_of(out, "test")


def test_optional_fields_come_back_as_they_were_stored(raw, out, monkeypatch):
    from tfds_builders import base
    from tfds_builders.ddad import ddad_dataset_builder as ddad

    def png(picture):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "png")
        return buffer.getvalue()

    rng = np.random.default_rng(0)
    pictures = {
        name: rng.integers(0, 256, (6, *SIZE, *channels)).astype(np.uint8)
        for name, channels in {
            "previous_images": (3,),
            "next_images": (3,),
            "class_map": (),
            "mirror_strength": (),
            "images_without_mirrors": (3,),
        }.items()
    }
    encoded = {name: list(map(png, rows)) for name, rows in pictures.items()}
    others = {
        "dense_depth_m": rng.uniform(0, 90, (6, *SIZE)).astype(np.float16),
        "world_from_previous_camera": rng.normal(size=(6, 4, 4)),
        "world_from_next_camera": rng.normal(size=(6, 4, 4)),
    }

    example = ddad.Builder.example

    def make_builder(dataset, options):
        stored = (*pictures, *others)
        assert set(stored) == set(base.optional_features(base.RigConfig(name="all")))
        config = base.RigConfig(**dict(options), optional=stored)
        return ddad.Builder(config=config, data_dir=os.devnull)

    monkeypatch.setattr(scenes, "make_builder", make_builder)
    monkeypatch.setattr(
        ddad.Builder,
        "example",
        lambda self, sample: {**example(self, sample), **encoded, **others},
    )
    run(raw, out, image_format="png")
    sample = split_of(out, "val", "15x24_png")[1]
    for name, expected in pictures.items():
        assert sample[name].dtype == np.uint8
        np.testing.assert_array_equal(sample[name], expected, err_msg=name)
    for name, expected in others.items():
        np.testing.assert_array_equal(sample[name], expected, err_msg=name)


def test_an_older_version_is_refused_with_the_command_and_left_alone(raw, out):
    first = run(raw, out, image_format="png").directory
    assert first.name == "2.0.0"
    old = first.rename(first.with_name("1.0.0"))
    before = {path: identity(path) for path in old.rglob("*")}
    with pytest.raises(prepared.PreparedDataError) as caught:
        split_of(out, config_name="15x24_png")
    for word in (f"{old} holds version 1.0.0", "version 2.0.0", "you may delete afterwards"):
        assert word in str(caught.value)
    assert f"--source={raw} --data_dir={out} --image_size=15x24 --image_format=png" in str(
        caught.value
    )
    assert not run(raw, out, image_format="png").already_there
    assert len(split_of(out, config_name="15x24_png")) == 6
    assert {path: identity(path) for path in old.rglob("*")} == before


# Bad input


@pytest.mark.parametrize("name", BREAKS)
def test_bad_input_stops_with_nothing_that_looks_whole(raw, out, name):
    path = BREAKS[name].apply(raw)
    with pytest.raises(RecordingError) as caught:
        run(raw, out)
    assert caught.value.path == path
    assert not looks_whole(out) and not list(out.rglob(".unfinished-*"))


@pytest.mark.parametrize("name", BREAKS)
def test_bad_input_is_skipped_and_counted(raw, out, name):
    fault = BREAKS[name]
    path = fault.apply(raw)
    summary = run(raw, out, on_error="skip")
    kept = 2 * NUM_SAMPLES - fault.lost_samples
    assert summary.samples == {"train": kept, "val": NUM_SAMPLES}
    assert len(summary.skipped) == fault.skipped_entries
    for entry in summary.skipped:
        assert "00000" in entry["what"] and str(path) in entry["why"] and fault.says in entry["why"]
    assert f"{fault.skipped_entries} skipped" in summary.table() and str(path) in summary.table()
    assert json.loads((summary.directory / "skipped.json").read_text()) == summary.skipped
    source = split_of(out)
    assert len(source) == len(list(source)) == kept
    assert all(sample["camera_names"] == RING for sample in source)


def test_neighbours_of_a_skipped_sample_are_not_linked(raw, out):
    BREAKS["cloud missing"].apply(raw)
    run(raw, out, on_error="skip")
    links = [(s["index"], s["previous_index"], s["next_index"]) for s in split_of(out)]
    assert links == [(0, -1, -1), (2, -1, -1), (0, -1, 1), (1, 0, 2), (2, 1, -1)]


def test_long_lists_of_skipped_samples_are_cut_in_the_table(out):
    summary = Summary(
        out,
        {"train": 1},
        {"train": 1},
        {},
        {},
        [{"what": f"w{i}", "why": "y"} for i in range(25)],
        1.0,
    )
    table = summary.table()
    assert "w9" in table and "w10" not in table and "15 more" in table and "25 skipped" in table


def test_a_split_without_a_usable_sample_is_an_error(raw, out):
    (raw / "000002/scene_abc.json").unlink()
    with pytest.raises(PrepareError, match=r"every sample of split 'val' was skipped.*scene_abc"):
        run(raw, out, on_error="skip")
    assert not looks_whole(out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dataset": "kitti"}, "ddad, world"),
        ({"image_format": "bmp"}, "jpeg or png"),
        ({"on_error": "pray"}, "stop or skip"),
        ({"dense_depth": True}, "no dense truth"),
        ({"image_size": (0, 4)}, "positive"),
        ({"config_name": "../up"}, "plain folder name"),
        ({"splits": ("train", "test")}, "no split 'test'"),
    ],
)
def test_wrong_options_are_refused(raw, out, options, says):
    with pytest.raises(ValueError, match=says):
        run(raw, out, **options)
    assert not looks_whole(out)


def test_missing_source_says_what_to_download(tmp_path, out):
    with pytest.raises(PrepareError) as caught:
        run(tmp_path / "nothing", out)
    for word in (
        "nothing",
        "ddad_train_val",
        "257 GB",
        "CC BY-NC-SA 4.0",
        "ddad.json",
        "--source=RAW",
    ):
        assert word in str(caught.value)
    assert not out.exists()


# Interruption


def identity(path):
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def interrupt_after(monkeypatch, num_scenes):
    write_scene, made = scenes.write_scene, []

    def stop_later(task, tick):
        if len(made) == num_scenes:
            raise KeyboardInterrupt
        made.append(task.scene_id)
        return write_scene(task, tick)

    monkeypatch.setattr(scenes, "write_scene", stop_later)
    return made


def test_an_interrupted_run_continues_without_redoing_scenes(raw, out, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(raw, out)
    assert not looks_whole(out)
    with pytest.raises(prepared.PreparedDataError, match="interrupted") as caught:
        split_of(out)
    assert f"--source={raw} " in str(caught.value) and "--image_size=15x24" in str(caught.value)
    (shard,) = out.rglob("*array_record*")
    before = identity(shard)
    made = interrupt_after(monkeypatch, 9)
    summary = run(raw, out)
    assert made == ["000001", "000002"]
    assert summary.samples == {"train": 6, "val": 3}
    assert identity(summary.directory / shard.name) == before
    assert_same_samples(list(split_of(out)), fresh(raw, out))
    assert not list(out.rglob(".unfinished-*")) and not list(out.rglob("*incomplete"))


def fresh(raw, out):
    run(raw, out / "fresh")
    return list(split_of(out / "fresh"))


@pytest.mark.parametrize("damage", ["shard cut", "shard gone", "shard flipped", "scene changed"])
def test_a_finished_scene_that_no_longer_holds_is_redone(raw, out, monkeypatch, damage):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(raw, out)
    shard = next(out.rglob("*train.array_record-00000*"))
    if damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif damage == "shard gone":
        shard.unlink()
    elif damage == "shard flipped":
        flip_a_bit(shard)
    else:
        dgp_fixture._edit(dgp_fixture.scene_json(raw, "000000"), lambda s: s["samples"].pop())
    made = interrupt_after(monkeypatch, 9)
    run(raw, out)
    assert made == ["000000", "000002"]
    assert_same_samples(list(split_of(out)), fresh(raw, out))


def test_what_was_skipped_is_tried_again_under_stop(raw, out, monkeypatch):
    path = BREAKS["png truncated"].apply(raw)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(raw, out, on_error="skip")
    with pytest.raises(RecordingError) as caught:
        run(raw, out)
    assert caught.value.path == path


def test_leftovers_of_another_configuration_or_source_are_refused(raw, out, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(raw, out, config_name="mine")
    with pytest.raises(PrepareError, match=r"image_size=\[15, 24\].*image_size=\[30, 48\]"):
        run(raw, out, config_name="mine", image_size=NATIVE)
    other = dgp_fixture.write_recording(tmp_path / "other", seed=1)
    with pytest.raises(PrepareError) as caught:
        run(other, out, config_name="mine")
    assert str(raw) in str(caught.value) and str(other) in str(caught.value)


def test_a_run_that_finished_no_scene_stands_in_nobodys_way(raw, out):
    fault = BREAKS["image missing"]
    fault.apply(raw)
    with pytest.raises(RecordingError):
        run(raw, out, config_name="mine")
    summary = run(raw, out, config_name="mine", image_size=NATIVE, on_error="skip")
    assert summary.samples["train"] == 5


def test_a_recording_that_moved_is_the_same_one(raw, out, tmp_path):
    run(raw, out)
    shutil.copytree(raw, tmp_path / "moved")
    shutil.rmtree(raw)
    assert run(tmp_path / "moved", out).already_there
    image = next((tmp_path / "moved").rglob("rgb/*/*"))
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(PrepareError, match=f"another version of .*{image.name}"):
        run(tmp_path / "moved", out)


def test_a_finished_dataset_is_left_alone_if_it_is_the_same(raw, out, tmp_path):
    first = run(raw, out)
    files = {path: identity(path) for path in first.directory.rglob("*")}
    again = run(raw, out)
    assert again.already_there and "already prepared" in again.table()
    assert again.samples == first.samples and again.points_per_image == first.points_per_image
    assert {path: identity(path) for path in first.directory.rglob("*")} == files
    with pytest.raises(PrepareError, match=r"splits=\['train', 'val'\].*splits=\['val'\]"):
        run(raw, out, splits=("val",))
    dgp_fixture._edit(dgp_fixture.scene_json(raw, "000001"), lambda s: s["samples"].pop())
    with pytest.raises(PrepareError, match=r"another version of .*000001"):
        run(raw, out)
    (first.directory / "prepare.json").unlink()
    with pytest.raises(PrepareError, match=r"not made by fsmde_jax\.prepare"):
        run(raw, out)


def test_two_processes_do_not_work_on_one_folder(raw, out, monkeypatch):
    write_scene, refused = scenes.write_scene, []

    def run_another(task, tick):
        if not refused:
            refused.append(None)
            with pytest.raises(UserError, match=r"process \d+ on .* is preparing .*15x24/2\.0\.0"):
                run(raw, out)
        return write_scene(task, tick)

    monkeypatch.setattr(scenes, "write_scene", run_another)
    assert run(raw, out).samples["train"] == 6
    assert not list(out.rglob("*lock"))


# Damage


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-10]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_that_is_missing_or_cut_is_named_and_made_again(raw, out, monkeypatch, damage):
    directory = run(raw, out).directory
    before = list(split_of(out)), (directory / "rig.json").read_bytes()
    shard = directory / "ddad-train.array_record-00001-of-00002"
    whole = shard.read_bytes()
    again = pickle.loads(pickle.dumps(split_of(out)))
    DAMAGE[damage](shard)
    left = shard.read_bytes() if shard.exists() else None
    prepared._check_files.cache_clear()  # what another process would see
    with pytest.raises(prepared.PreparedDataError) as caught:
        PreparedSplit(again.directory, "train")
    assert str(shard) in str(caught.value) and f"--source={raw}" in str(caught.value)
    with monkeypatch.context() as patch:
        made = interrupt_after(patch, 9)
        assert not run(raw, out).already_there
    assert made == ["000001"]
    assert shard.read_bytes() == whole
    assert_same_samples(list(split_of(out)), before[0])
    assert (directory / "rig.json").read_bytes() == before[1]
    aside = directory / f"{shard.name}.damaged"
    assert (aside.read_bytes() if aside.exists() else None) == left
    assert run(raw, out).already_there


def change_a_digit(path):
    """What a flipped bit does to JSON that stays JSON."""
    path.write_text(
        re.sub(r"(\d)(?=[,\s])", lambda d: str(int(d[0]) ^ 1), path.read_text(), count=1)
    )


@pytest.mark.parametrize("damage", [DAMAGE["cut"], change_a_digit])
@pytest.mark.parametrize("name", ["rig.json", "features.json", "dataset_info.json"])
def test_a_damaged_description_is_named_set_aside_and_made_again(raw, out, capsys, name, damage):
    path = run(raw, out).directory / name
    whole = path.read_text()
    damage(path)
    assert path.read_text() != whole
    prepared._check_files.cache_clear()
    with pytest.raises(UserError, match=f"{name}.*--source={raw}") as caught:
        split_of(out)
    assert len(str(caught.value).splitlines()) == 1
    assert not run(raw, out).already_there
    assert str(path) in capsys.readouterr().err
    assert path.with_name(f"{name}.damaged").exists()
    assert json.loads(path.read_text()).keys() == json.loads(whole).keys()
    assert len(split_of(out)) == 6


def test_a_damaged_record_is_one_line_and_a_damaged_report_makes_its_scene_again(
    raw, out, capsys, monkeypatch
):
    directory = run(raw, out).directory
    report = directory / "scenes" / "train-00001.done.json"
    report.write_text(report.read_text().replace('"samples": 3', '"samples": 2'))
    made = interrupt_after(monkeypatch, 9)
    assert run(raw, out).samples == {"train": 6, "val": 3}
    assert made == ["000001"] and f"{report}: the report" in capsys.readouterr().err
    assert report.with_name(f"{report.name}.damaged").exists() and run(raw, out).already_there
    change_a_digit(directory / "prepare.json")
    with pytest.raises(UserError, match=r"prepare\.json: .* damaged .*Move .* away"):
        run(raw, out)


def test_verify_finds_what_only_the_bytes_tell(raw, out):
    directory = run(raw, out).directory
    assert verify(directory) == (5, [])
    shard = directory / "ddad-val.array_record-00000-of-00001"
    flip_a_bit(shard)
    done = command(raw, out, "--verify")
    stdout, stderr = done.communicate(timeout=60)
    assert (done.returncode, stdout) == (
        1,
        f"{shard} was changed: its checksum is not the one that was written down\n",
    ), stderr


CHANGES = {
    "image": (lambda raw: raw / "000001/rgb/CAMERA_09/2001.jpg", flip_a_bit),
    "sweep": (lambda raw: next((raw / "000000/point_cloud").glob("*/*.npz")), flip_a_bit),
    "calibration": (lambda raw: next((raw / "000002/calibration").glob("*.json")), flip_a_bit),
    "image gone": (lambda raw: raw / "000001/rgb/CAMERA_09/2001.jpg", DAMAGE["gone"]),
    "image cut": (lambda raw: raw / "000001/rgb/CAMERA_09/2001.jpg", DAMAGE["cut"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_of_the_recording_is_refused_by_name(raw, out, name):
    find, change = CHANGES[name]
    path = find(raw)
    directory = run(raw, out).directory
    before = {path: identity(path) for path in directory.rglob("*")}
    os.utime(path)  # only its time: the same
    assert run(raw, out).already_there
    change(path)
    with pytest.raises(PrepareError, match=f"made from another version of {path}: "):
        run(raw, out)
    assert {path: identity(path) for path in directory.rglob("*")} == before


def test_a_finished_dataset_stays_usable_when_its_recording_is_gone(raw, out):
    first = run(raw, out)
    raw.rename(raw.with_name("elsewhere"))
    again = run(raw, out)
    assert again.already_there and again.samples == first.samples
    shard = first.directory / "ddad-train.array_record-00001-of-00002"
    shard.unlink()
    with pytest.raises(PrepareError, match=f"{shard} is missing, and cannot be made again: There"):
        run(raw, out)


def test_pictures_of_a_check_go_into_no_folder_of_the_users(raw, out, monkeypatch):
    drawing = types.SimpleNamespace(check=lambda *a: (a[-1] / "a.png").touch())
    monkeypatch.setattr(check, "report", drawing)
    mine = out / "ddad_check" / "000000_lidar.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(PrepareError, match=r"ddad_check is in the way .* move it away"):
        check.check("ddad", raw, out, ("val",))
    assert mine.read_text() == "mine"
    mine.parent.rename(out / "mine")
    for _ in range(2):  # its own it draws again
        assert check.check("ddad", raw, out, ("val",)) == 0
    assert (out / "ddad_check" / "a.png").exists()


# The command


def command(raw, out, *more, limit=""):
    """The prepare command in a process of its own."""
    python = [sys.executable, "-m", "fsmde_jax.prepare", "--dataset=ddad", f"--source={raw}"]
    python += [f"--data_dir={out}", "--image_size=15x24", *more]
    line = ["bash", "-c", f'{limit} exec "$@"', "bash", *python]
    # Tests that a shell started in the background ignore Ctrl-C, and so would what they start.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(line, cwd=REPOSITORY, stdout=-1, stderr=-1, text=True, preexec_fn=heed)


def hold_up(raw, scene_id="000001"):
    """Replaces an image by a pipe without a writer: whoever reads it waits."""
    path = raw / scene_id / "rgb/CAMERA_09/2001.jpg"
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)

    def restore():
        path.unlink()
        path.write_bytes(content)

    return restore


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_command_prints_a_summary_and_needs_no_tensorflow(raw, out):
    done = command(raw, out, "--num_workers=2")
    stdout, stderr = done.communicate(timeout=100)
    assert done.returncode == 0, stderr
    for word in ("train: 2 scenes, 6 samples", "CAMERA_08", "0 skipped", "15x24/2.0.0"):
        assert word in stdout
    assert "9/9" in stderr and "sample/s" in stderr
    check = (
        "import sys; from pathlib import Path; from fsmde_jax.prepare import folder;"
        "from fsmde_jax.data import prepared;"
        f"raw, out = Path({str(raw)!r}), Path({str(out)!r});"
        "folder.prepare('ddad', raw, out / 'b', (15, 24));"
        "len(prepared.open_split(out, 'ddad', '15x24', 'val')[0]);"
        "print({'tensorflow', 'torch', 'cv2', 'jax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True)
    assert done.stdout.decode().strip() == "set()", done.stderr


def test_the_command_names_the_bad_file_in_one_line(raw, out):
    path = BREAKS["jpeg truncated"].apply(raw)
    done = command(raw, out, "--num_workers=2")
    _, stderr = done.communicate(timeout=100)
    assert done.returncode == 1
    (line,) = [line for line in stderr.splitlines() if "error:" in line]
    assert str(path) in line and "truncated" in line and "Traceback" not in stderr
    assert not looks_whole(out)


def test_kill_9_leaves_no_workers_and_the_same_command_continues(raw, out):
    restore = hold_up(raw)
    process = command(raw, out, "--num_workers=2")
    wait_for(lambda: len(list(out.rglob("scenes/[!.]*.done.json"))) == 2)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(is_running, workers)))
    assert not looks_whole(out)
    restore()
    before = {path.name: identity(path) for path in out.rglob("ddad-*.array_record-*-of-0000?")}
    assert len(before) == 2
    summary = run(raw, out)
    for name, expected in before.items():
        assert identity(summary.directory / name) == expected
    assert summary.samples == {"train": 6, "val": 3}
    assert not list(out.rglob(".unfinished-*"))


def test_a_worker_that_dies_is_reported(raw, out):
    hold_up(raw)
    process = command(raw, out, "--num_workers=2")
    wait_for(lambda: len(list(out.rglob("scenes/[!.]*.done.json"))) == 2)
    for worker in children(process.pid):
        if "spawn_main" in Path(f"/proc/{worker}/cmdline").read_text():
            os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: a worker process died" in stderr and "Traceback" not in stderr
    assert not looks_whole(out)


def test_ctrl_c_ends_cleanly(raw, out):
    hold_up(raw)
    process = command(raw, out, "--num_workers=0")
    wait_for(lambda: list(out.rglob("scenes/[!.]*.done.json")))
    timer = threading.Timer(0.3, process.send_signal, [signal.SIGINT])
    timer.start()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in stderr and "Traceback" not in stderr
    assert not looks_whole(out) and not list(out.rglob(".unfinished-*"))


def test_a_full_disk_is_reported(raw, out):
    """A limit on the size of files stands for a full disk."""
    process = command(raw, out, "--num_workers=0", limit="trap '' XFSZ; ulimit -f 50;")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = [line for line in stderr.splitlines() if "error:" in line]
    assert "array_record" in line and "larger than allowed" in line and "Traceback" not in stderr
    assert "the same command goes on" in line
    assert not looks_whole(out)


def test_jpeg_keeps_what_matters(raw, out):
    """Quality 95: a smooth image comes back within a few grey levels."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([rows * 6, columns * 4, 120 + 0 * rows], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(raw / "000000/rgb/CAMERA_01/2000.png")
    run(raw, out, image_size=NATIVE)
    (stored, *_) = split_of(out, "train", f"{HEIGHT}x{WIDTH}")
    assert np.abs(stored["images"][0].astype(int) - smooth).mean() < 2
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "jpeg", quality=95)
    np.testing.assert_array_equal(stored["images"][0], np.asarray(Image.open(buffer)))
