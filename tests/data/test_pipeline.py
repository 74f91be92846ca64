import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import prepare_recording, tiny_config

from fsmde_jax import rig
from fsmde_jax.config import ConfigError
from fsmde_jax.data import augment, lidar, pipeline
from fsmde_jax.data import batch as batch_schema
from fsmde_jax.run import sharding


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(prepare_recording(tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(scope="module")
def mesh(config):
    return sharding.make_mesh(config.mesh)


def load(config, mesh, count=1):
    iterator = pipeline.train_batches(config.data, 0, sharding.batch_sharding(mesh))
    batches = [jax.device_get(next(iterator)) for _ in range(count)]
    iterator.close()
    return batches


def one_sample(config, num_points=64):
    source, cameras = pipeline.open_data(config.data, "train")
    sample = pipeline.read_sample(source, 0)
    rng = np.random.default_rng(0)
    return sample, pipeline.place_on_rig(sample, cameras, num_points, rng=rng), cameras


def test_batches_have_the_documented_fields(config, mesh):
    (batch,) = load(config, mesh)
    shapes = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert shapes == {
        "image": ("uint8", (8, 6, 32, 64, 3)),
        "camera_mask": ("bool", (8, 6)),
        "intrinsics": ("float32", (8, 6, 3, 3)),
        "vehicle_from_camera": ("float32", (8, 6, 4, 4)),
        "lidar_xy": ("float32", (8, 6, 64, 2)),
        "lidar_depth_m": ("float32", (8, 6, 64)),
        "neighbour": ("int32", (8, 6)),
        "neighbour_mask": ("bool", (8, 6)),
        "sample_index": ("int32", (8,)),
        "flipped": ("bool", (8,)),
    }
    sizes = {"b": 8, "n": 6, "h": 32, "w": 64, "p": 64, "hp": 32, "wp": 64}
    schema = batch_schema.shapes(batch_schema.TRAINING, sizes)
    assert shapes == {name: (leaf.dtype.name, leaf.shape) for name, leaf in schema.items()}
    assert batch["neighbour_mask"].all()


def test_batches_lie_on_all_devices(config, mesh):
    iterator = pipeline.train_batches(config.data, 0, sharding.batch_sharding(mesh))
    batch = next(iterator)
    iterator.close()
    assert len(batch["image"].addressable_shards) == 8
    assert batch["image"].addressable_shards[0].data.shape[0] == 1


def test_an_epoch_sees_every_sample_once_and_the_seed_fixes_the_order(config, mesh):
    first, again = load(config, mesh, 3), load(config, mesh, 3)
    indices = np.concatenate([batch["sample_index"] for batch in first])
    assert sorted(indices[:6].tolist()) == list(range(6))
    assert indices[:6].tolist() != indices[6:12].tolist()  # reshuffled each epoch
    for a, b in zip(first, again, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_the_teachers_image_is_the_prepared_one_without_jitter(config, mesh):
    config = config.copy_and_resolve_references()
    config.data.downscale, config.data.jitter, config.data.flip_probability = 2, 0.5, 0.5
    source, cameras = pipeline.open_data(config.data, "train")
    iterator = pipeline.train_batches(
        config.data, 0, sharding.batch_sharding(mesh), with_prepared=True
    )
    batch = jax.device_get(next(iterator))
    iterator.close()
    assert batch["image"].shape[2:4] == (16, 32)
    assert 0 < batch["flipped"].sum() < len(batch["flipped"])
    for image, index, flipped in zip(
        batch["teacher_image"], batch["sample_index"], batch["flipped"], strict=True
    ):
        sample = pipeline.shrink(pipeline.read_sample(source, int(index)), 1, keep_prepared=True)
        placed = pipeline.place_on_rig(sample, cameras, 64, rng=np.random.default_rng(0))
        expected = augment.flip_rig(placed) if flipped else placed
        np.testing.assert_array_equal(image, expected["teacher_image"])


def test_evaluation_sees_every_sample_and_all_points(config, mesh):
    source, _ = pipeline.open_data(config.data, "train")
    batches = pipeline.eval_batches(config.data, "train", sharding.batch_sharding(mesh))
    host = [jax.device_get(batch) for batch in batches]
    indices = np.concatenate([batch["sample_index"] for batch in host])
    assert indices.tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert not host[0]["camera_mask"][6:].any()
    counts = (host[0]["lidar_depth_m"][:6] > 0).sum(axis=-1)
    expected = [source[i]["lidar_counts"] for i in range(6)]
    np.testing.assert_array_equal(counts, expected)


def test_a_sample_with_fewer_cameras_is_masked(config):
    sample, full, cameras = one_sample(config)
    fewer = {**sample, "camera_names": sample["camera_names"][:4]}
    placed = pipeline.place_on_rig(fewer, cameras, 64, rng=np.random.default_rng(0))
    assert placed["camera_mask"].sum() == 4
    kept = placed["camera_mask"]
    np.testing.assert_array_equal(placed["image"][kept], full["image"][kept])
    assert not placed["image"][~kept].any() and not placed["lidar_depth_m"][~kept].any()
    with_pairs = pipeline.add_neighbours(placed)
    assert with_pairs["neighbour_mask"].sum() < 4


def test_points_are_scaled_to_the_prepared_image(config):
    sample, placed, cameras = one_sample(config, num_points=1000)
    slot = cameras.index(sample["camera_names"][0])
    count = sample["lidar_counts"][0]
    expected = (sample["lidar_uv"][:count] + 0.5) * [64 / 48, 32 / 30]
    np.testing.assert_allclose(placed["lidar_xy"][slot, :count], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        placed["lidar_depth_m"][slot, :count], sample["lidar_depth_m"][:count]
    )


def test_too_many_points_for_evaluation_are_refused(config):
    sample, _, cameras = one_sample(config)
    with pytest.raises(ValueError, match=r"rig\.json"):
        pipeline.place_on_rig(sample, cameras, 3)


def test_flip_is_its_own_inverse_and_swaps_sides(config):
    _, placed, cameras = one_sample(config)
    flipped = augment.flip_rig(placed)
    left, right = cameras.index("CAMERA_05"), cameras.index("CAMERA_06")
    np.testing.assert_array_equal(flipped["image"][left], placed["image"][right][:, ::-1])
    yaw = rig.yaw_rad(placed["vehicle_from_camera"])
    np.testing.assert_allclose(rig.yaw_rad(flipped["vehicle_from_camera"])[left], yaw[left], 1e-4)


def placed_with_everything(config):
    """A sample with every field that `place_on_rig` knows, of values that no mirror keeps."""
    sample, _, cameras = one_sample(config)
    rng = np.random.default_rng(1)
    n, height, width, _ = sample["images"].shape
    extra = {
        "prepared_images": rng.integers(0, 256, (n, 2 * height, 2 * width, 3)).astype(np.uint8),
        "dense_depth_m": rng.uniform(1, 9, (n, height, width)).astype(np.float32),
        "prediction": rng.uniform(1, 9, (n, 7, 9)).astype(np.float32),
        "covered": np.arange(n) == 1,  # a camera of one side
    }
    placed = pipeline.place_on_rig(
        {**sample, **extra}, cameras, 1000, with_dense=True, with_native=True
    )
    placed["native_size"] += np.arange(n, dtype=np.int32)[:, None]
    return placed


def test_a_mirror_turns_every_field_and_twice_gives_the_sample(config):
    placed = placed_with_everything(config)
    flipped = augment.flip_rig(placed)
    again = augment.flip_rig(flipped)
    assert placed.keys() == again.keys()
    for name, value in placed.items():
        np.testing.assert_allclose(again[name], value, atol=1e-4, err_msg=name)
        if name not in ("sample_index", "camera_mask"):
            assert not np.array_equal(flipped[name], value), name
    order = rig.mirror_order(placed["vehicle_from_camera"], placed["camera_mask"])
    for name in ("teacher_image", "dense_depth_m", "prediction"):
        np.testing.assert_array_equal(flipped[name], placed[name][order][:, :, ::-1])
    points, mirrored = placed["lidar_uv"][order], flipped["lidar_uv"]
    last = placed["native_size"][order][:, None, 1] - 1
    np.testing.assert_array_equal(mirrored[..., 0], last - points[..., 0])
    np.testing.assert_array_equal(mirrored[..., 1], points[..., 1])


@pytest.mark.parametrize(
    "augmentation",
    [augment.flip_rig, lambda s: augment.zoom_rig(s, 2.0, np.random.default_rng(0))],
)
def test_a_field_that_no_augmentation_knows_is_refused_by_name(config, augmentation):
    _, placed, _ = one_sample(config)
    new = {**placed, "normals": np.zeros(placed["image"].shape, np.float32)}
    with pytest.raises(ValueError, match=r"does not know .* sample's \['normals'\]"):
        augmentation(new)


def test_flipped_points_lie_on_the_same_image_content(config):
    """A mark painted at each point is found at the flipped point."""
    _, placed, _ = one_sample(config, num_points=20)
    image = np.zeros_like(placed["image"])
    for camera, (points, depths) in enumerate(
        zip(placed["lidar_xy"], placed["lidar_depth_m"], strict=True)
    ):
        for x, y in points[depths > 0].astype(int):
            image[camera, y, x] = 255
    flipped = augment.flip_rig({**placed, "image": image})
    for camera, (points, depths) in enumerate(
        zip(flipped["lidar_xy"], flipped["lidar_depth_m"], strict=True)
    ):
        for x, y in points[depths > 0]:
            # A point on a pixel border flips onto the border from the other side.
            near = flipped["image"][camera, int(y), [int(np.ceil(x) - 1), int(x)]]
            assert near.max() == 255


def test_a_zoomed_camera_still_sees_every_point_where_it_is(config):
    """Images and truth whose values are their coordinates, found again at the zoomed points."""
    _, placed, _ = one_sample(config)
    n, height, width, _ = placed["image"].shape
    row, column = np.mgrid[:height, :width]
    placed["image"] = np.tile(np.stack([column, row, 0 * row], -1).astype(np.uint8), (n, 1, 1, 1))
    placed["dense_depth_m"] = np.tile(column.astype(np.float32), (n, 1, 1))
    placed["teacher_image"] = placed["image"].repeat(2, axis=1).repeat(2, axis=2)
    zoomed = augment.zoom_rig(placed, 2.0, np.random.default_rng(3))
    factors = zoomed["intrinsics"][:, 0, 0] / placed["intrinsics"][:, 0, 0]
    assert (factors >= 1).all() and (factors <= 2).all() and factors.max() > 1.3
    seen = zoomed["lidar_depth_m"] > 0
    assert 0 < seen.sum() < (placed["lidar_depth_m"] > 0).sum()  # the other ones are outside
    for camera in range(n):
        before, after = placed["intrinsics"][camera], zoomed["intrinsics"][camera]
        for index in np.flatnonzero(seen[camera]):
            x, y = zoomed["lidar_xy"][camera, index]
            ray = np.linalg.solve(after, [x, y, 1.0])
            x_before, y_before, _ = before @ ray
            point = placed["lidar_xy"][camera, index]
            np.testing.assert_allclose([x_before, y_before], point, atol=1e-3)
            painted = zoomed["image"][camera, int(y), int(x)].astype(float)
            np.testing.assert_allclose(painted[:2] + 0.5, point, atol=1.1)
            assert abs(zoomed["dense_depth_m"][camera, int(y), int(x)] + 0.5 - point[0]) <= 1.1
            larger = zoomed["teacher_image"][camera, int(2 * y), int(2 * x)].astype(float)
            np.testing.assert_allclose(larger[:2] + 0.5, point, atol=1.1)


def test_without_zoom_nothing_moves(config):
    _, placed, _ = one_sample(config)
    zoomed = augment.zoom_rig(placed, 1.0, np.random.default_rng(0))
    for name in placed:
        np.testing.assert_allclose(zoomed[name], placed[name], atol=1e-4)


def test_zoom_reaches_the_batches(config, mesh):
    config = config.copy_and_resolve_references()
    config.data.jitter, config.data.flip_probability = 0.0, 0.0
    (plain,) = load(config, mesh)
    config.data.zoom = 1.5
    (zoomed,) = load(config, mesh)
    assert (zoomed["sample_index"] == plain["sample_index"]).all()
    assert (zoomed["intrinsics"][..., 0, 0] >= plain["intrinsics"][..., 0, 0]).all()
    assert not np.array_equal(zoomed["image"], plain["image"])


@pytest.mark.parametrize("per_camera", [False, True])
def test_colour_jitter_is_shared_by_the_rig_or_not(per_camera):
    image = np.full((3, 8, 8, 3), 90, np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None]
    out = augment.colour_jitter(image, 0.3, per_camera, np.random.default_rng(0))
    assert out.dtype == np.uint8 and not np.array_equal(out, image)
    assert np.array_equal(out[0], out[1]) != per_camera


@pytest.mark.parametrize("per_camera", [False, True])
def test_colour_jitter_is_brightness_then_contrast_then_saturation(per_camera):
    image = np.random.default_rng(1).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)
    draws = np.random.default_rng(0).uniform(0.6, 1.4, (3, 3 if per_camera else 1, 1, 1, 1))
    brighter = image * draws[0]
    mean = brighter.mean(axis=(1, 2, 3), keepdims=True)
    stronger = (brighter - mean) * draws[1] + mean
    grey = (stronger @ augment.LUMA)[..., None]
    expected = np.clip((stronger - grey) * draws[2] + grey, 0, 255)
    out = augment.colour_jitter(image, 0.4, per_camera, np.random.default_rng(0))
    np.testing.assert_allclose(out, expected, atol=0.501)


def test_lidar_outside_of_the_depth_range_does_not_supervise(config, mesh):
    """And none is drawn in vain: an image has as many labels as there are inside, up to 64."""
    few = config.copy_and_resolve_references()
    few.data.min_depth_m, few.data.max_depth_m, few.data.flip_probability = 5.0, 20.0, 0.0
    (batch,) = load(few, mesh)
    depth_m = batch["lidar_depth_m"]
    source, cameras = pipeline.open_data(few.data, "train")
    outside = 0
    for index, found in zip(batch["sample_index"], depth_m, strict=True):
        sample = source[int(index)]
        for i, points in enumerate(lidar.slices_of(sample)):
            there = sample["lidar_depth_m"][points]
            inside = there[(there > 5.0) & (there < 20.0)]
            outside += len(there) - len(inside)
            labels = found[cameras.index(sample["camera_names"][i])]
            assert (labels > 0).sum() == min(64, len(inside))
            assert set(labels[labels > 0].tolist()) <= set(inside.tolist())
    assert outside > 0


def test_lidar_on_the_own_car_does_not_supervise_where_masks_are_given(config, mesh, tmp_path):
    masked = config.copy_and_resolve_references()
    masked.data.flip_probability, masked.data.masks = 0.0, str(tmp_path)
    road = np.full((32, 64), 255, np.uint8)
    road[20:] = 0
    for camera in masked.data.cameras:
        Image.fromarray(road).save(tmp_path / f"{camera}.png")
    (plain,), (batch,) = load(config, mesh), load(masked, mesh)
    rows = [b["lidar_xy"][b["lidar_depth_m"] > 0][:, 1] for b in (plain, batch)]
    assert rows[0].max() > 20 > rows[1].max()
    assert len(rows[1]) > 0


def test_another_rig_is_refused_with_both_names(config):
    other = config.copy_and_resolve_references()
    other.data.cameras = ("CAM_FRONT", "CAM_BACK")
    with pytest.raises(ValueError, match=r"CAM_FRONT.*CAMERA_01"):
        pipeline.open_data(other.data, "train")


def test_an_empty_list_of_cameras_takes_the_datasets_own(config):
    other = config.copy_and_resolve_references()
    other.data.cameras = ()
    _, cameras = pipeline.open_data(other.data, "train")
    assert cameras == tuple(config.data.cameras)


def test_batch_size_must_fit_the_devices(config, mesh):
    other = config.copy_and_resolve_references()
    other.data.batch_size = 6
    with pytest.raises(ValueError, match=r"config\.data\.batch_size=6"):
        pipeline.train_batches(other.data, 0, sharding.batch_sharding(mesh))


def test_worker_processes_give_the_same_batches(config, mesh):
    with_worker = config.copy_and_resolve_references()
    with_worker.data.num_workers = 1
    for a, b in zip(load(config, mesh, 2), load(with_worker, mesh, 2), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_kill_9_of_the_reader_leaves_no_worker(config, tmp_path):
    """Its worker reads on until its buffers are full, and would wait there."""
    (tmp_path / "config.json").write_text(config.data.to_json_best_effort())
    script = tmp_path / "read.py"
    script.write_text(
        "import json, sys, time\n"
        "from absl import flags\n"
        "from fsmde_jax.run import sharding\n"
        "from fsmde_jax.config import default_config\n"
        "from fsmde_jax.data import pipeline\n"
        "if __name__ == '__main__':\n"
        "    flags.FLAGS.mark_as_parsed()\n"
        "    config = default_config()\n"
        f"    config.data.update(json.load(open({str(tmp_path / 'config.json')!r})))\n"
        "    config.data.num_workers = 1\n"
        "    mesh = sharding.make_mesh(config.mesh)\n"
        "    batches = pipeline.train_batches(config.data, 0, sharding.batch_sharding(mesh))\n"
        "    next(batches)\n"
        "    print('read', flush=True)\n"
        "    time.sleep(100)\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "read\n"
    children = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    workers = [
        pid
        for pid in " ".join(path.read_text() for path in children).split()
        if "spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    ]
    assert len(workers) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 2
    with contextlib.suppress(FileNotFoundError):  # until it is gone, or empty: a zombie
        while pathlib.Path(f"/proc/{workers[0]}/cmdline").read_text():
            if time.monotonic() > deadline:
                os.kill(int(workers[0]), signal.SIGKILL)
                pytest.fail("the worker has outlived its parent")
            time.sleep(0.02)


def test_labels_are_those_of_the_first_scenes(config, mesh):
    """Unlabelled scenes are left out, or kept without their points as half of an epoch."""
    few = config.copy_and_resolve_references()
    few.data.labelled_scenes = 1
    source, _ = pipeline.open_data(few.data, "train")
    labelled = next(iter(source.scenes.values()))
    assert 0 < labelled < len(source)
    (batch,) = load(few, mesh)
    assert set(batch["sample_index"].tolist()) == set(range(labelled))
    few.data.keep_unlabelled = True
    batches = load(few, mesh, 3)
    index = np.concatenate([batch["sample_index"] for batch in batches])
    points = np.concatenate([(batch["lidar_depth_m"] > 0).sum((1, 2)) for batch in batches])
    assert set(index.tolist()) == set(range(len(source)))
    assert ((points > 0) == (index < labelled)).all()
    assert 0.25 < np.mean(index < labelled) < 0.75


def test_labelled_samples_are_repeated_for_their_share(config, mesh):
    few = config.copy_and_resolve_references()
    few.data.labelled_scenes, few.data.keep_unlabelled = 1, True
    source, _ = pipeline.open_data(few.data, "train")
    labelled = pipeline.labelled_samples(source, few.data)
    for share, repeats in ((0.5, 1), (0.75, 3), (0.01, 1)):
        few.data.labelled_share = share
        drawn = np.bincount(pipeline.training_samples(source, few.data)).tolist()
        assert drawn == [repeats] * labelled + [1] * (len(source) - labelled)


def test_more_labelled_scenes_than_there_are_is_refused(config, mesh):
    few = config.copy_and_resolve_references()
    few.data.labelled_scenes = 99
    with pytest.raises(ConfigError, match=r"config\.data\.labelled_scenes is 99; .* has 2 scenes"):
        load(few, mesh)


def test_labelled_scenes_without_samples_are_named(config):
    """All of them were skipped when they were prepared."""
    source, _ = pipeline.open_data(config.data, "train")
    source.rig["scenes"]["train"] = {"a": 0, "b": 0, "c": 6}
    data = config.data.copy_and_resolve_references()
    data.labelled_scenes = 2
    with pytest.raises(ConfigError, match=r"no samples .* first 2 scenes.*labelled_scenes"):
        pipeline.training_samples(source, data)
    data.labelled_scenes = 3
    assert pipeline.training_samples(source, data) == list(range(6))
