"""The miniature world: determinism, geometry, restart."""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import PIL.Image
import pytest

from fsmde_jax import cli, files, make
from fsmde_jax.config import default_config
from fsmde_jax.data import prepared
from fsmde_jax.errors import UserError
from fsmde_jax.world import WorldConfig, layouts, write_world, writer

CAMERAS = ["CAMERA_01", "CAMERA_05", "CAMERA_07", "CAMERA_09", "CAMERA_08", "CAMERA_06"]
CONFIG = WorldConfig(
    seed=3, train_scenes=2, val_scenes=1, samples_per_scene=2, height=50, width=80, sample_stride=5
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny world, rendered in this process."""
    directory = tmp_path_factory.mktemp("world")
    write_world(CONFIG, directory, num_workers=1, progress=False)
    return directory


def digests(directory: pathlib.Path) -> dict[str, str]:
    """The bytes of every file, by relative path."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(directory)): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in files
    }


def read_scene(directory: pathlib.Path, number: int) -> tuple[pathlib.Path, dict, dict]:
    """Folder, scene JSON and calibration of a scene."""
    folder = directory / f"{number:06d}"
    scene = json.loads(next(folder.glob("scene_*.json")).read_text())
    key = scene["samples"][0]["calibration_key"]
    return folder, scene, json.loads((folder / "calibration" / f"{key}.json").read_text())


def matrix(transform: dict) -> np.ndarray:
    """A 4 x 4 matrix of a quaternion and a translation."""
    w, x, y, z = (transform["rotation"][name] for name in ("qw", "qx", "qy", "qz"))
    result = np.eye(4)
    result[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    result[:3, 3] = [transform["translation"][name] for name in "xyz"]
    return result


def datums(scene: dict, sample: int) -> dict[str, dict]:
    """The entries of a sample by sensor."""
    by_key = {entry["key"]: entry for entry in scene["data"]}
    entries = [by_key[key] for key in scene["samples"][sample]["datum_keys"]]
    return {entry["id"]["name"]: entry for entry in entries}


def dense_depth(folder: pathlib.Path, image: dict) -> np.ndarray:
    """The true depth beside an image."""
    path = folder / image["filename"].replace("rgb/", "depth/").replace(".jpg", ".npz")
    return np.load(path)["data"]


def depth_errors(folder: pathlib.Path, entries: dict, calibration: dict, name: str) -> np.ndarray:
    """|LiDAR - truth| / truth at the pixels that the sweep's points fall on."""
    image, cloud = entries[name]["datum"]["image"], entries["LIDAR"]["datum"]["point_cloud"]
    points = np.load(folder / cloud["filename"])["data"][:, :3]
    camera_from_vehicle = np.linalg.inv(matrix(image["pose"])) @ matrix(cloud["pose"])
    x, y, z = camera_from_vehicle[:3, :3] @ points.T + camera_from_vehicle[:3, 3:]
    k = calibration["intrinsics"][calibration["names"].index(name)]
    u, v = k["fx"] * x / z + k["cx"], k["fy"] * y / z + k["cy"]
    seen = (z > 0) & (u >= 0) & (u < image["width"]) & (v >= 0) & (v < image["height"])
    truth = dense_depth(folder, image)[v[seen].astype(int), u[seen].astype(int)].astype(float)
    return (np.abs(truth - z[seen]) / np.maximum(truth, 1e-3))[truth > 0]


def test_layout_is_whole(world: pathlib.Path) -> None:
    splits = json.loads((world / "world.json").read_text())["scene_splits"]
    train, val = splits["0"]["filenames"], splits["1"]["filenames"]
    assert (len(train), len(val)) == (2, 1) and not set(train) & set(val)
    assert all((world / name).is_file() for name in train + val)
    folder, scene, calibration = read_scene(world, 0)
    assert calibration["names"] == ["LIDAR", *CAMERAS]
    for sample in range(2):
        entries = datums(scene, sample)
        assert list(entries) == ["LIDAR", *CAMERAS]
        for name in CAMERAS:
            image = entries[name]["datum"]["image"]
            assert PIL.Image.open(folder / image["filename"]).size == (80, 50)
            depth = dense_depth(folder, image)
            assert depth.shape == (50, 80) and depth.dtype == np.float16
        cloud = np.load(folder / entries["LIDAR"]["datum"]["point_cloud"]["filename"])["data"]
        assert cloud.dtype == np.float64 and cloud.shape[1] == 4 and len(cloud) > 5000
        assert np.isfinite(cloud).all()


def test_two_workers_write_the_same_bytes(world: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_world(CONFIG, tmp_path, num_workers=2, progress=False)
    assert digests(tmp_path) == digests(world)


def test_no_two_pictures_are_alike(world: pathlib.Path) -> None:
    pictures = [value for name, value in digests(world).items() if name.endswith(".jpg")]
    assert len(pictures) == len(set(pictures)) == 3 * 2 * 6


def test_restart_keeps_finished_scenes(world: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    shutil.rmtree(copy / "000001")
    (copy / "world.json").unlink()
    (copy / ".unfinished-000001").mkdir()
    mark = next((copy / "000000").glob("scene_*.json"))
    mark.write_text("kept")
    write_world(CONFIG, copy, num_workers=1, progress=False)
    assert mark.read_text() == "kept"
    names = digests(copy)
    del names[str(mark.relative_to(copy))]
    assert names.items() <= digests(world).items()
    assert len(names) == len(digests(world)) - 1


def test_other_config_is_refused(world: pathlib.Path) -> None:
    other = WorldConfig(seed=4, train_scenes=2, val_scenes=1)
    before = digests(world)
    with pytest.raises(ValueError, match=r"'seed': 3.*'seed': 4"):
        write_world(other, world, num_workers=1, progress=False)
    assert digests(world) == before


def test_a_folder_of_the_users_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "000000").mkdir()
    (tmp_path / "000000" / "mine").touch()
    with pytest.raises(UserError, match="this folder holds 000000 and no world"):
        write_world(CONFIG, tmp_path, num_workers=1, progress=False)
    assert list(digests(tmp_path)) == ["000000/mine"]


def test_a_damaged_config_is_one_line(world: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "world_config.json"
    path.write_text((world / path.name).read_text()[:-9])
    with pytest.raises(UserError, match=r"world_config\.json: the config of this world is damaged"):
        write_world(CONFIG, tmp_path, num_workers=1, progress=False)


def test_two_processes_do_not_write_one_world(world: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with (
        files.locked(tmp_path / ".lock", "writing"),
        pytest.raises(UserError, match=r"process \d+ on .* is writing"),
    ):
        write_world(CONFIG, tmp_path, num_workers=1, progress=False)
    before = digests(world)
    with files.locked(world / ".lock", "writing", remove=True):  # nothing to do, so no lock
        write_world(CONFIG, world, num_workers=1, progress=False)
    assert digests(world) == before


def test_kill_9_leaves_no_workers_and_the_next_run_works_at_once(tmp_path: pathlib.Path) -> None:
    config = WorldConfig(train_scenes=2, val_scenes=0, samples_per_scene=1, height=20, width=32)
    script, out = tmp_path / "script.py", tmp_path / "world"
    script.write_text(
        "import pathlib\nfrom fsmde_jax.world import WorldConfig, write_world\n"
        f"if __name__ == '__main__':\n    write_world({config!r}, pathlib.Path({str(out)!r}), 2)\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    while not list(out.glob(".unfinished-00000*")):
        assert process.poll() is None
        time.sleep(0.01)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = [pathlib.Path(f"/proc/{child}/cmdline").read_text() for child in children]
    assert sum("spawn_main" in command for command in commands) == 2
    process.kill()
    process.wait()
    write_world(config, out, num_workers=1, progress=False)
    assert (out / "world.json").is_file() and not list(out.glob(".unfinished-*"))
    for child in children:
        stat = pathlib.Path(f"/proc/{child}/stat")
        assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] in "ZX"


def test_a_worker_that_dies_is_reported(tmp_path: pathlib.Path, monkeypatch) -> None:
    class Broken:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            future = concurrent.futures.Future()
            future.set_exception(BrokenProcessPool())
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Broken)
    with pytest.raises(UserError, match=r"a process that renders died .* the same command goes on"):
        write_world(CONFIG, tmp_path, num_workers=2, progress=False)


@pytest.mark.parametrize("layout", ["rig", "nuscenes"])
def test_another_layout_goes_on_after_an_end_and_removes_only_its_own(
    world: pathlib.Path, tmp_path: pathlib.Path, monkeypatch, layout: str
) -> None:
    out = tmp_path / "out"
    for name in ("out.dgp", "out.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    drawn = []

    def draw(config, directory, scene):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(scene)
        shutil.copytree(world / f"{scene:06d}", directory / f"{scene:06d}")

    monkeypatch.setattr(cli, "num_cores", lambda: 1)
    monkeypatch.setattr(writer, "write_scene", draw)
    with pytest.raises(KeyboardInterrupt):
        layouts.write_as(layout, CONFIG, out)
    assert drawn == [0, 1] and not out.exists()
    files.claim(tmp_path / ".unfinished-out")  # what a kill leaves
    (tmp_path / ".unfinished-out" / "half").touch()
    drawn.clear()
    layouts.write_as(layout, CONFIG, out)
    assert drawn == [2] and not (out / "half").exists()
    before = digests(out)
    assert any(name.endswith(".jpg") for name in before)
    layouts.write_as(layout, CONFIG, out)  # done
    assert digests(out) == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["out", "out.dgp", "out.unfinished"]
    with pytest.raises(UserError, match="out is there already"):
        layouts.write_as(layout, dataclasses.replace(CONFIG, seed=4), out)


def test_a_run_prepares_its_world_anew_beside_data_of_an_older_version(
    world: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
) -> None:
    monkeypatch.setattr(cli, "num_cores", lambda: 1)
    config = default_config()
    config.data.data_dir, config.data.dataset, config.data.config_name = str(tmp_path), "world", "a"
    config.world.update(dataclasses.asdict(CONFIG) | {"image_size": (20, 32)})
    raw = tmp_path / "world_raw" / "a"
    shutil.copytree(world, raw)
    make.world(config)
    old = (tmp_path / "world" / "a" / "2.0.0").rename(tmp_path / "world" / "a" / "1.0.0")
    before = digests(old)
    make.world(config)
    assert len(prepared.open_split(tmp_path, "world", "a", "train")) == 4
    assert digests(old) == before and digests(raw) == digests(world)


def test_fewer_beams_change_the_sweeps_alone(world: pathlib.Path, tmp_path: pathlib.Path) -> None:
    few = dataclasses.replace(CONFIG, lidar_beams=4)
    write_world(few, tmp_path, num_workers=1, progress=False)
    all_, others = digests(world), digests(tmp_path)
    pictures = [name for name in all_ if "/rgb/" in name]
    assert pictures and all(all_[name] == others[name] for name in pictures)
    sizes = {
        root: sum(len(np.load(file)["data"]) for file in root.glob("*/point_cloud/*/*.npz"))
        for root in (world, tmp_path)
    }
    assert 0.05 < sizes[tmp_path] / sizes[world] < 0.2


def test_a_world_from_before_beams_were_a_choice_is_known(tmp_path: pathlib.Path) -> None:
    write_world(WorldConfig(train_scenes=0, val_scenes=0), tmp_path, progress=False)
    file = tmp_path / "world_config.json"
    content = json.loads(file.read_text())
    del content["lidar_beams"]
    file.write_text(json.dumps(content))
    write_world(WorldConfig(train_scenes=0, val_scenes=0), tmp_path, progress=False)


def test_bad_config_names_the_field() -> None:
    with pytest.raises(ValueError, match="samples_per_scene"):
        WorldConfig(samples_per_scene=0)


@pytest.mark.parametrize("name", CAMERAS)
def test_lidar_agrees_with_dense_truth(world: pathlib.Path, name: str) -> None:
    errors = []
    for number in range(3):
        folder, scene, calibration = read_scene(world, number)
        for sample in range(2):
            errors.append(depth_errors(folder, datums(scene, sample), calibration, name))
    errors = np.concatenate(errors)
    assert len(errors) > 1000
    assert np.median(errors) < 0.02


def test_ring_overlaps_in_yaw_order(world: pathlib.Path) -> None:
    _, _, calibration = read_scene(world, 0)
    yaw, half = [], []
    for name in CAMERAS:
        index = calibration["names"].index(name)
        forward = matrix(calibration["extrinsics"][index])[:3, 2]
        yaw.append(np.degrees(np.arctan2(forward[1], forward[0])) % 360)
        half.append(np.degrees(np.arctan(40 / calibration["intrinsics"][index]["fx"])))
    turned = np.mod(np.array(yaw) - yaw[0], 360.0)
    assert (np.diff(turned) > 0).all()
    steps = np.diff(np.append(turned, 360.0))
    assert (np.array(half) + np.roll(half, -1) > steps).all()
    assert 46 < 2 * half[0] < 50 and all(83 < 2 * value < 87 for value in half[1:])


def test_own_car_is_in_view_without_depth(world: pathlib.Path) -> None:
    folder, scene, _ = read_scene(world, 0)
    entries = datums(scene, 0)
    for name in ("CAMERA_05", "CAMERA_06", "CAMERA_07", "CAMERA_08", "CAMERA_09"):
        bottom = dense_depth(folder, entries[name]["datum"]["image"])[-1]
        assert (bottom == 0).mean() > 0.1, name


def test_depth_spans_near_and_far(world: pathlib.Path) -> None:
    folder, scene, _ = read_scene(world, 0)
    entries = datums(scene, 0)
    depth = np.stack([dense_depth(folder, entries[name]["datum"]["image"]) for name in CAMERAS])
    assert 0 < depth[depth > 0].min() < 5 and depth.max() > 100
    assert np.isfinite(depth).all()


def test_every_sensor_has_its_own_instant(world: pathlib.Path) -> None:
    moved = False
    for number in range(3):
        _, scene, calibration = read_scene(world, number)
        entries = datums(scene, 0)
        assert len({entry["id"]["timestamp"] for entry in entries.values()}) == 7
        at_lidar = matrix(entries["LIDAR"]["datum"]["point_cloud"]["pose"])
        front = matrix(entries["CAMERA_01"]["datum"]["image"]["pose"])
        index = calibration["names"].index("CAMERA_01")
        at_camera = front @ np.linalg.inv(matrix(calibration["extrinsics"][index]))
        moved |= np.linalg.norm(at_camera[:3, 3] - at_lidar[:3, 3]) > 0.02
    assert moved


def test_varied_rigs_differ_from_scene_to_scene(tmp_path: pathlib.Path) -> None:
    config = WorldConfig(
        train_scenes=2, val_scenes=0, samples_per_scene=1, height=20, width=32, varied_rigs=True
    )
    write_world(config, tmp_path, num_workers=1, progress=False)
    focal = [read_scene(tmp_path, number)[2]["intrinsics"][1]["fx"] for number in range(2)]
    assert abs(focal[0] / focal[1] - 1) > 0.02
