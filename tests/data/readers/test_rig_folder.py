import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fsmde_jax.config import ConfigError, default_config
from fsmde_jax.data import pipeline, prepared
from fsmde_jax.data.readers import dgp, recording, rig_folder
from fsmde_jax.data.readers.recording import Lidar, RecordingError
from fsmde_jax.prepare.folder import prepare
from fsmde_jax.prepare.scenes import PrepareError
from fsmde_jax.run import sharding
from fsmde_jax.world import WorldConfig, rig_layout, write_world

REPOSITORY = Path(__file__).parents[3]
HEIGHT, WIDTH = 24, 40
POINTS = np.array([[5.0, 0.5, 0.2, 0.1], [7.0, -1.0, 1.5, 0.3], [9.0, 2.0, -0.5, 0.7]])
LOOKING_FORWARD = [[0, 0, 1, 1.5], [-1, 0, 0, 0.1], [0, -1, 0, 1.4], [0, 0, 0, 1]]


def camera(name, pose=LOOKING_FORWARD):
    intrinsics = [[30.0, 0.0, 20.0], [0.0, 30.0, 12.0], [0.0, 0.0, 1.0]]
    return {
        "name": name, "width": WIDTH, "height": HEIGHT, "intrinsics": intrinsics,
        "vehicle_from_camera": pose,
    }  # fmt: skip


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    write(path, content)


def write_image(path, size=(HEIGHT, WIDTH), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Two cameras; a scene of three frames to train on, one with a single frame to measure."""
    root = tmp_path / "raw"
    for scene, frames in (("monday", ("8", "9", "10")), ("tuesday", ("0",))):
        for seed, frame in enumerate(frames):
            write_image(root / scene / "left" / f"{frame}.png", seed=seed)
            write_image(root / scene / "right" / f"{frame}.png", seed=seed + 10)
            (root / scene / "lidar").mkdir(exist_ok=True)
            np.save(root / scene / "lidar" / f"{frame}.npy", POINTS)
    write(
        root / "rig.json",
        {
            "cameras": [camera("right"), camera("left")],
            "lidar": {"vehicle_from_lidar": np.eye(4).tolist()},
            "splits": {"train": ["monday"], "val": ["tuesday"]},
        },
    )
    return root


def scene(root, name="monday"):
    planned = rig_folder.plan(rig_folder.find(root), ("train", "val"), root.parent / "plan")
    return rig_folder.Scene({**planned["train"], **planned["val"]}[name], name)


def read_everything(root):
    for name in ("monday", "tuesday"):
        opened = scene(root, name)
        for sample in map(opened.sample, range(len(opened))):
            rig_folder.read_points(sample.lidar)
            for seen in sample.cameras:
                recording.read_image(seen)


def run(root, **options):
    out = root.parent / "out"
    return prepare(**{"dataset": "rig", "source": root, "data_dir": out, "image_size": (12, 20),
                      "config_name": "tiny"} | options)  # fmt: skip


# What is read


def test_frames_follow_the_numbers_in_their_names(root):
    opened = scene(root)
    files = [opened.sample(i).cameras[0].image_path.name for i in range(len(opened))]
    assert files == ["8.png", "9.png", "10.png"]
    sample = opened.sample(2)
    assert [seen.name for seen in sample.cameras] == ["left", "right"]
    assert sample.lidar.cloud_path == root / "monday" / "lidar" / "10.npy"
    np.testing.assert_array_equal(rig_folder.read_points(sample.lidar), POINTS[:, :3])
    np.testing.assert_array_equal(sample.cameras[0].vehicle_from_camera, LOOKING_FORWARD)
    np.testing.assert_array_equal(sample.cameras[0].world_from_camera, LOOKING_FORWARD)


def moved(x_m):
    pose = np.eye(4)
    pose[0, 3] = x_m
    return pose.tolist()


def test_poses_are_of_the_frame_or_of_each_sensor(root):
    lidar_pose = [[0, -1, 0, 0.5], [1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]]
    edit(root / "rig.json", lambda rig: rig["lidar"].update(vehicle_from_lidar=lidar_pose))
    each = {"left": moved(10), "right": moved(11), "lidar": moved(12)}
    write(root / "monday" / "poses.json", {"8": moved(3), "9": each, "10": moved(5)})
    opened = scene(root)
    whole, apart = opened.sample(0), opened.sample(1)
    for seen in whole.cameras:
        assert seen.world_from_camera[0, 3] == 3 + 1.5
    assert [seen.world_from_camera[0, 3] for seen in apart.cameras] == [10 + 1.5, 11 + 1.5]
    np.testing.assert_allclose(apart.lidar.world_from_lidar, moved(12) @ np.array(lidar_pose))
    # One metre ahead of the LiDAR is one metre to the left of the vehicle's x axis.
    ahead = apart.lidar.world_from_lidar @ [1, 0, 0, 1]
    np.testing.assert_allclose(ahead, [12.5, 1, 1.8, 1])


def test_a_scene_may_have_a_calibration_of_its_own(root):
    own = [[0, 0, 1, 2.5], *LOOKING_FORWARD[1:]]
    content = {"cameras": [camera("left", own), camera("right", own)]}
    write(root / "tuesday" / "rig.json", {**content, "lidar": {"vehicle_from_lidar": moved(0)}})
    assert scene(root).sample(0).cameras[0].vehicle_from_camera[0, 3] == 1.5
    assert scene(root, "tuesday").sample(0).cameras[0].vehicle_from_camera[0, 3] == 2.5


def write_pcd(path, data, fields="x y z _ intensity", extra=()):
    """Rows with padding between z and intensity, as drivers leave it."""
    rows = np.zeros(len(POINTS) + len(extra), "<f4,<f4,<f4,<u1,<u1,<u1,<u1,<f4")
    values = np.concatenate([POINTS, np.reshape(extra, (-1, 4))])
    for place, column in zip(("f0", "f1", "f2", "f7"), values.T, strict=True):
        rows[place] = column
    body = rows.tobytes()
    if data == "ascii":
        lines = [" ".join(map(str, (*row[:3], 0, 0, 0, 0, row[3]))) for row in values]
        body = "\n".join(lines).encode() + b"\n"
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE 4 4 4 1 4\nTYPE F F F U F\n"
        f"COUNT 1 1 1 4 1\nWIDTH {len(rows)}\nHEIGHT 1\nPOINTS {len(rows)}\nDATA {data}\n"
    )
    path.write_bytes(header.encode() + body)


NO_RETURN = [[np.nan, np.nan, np.nan, 0.0]]


@pytest.mark.parametrize(
    "name, save",
    [
        ("a.npy", lambda path: np.save(path, POINTS.astype(np.float32))),
        ("a.npz", lambda path: np.savez(path, data=POINTS)),
        ("a.bin", lambda path: POINTS.astype(np.float32).tofile(path)),
        ("a.pcd.bin", lambda path: np.c_[POINTS, [3, 4, 5]].astype(np.float32).tofile(path)),
        ("a.pcd", lambda path: write_pcd(path, "ascii")),
        ("b.pcd", lambda path: write_pcd(path, "binary")),
        ("c.pcd", lambda path: write_pcd(path, "binary", extra=NO_RETURN)),
        ("d.pcd", lambda path: write_pcd(path, "ascii", extra=NO_RETURN)),
    ],
)
def test_sweeps_of_every_format_hold_the_same_points(tmp_path, name, save):
    save(tmp_path / name)
    points_m = rig_folder.read_points(Lidar("lidar", tmp_path / name, np.eye(4)))
    assert points_m.dtype == np.float64
    np.testing.assert_allclose(points_m, POINTS[:, :3], rtol=1e-6)


# What is prepared


def test_prepared_points_lie_where_they_project(root):
    summary = run(root, config_name="tiny")
    assert summary.samples == {"train": 3, "val": 1}
    stored = prepared.open_split(root.parent / "out", "rig", "tiny", "train")[0]
    assert stored["camera_names"] == ["left", "right"]
    # (5, 0.5, 0.2) is 3.5 m ahead of the camera, 0.4 m left of it and 1.2 m below.
    pixel, depth_m = (20 - 30 * 0.4 / 3.5, 12 + 30 * 1.2 / 3.5), 3.5
    count = stored["lidar_counts"][0]
    uv, depths_m = stored["lidar_uv"][:count].tolist(), stored["lidar_depth_m"][:count].tolist()
    assert [int(pixel[0]), int(pixel[1])] in uv
    assert depths_m[uv.index([int(pixel[0]), int(pixel[1])])] == pytest.approx(depth_m)


def without_lidar(root):
    for folder in root.glob("*/lidar"):
        shutil.rmtree(folder)
    edit(root / "rig.json", lambda rig: rig.pop("lidar"))


def test_a_rig_without_lidar_has_no_points(root):
    without_lidar(root)
    assert scene(root).sample(0).lidar is None
    summary = run(root)
    assert summary.points_per_image == {"left": (0, 0, 0), "right": (0, 0, 0)}
    stored = prepared.open_split(root.parent / "out", "rig", "tiny", "train")
    assert stored.rig["max_points_per_image"] == 0
    assert stored[0]["lidar_uv"].shape == (0, 2) and stored[0]["lidar_counts"].tolist() == [0, 0]
    assert stored[0]["images"].shape == (2, 12, 20, 3)


def test_a_scene_without_the_folder_lidar_has_no_points(root):
    shutil.rmtree(root / "monday" / "lidar")
    assert scene(root).sample(0).lidar is None
    assert scene(root, "tuesday").sample(0).lidar is not None


def test_a_changed_scene_is_not_taken_for_the_prepared_one(root):
    assert not run(root).already_there
    assert run(root).already_there
    write(root / "monday" / "poses.json", {frame: moved(1) for frame in ("8", "9", "10")})
    with pytest.raises(PrepareError, match="made from another version"):
        run(root)


def test_a_folder_without_rig_json_says_what_to_do(root):
    (root / "rig.json").unlink()
    with pytest.raises(PrepareError, match=r"no rig\.json.*fsmde_jax\.world"):
        run(root)


# Broken input


def of_rig(change):
    def apply(root):
        edit(root / "rig.json", change)
        return root / "rig.json"

    return apply


def of_first(**values):
    return of_rig(lambda rig: rig["cameras"][0].update(values))


def with_sweep(name, save):
    def apply(root):
        path = root / "monday" / "lidar" / name
        path.with_name("9.npy").unlink()
        save(path)
        return path

    return apply


def with_image(size=None, *, name="9.png"):
    def apply(root):
        folder = root / "monday" / "left"
        (folder / "9.png").unlink()
        if size is None:
            return folder
        write_image(folder / name, size)
        return folder / name

    return apply


def two_images(root):
    write_image(root / "monday" / "left" / "9.jpg")
    return root / "monday" / "left"


def with_poses(poses):
    def apply(root):
        write(root / "monday" / "poses.json", poses)
        return root / "monday" / "poses.json"

    return apply


def with_mask(name, size):
    def apply(root):
        write_image(root / "masks" / name, size)
        return root / "masks" / name

    return apply


def no_images(root):
    for side in ("left", "right"):
        shutil.rmtree(root / "tuesday" / side)
    return root / "tuesday"


def nan_sweep(path):
    np.save(path, np.where(np.arange(12).reshape(3, 4) == 5, np.nan, POINTS))


REFLECTION = (np.array(LOOKING_FORWARD) * [[1], [-1], [1], [1]]).tolist()
GOOD = moved(0)
# Name -> (what breaks it, returning the path that is named; words of the message; whether it is
# one frame's fault, that can be skipped).
BREAKS = {
    "not JSON": (lambda r: ((r / "rig.json").write_text("{"), r / "rig.json")[1], "JSON", False),
    "no cameras": (of_rig(lambda rig: rig.pop("cameras")), "'cameras' is a required", False),
    "a field misspelt": (of_rig(lambda rig: rig.update(split={})), "'split' was unexp", False),
    "width as text": (of_first(width="40"), r"`cameras\[0\].width`: '40'", False),
    "three rows": (of_first(vehicle_from_camera=GOOD[:3]), r"vehicle_from_camera`.*metres", False),
    "transposed": (
        of_first(vehicle_from_camera=np.transpose(LOOKING_FORWARD).tolist()),
        "right: field `vehicle_from_camera`: .*transposed", False,
    ),
    "scaled": (
        of_first(vehicle_from_camera=np.diag([2, 2, 2, 1]).tolist()), "is no rotation", False
    ),
    "reflection": (of_first(vehicle_from_camera=REFLECTION), "determinant -1", False),
    "not finite": (
        of_first(intrinsics=[[float("nan"), 0, 1], [0, 1, 1], [0, 0, 1]]), "not finite", False
    ),
    "negative focal length": (
        of_first(intrinsics=[[-30, 0, 1], [0, 30, 1], [0, 0, 1]]), "fx=-30", False
    ),
    "a camera twice": (of_first(name="left"), "left appears twice", False),
    "a camera called lidar": (of_first(name="lidar"), "'lidar'", False),
    "no splits": (of_rig(lambda rig: rig.pop("splits")), "`splits` is missing", False),
    "no val": (of_rig(lambda rig: rig["splits"].pop("val")), "no split 'val'", False),
    "a scene in two splits": (
        of_rig(lambda rig: rig["splits"].update(val=["monday"])), "in train and in val", False
    ),
    "a scene that is not there": (
        of_rig(lambda rig: rig["splits"].update(val=["friday"])), "no folder 'friday'", False
    ),
    "a mask of another size": (with_mask("left.png", (9, 9)), "9x9.*24x40", False),
    "a mask of no camera": (with_mask("top.png", (24, 40)), "not the mask of a camera", False),
    "sweeps without calibration": (of_rig(lambda rig: rig.pop("lidar")), "`lidar` is miss", False),
    "a scene without images": (no_images, "no images", False),
    "image missing": (with_image(), "frame 9: the image is missing", True),
    "image twice": (two_images, r"2 files \(9.jpg, 9.png\)", True),
    "image of another size": (with_image((10, 10)), "10x10.*24x40", True),
    "sweep missing": (
        lambda r: ((r / "monday/lidar/9.npy").unlink(), r / "monday/lidar")[1],
        "frame 9: the sweep is missing", True,
    ),
    "sweep of two columns": (
        with_sweep("9.npy", lambda p: np.save(p, POINTS[:, :2])), "3 or more", True
    ),
    "sweep empty": (with_sweep("9.npy", lambda p: np.save(p, POINTS[:0])), "no points", True),
    "sweep with NaN": (with_sweep("9.npy", nan_sweep), "row 1", True),
    "sweep of text": (with_sweep("9.npy", lambda p: p.write_text("x")), "broken", True),
    "npz of two arrays": (
        with_sweep("9.npz", lambda p: np.savez(p, a=POINTS, b=POINTS)), "one array, has a, b", True
    ),
    "bin of odd length": (
        with_sweep("9.bin", lambda p: p.write_bytes(b"1" * 17)), "rows of 4", True
    ),
    "pcd without x": (
        with_sweep("9.pcd", lambda p: write_pcd(p, "ascii", "a y z _ i")), "lacks x", True
    ),
    "pcd compressed": (
        with_sweep("9.pcd", lambda p: write_pcd(p, "binary_compressed")), "as ascii or", True
    ),
    "pcd truncated": (
        with_sweep("9.pcd", lambda p: (write_pcd(p, "binary"), p.write_bytes(p.read_bytes()[:-9]))),
        "truncated", True,
    ),
    "pose missing": (with_poses({"8": GOOD, "10": GOOD}), "frame '9' is missing", True),
    "pose of a sensor missing": (
        with_poses({"8": GOOD, "9": {"left": GOOD, "right": GOOD}, "10": GOOD}), "'lidar'", True
    ),
    "pose no rotation": (
        with_poses({"8": GOOD, "9": np.diag([2, 2, 2, 1]).tolist(), "10": GOOD}), "frame '9'", True
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_broken_input_is_named(root, name):
    apply, says, _ = BREAKS[name]
    path = apply(root)
    with pytest.raises(RecordingError, match=says) as caught:
        read_everything(root)
    assert caught.value.path == path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, (_, _, skippable) in BREAKS.items() if skippable])
def test_a_broken_frame_is_skipped_and_counted_on_request(root, name):
    path = BREAKS[name][0](root)
    with pytest.raises(RecordingError):
        run(root)
    summary = run(root, on_error="skip")
    assert summary.samples == {"train": 2, "val": 1}
    (entry,) = summary.skipped
    assert entry["what"] == "sample monday/000001 (train)" and str(path) in entry["why"]


# The miniature world in this layout


def test_the_world_as_a_rig_has_the_same_samples(tmp_path):
    config = WorldConfig(train_scenes=2, val_scenes=1, samples_per_scene=2, height=24, width=40)
    write_world(config, tmp_path / "world", num_workers=1, progress=False)
    rig_layout.write_rig(tmp_path / "world", tmp_path / "rig")
    planned = rig_folder.plan(tmp_path / "rig" / "rig.json", ("train", "val"), tmp_path / "plan")
    for split in ("train", "val"):
        paths = dgp.scene_paths(tmp_path / "world" / "world.json", split)
        assert list(planned[split]) == list(paths)
        for scene_id, path in paths.items():
            ours, theirs = rig_folder.Scene(planned[split][scene_id]), dgp.Scene(path)
            assert len(ours) == len(theirs) == 2
            for index in range(2):
                assert_same_sample(ours.sample(index), theirs.sample(index))


def test_the_command_writes_a_rig_whole_or_refuses(tmp_path):
    """It goes on after a full disk, for which a limit on the size of files stands."""
    command = [sys.executable, "-m", "fsmde_jax.world", "--layout=rig",
               f"--out={tmp_path / 'raw'}", "--train_scenes=1", "--val_scenes=1",
               "--samples_per_scene=1"]  # fmt: skip

    def run(*command):
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)

    full = run("bash", "-c", 'trap "" XFSZ; ulimit -f 9; exec "$@"', "bash", *command)
    (line,) = [line for line in full.stderr.splitlines() if "error:" in line]
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert "the file is larger than allowed" in line and "the same command goes on" in line
    assert not (tmp_path / "raw").exists()
    made = run(*command)
    assert made.returncode == 0, made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    rig = rig_folder.read_rig(tmp_path / "raw" / "rig.json")
    assert rig["splits"] == {"train": ["000000"], "val": ["000001"]} and len(rig["cameras"]) == 6
    other = run(*command, "--seed=1")
    assert other.returncode == 1 and "is there already" in other.stderr


def assert_same_sample(ours, theirs):
    points_m = rig_folder.read_points(ours.lidar)
    np.testing.assert_allclose(points_m, dgp.read_points(theirs.lidar), atol=1e-4)
    np.testing.assert_array_equal(ours.lidar.world_from_lidar, theirs.lidar.world_from_lidar)
    for a, b in zip(ours.cameras, theirs.cameras, strict=True):
        assert a.name == b.name and a.size == b.size
        np.testing.assert_array_equal(a.intrinsics, b.intrinsics)
        np.testing.assert_array_equal(a.vehicle_from_camera, b.vehicle_from_camera)
        np.testing.assert_allclose(a.world_from_camera, b.world_from_camera, atol=1e-9)
        np.testing.assert_array_equal(recording.read_image(a), recording.read_image(b))


# Training on it


def batches_of(root, start):
    config = default_config()
    config.data.update(
        dataset="rig", config_name="tiny", data_dir=str(root.parent / "out"), cameras=(),
        batch_size=8, eval_batch_size=8, num_threads=1,
    )  # fmt: skip
    mesh = sharding.make_mesh(config.mesh)
    return start(config.data, sharding.batch_sharding(mesh))


def test_training_without_lidar_is_refused(root):
    without_lidar(root)
    run(root)
    with pytest.raises(ConfigError, match="has no LiDAR points"):
        batches_of(root, lambda data, place: pipeline.train_batches(data, 0, place))


def test_images_without_lidar_still_come_in_batches(root):
    without_lidar(root)
    run(root)
    batches = batches_of(root, lambda data, place: pipeline.eval_batches(data, "val", place))
    batch = jax.device_get(next(batches))
    batches.close()
    assert batch["image"].shape == (8, 2, 12, 20, 3) and batch["camera_mask"][0].all()
    assert batch["lidar_xy"].shape == (8, 2, 0, 2) and batch["lidar_depth_m"].shape == (8, 2, 0)


def test_cameras_of_a_rig_come_from_its_data(root):
    run(root)
    batches = batches_of(root, lambda data, place: pipeline.train_batches(data, 0, place))
    batch = jax.device_get(next(batches))
    batches.close()
    assert batch["image"].shape == (8, 2, 12, 20, 3)
    assert ((batch["lidar_depth_m"] > 0).sum(axis=2) > 0).all()
