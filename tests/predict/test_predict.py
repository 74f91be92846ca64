"""Predicting: datasets, recordings, photos and videos; what the files hold; bad input by name."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dgp_fixture import write_recording
from PIL import Image
from tiny_run import prepare_recording, tiny_config

from fsmde_jax import config as config_lib
from fsmde_jax import files
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import measure, metrics
from fsmde_jax.evaluate.depth_maps import Predictions
from fsmde_jax.pictures import point_cloud
from fsmde_jax.pictures.colours import depth_colours
from fsmde_jax.pictures.ring import draw_ring
from fsmde_jax.predict import forward, inputs, photos, writer
from fsmde_jax.prepare.folder import prepare
from fsmde_jax.train import loop

REPOSITORY = Path(__file__).parents[2]
FLAT = ("depth", "npz")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def workdir(root):
    config = tiny_config(prepare_recording(root))
    config.objective.update(dict.fromkeys(("ckd_divergence", "ckd_crossing", "vrkd"), 0.0))
    config.evaluation.pictures = 0
    config.evaluation.references = False
    config.train.steps = 2
    assert loop.train(config, root / "run") is None
    return root / "run"


@pytest.fixture(scope="module")
def ring(workdir, root):
    """The run's own data, predicted."""
    saves = ("depth", "npz", "confidence", "pictures", "panel", "cloud", "birds_eye")
    assert writer.predict(workdir, root / "ring", saves=saves) == []
    return root / "ring"


def picture(path, size, exif_mm=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    if exif_mm:
        exif.get_ifd(0x8769)[0xA405] = exif_mm
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path, exif=exif)
    return path


def test_the_depth_files_measure_as_the_checkpoint_does(workdir, ring, tmp_path):
    config = config_lib.load_config(workdir)
    expected = measure.evaluate_run(config, workdir, tmp_path / "a")["student"]["mean"]
    for kind, unit_m in (("depth", writer.UNIT_M), ("npz", None)):
        predictions = Predictions(ring / kind, unit_m, skip=True)
        found = measure.evaluate_predictions(config, predictions, tmp_path / kind)["predictions"]
        assert found["covered"] == {"images": 18, "of": 18}
        for name in metrics.NAMES:
            assert found["mean"][name] == pytest.approx(expected[name], rel=2e-3)
    assert json.loads((ring / "about.json").read_text())["depth_png_unit_m"] == 0.00390625


def test_a_ring_has_a_file_of_every_kind(ring):
    stem = "000002/000001"
    with np.load(ring / "npz" / stem / "CAMERA_05.npz") as arrays:
        depth_m, confidence = arrays["depth_m"], arrays["confidence"]
        assert arrays["intrinsics"].shape == (3, 3)
    png = np.asarray(Image.open(ring / "depth" / stem / "CAMERA_05.png"))
    assert png.dtype == np.uint16 and abs(png / 256 - depth_m).max() <= 1 / 512
    grey = np.asarray(Image.open(ring / "confidence" / stem / "CAMERA_05.png"))
    assert abs(grey / 255 - confidence).max() <= 1 / 510
    colours = np.asarray(Image.open(ring / "pictures" / stem / "CAMERA_05.png")) / 255
    assert abs(colours - depth_colours(depth_m, 80.0)).max() < 0.01
    for kind, suffix in (("panel", ".png"), ("cloud", ".ply"), ("birds_eye", ".png")):
        assert (ring / kind / (stem + suffix)).stat().st_size > 1000


def read_ply(path):
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n")
    lines = header.decode().splitlines()
    names = [line.split()[2] for line in lines if line.startswith("property")]
    assert names == ["x", "y", "z", "red", "green", "blue"]
    table = np.frombuffer(body, [*((n, "<f4") for n in names[:3]), *((n, "u1") for n in names[3:])])
    assert f"element vertex {len(table)}" in lines
    return table


def test_the_clouds_points_project_back_to_their_pixels(ring):
    stem = "000002/000000"
    table = read_ply(ring / "cloud" / f"{stem}.ply")
    points_m = np.stack([table[axis] for axis in "xyz"], axis=1)
    first = 0
    for file in sorted((ring / "npz" / stem).iterdir(), key=_ring_order):
        with np.load(file) as arrays:
            depth_m, k = arrays["depth_m"], arrays["intrinsics"]
            pose = arrays["vehicle_from_camera"]
        usable = (depth_m < 80) & ~point_cloud.is_smear(depth_m[None], k[None])[0]
        row, column = np.nonzero(usable)
        of_camera = points_m[first : first + len(row)]
        first += len(row)
        in_camera = (of_camera - pose[:3, 3]) @ pose[:3, :3]
        np.testing.assert_allclose(in_camera[:, 2], depth_m[usable], rtol=1e-4)
        seen = (in_camera @ k.T)[:, :2] / in_camera[:, 2:]
        np.testing.assert_allclose(seen, np.stack([column, row], 1) + 0.5, atol=0.01)
    assert first == len(table) > 5000


def _ring_order(path):
    return config_lib.DDAD_CAMERAS.index(path.stem)


def test_smear_is_found_between_two_walls_and_not_on_the_road():
    k = np.array([[[100.0, 0, 32], [0, 100, 0], [0, 0, 1]]], np.float32)
    road_m = np.tile((150 / (np.arange(16) + 2.0))[:, None], (1, 64)).astype(np.float32)
    assert not point_cloud.is_smear(road_m[None], k).any()
    walls_m = np.full((1, 16, 64), 5.0, np.float32)
    walls_m[..., 33:], walls_m[..., 31:33] = 40.0, 15.0
    assert np.flatnonzero(point_cloud.is_smear(walls_m, k)[0, 0]).tolist() == [30, 31, 32, 33]


def test_a_raw_recording_is_predicted_as_its_prepared_dataset_is(workdir, root, tmp_path):
    done = prepare("ddad", root / "raw", tmp_path, (32, 64), splits=("val",))
    for name, what in (("raw", root / "raw"), ("a", done.directory), ("b", done.directory.parent)):
        writer.predict(workdir, tmp_path / name, what, saves=("depth",))
    found = [path.relative_to(tmp_path / "raw") for path in (tmp_path / "raw").rglob("*.png")]
    assert len(found) == 18
    for path in found:
        content = {(tmp_path / name / path).read_bytes() for name in ("raw", "a", "b")}
        assert len(content) == 1


def test_a_rings_broken_image_is_named_and_the_other_cameras_done(workdir, tmp_path):
    write_recording(tmp_path / "raw")
    images = sorted((tmp_path / "raw" / "000002").rglob("CAMERA_09/*"))
    picture(images[0], (20, 60))
    images[1].write_bytes(images[1].read_bytes()[:100])
    out = tmp_path / "out"
    problems = writer.predict(workdir, out, tmp_path / "raw", saves=("depth",))
    assert len(problems) == 2
    assert f"{images[0]}: the image is 20x60, its recording says" in problems[0]
    assert f"{images[1]}: the image is truncated or broken" in problems[1]
    assert len(list(out.rglob("*.png"))) == 16
    assert (out / "problems.txt").read_text().splitlines() == problems


def test_photos_with_their_focal_lengths(workdir, tmp_path, capfd):
    folder = tmp_path / "photos"
    picture(folder / "guess.png", (80, 160))
    picture(folder / "film.jpg", (80, 160), exif_mm=40)
    picture(folder / "tall.jpg", (300, 200))
    picture(folder / "tall.png", (300, 200))
    (folder / "notes.txt").touch()
    assert writer.predict(workdir, tmp_path / "out", folder) == []
    told = capfd.readouterr().err
    assert "guess: focal length 139 px (guessed, 60° across the longer side)" in told
    assert "film: focal length 165 px (EXIF, 40 mm on 35 mm film)" in told
    assert "tall.jpg: " in told and "300x200 has another aspect ratio than" in told
    names = ["film", "guess", "tall.jpg", "tall.png"]
    assert sorted(p.name for p in (tmp_path / "out/depth").iterdir()) == [f"{n}.png" for n in names]
    with np.load(tmp_path / "out/npz/guess.npz") as arrays:
        guessed_m, k = arrays["depth_m"], arrays["intrinsics"]
    assert guessed_m.shape == (32, 64) and k[0, 0] == pytest.approx(138.56 * 64 / 160, rel=1e-3)
    with np.load(tmp_path / "out/npz/tall.png.npz") as arrays:
        height, width = arrays["depth_m"].shape
    assert height > width and height % 32 == width % 32 == 0
    photo = folder / "guess.png"
    writer.predict(workdir, tmp_path / "given", photo, focal_px=2 * 138.56, saves=("npz",))
    with np.load(tmp_path / "given/npz/guess.npz") as arrays:
        np.testing.assert_allclose(arrays["depth_m"], 2 * guessed_m, rtol=0.1)
    assert "guess: focal length 277 px (given)" in capfd.readouterr().err


def test_names_that_are_formulas_or_no_utf8_are_shown(tmp_path):
    photo = photos.Photo(Image.new("RGB", (8, 6)), 10.0, "given")
    sample = inputs._of_image("a", photo, (6, 8)).sample
    for number, name in enumerate(("$x^{$", "b\udcff", "c\n")):
        path = tmp_path / f"{number}.png"
        draw_ring(sample, {"depth": np.ones((1, 6, 8))}, (name,), 80.0, path)
        assert path.is_file()
    files.write_text(tmp_path / "problems.txt", "b\udcff: broken δ")
    assert (tmp_path / "problems.txt").read_text(encoding="utf-8") == "b\\udcff: broken δ"


@pytest.mark.parametrize(
    ("image", "expected"),
    [((900, 1600), (352, 640)), ((1216, 1936), (384, 608)), ((3000, 4000), (416, 544)),
     ((4000, 3000), (544, 416)), ((500, 2000), (224, 896))],
)  # fmt: skip
def test_a_size_like_the_networks_for_every_shape(image, expected):
    height, width = forward.size_like((352, 640), image)
    assert (height, width) == expected


@pytest.fixture
def film(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(0, 255, (5, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    options = {"fps": 10, "macro_block_size": 2, "output_params": ["-movflags", "+faststart"]}
    frames = ffmpeg.write_frames(str(tmp_path / "film.mp4"), (160, 80), **options)
    frames.send(None)
    for i in range(20):
        noise = rng.integers(0, 20, still.shape, np.uint8)
        frames.send(np.ascontiguousarray(np.roll(still, 5 * i, 1) // 2 + noise))
    frames.close()
    return tmp_path / "film.mp4"


def test_a_film_in_and_out(workdir, film, tmp_path):
    out = tmp_path / "out"
    assert writer.predict(workdir, out, film, saves=("video", "depth")) == []
    assert len(list((out / "depth").iterdir())) == 20
    video = photos.Video(out / "video.mp4")
    assert (video.count, video.fps, video.size) == (20, 10, (1920, 480))
    video.close()
    assert writer.predict(workdir, tmp_path / "ring", max_samples=2, saves=("video",)) == []
    video = photos.Video(tmp_path / "ring" / "video.mp4")
    assert (video.count, video.size) == (2, (1920, 320))
    video.close()
    few = tmp_path / "few"
    assert writer.predict(workdir, few, film, max_samples=3, saves=("depth",)) == []
    assert [p.name for p in sorted((few / "depth").iterdir())] == [
        f"00000{i}.png" for i in range(3)
    ]


def test_a_films_corrupt_frame_is_named_and_the_rest_done(workdir, film, tmp_path):
    content = bytearray(film.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 1500] = bytes(1500)
    film.write_bytes(content)
    problems = writer.predict(workdir, tmp_path / "out", film, saves=("depth",))
    lost = [int(p.split("frame ")[1].split()[0]) for p in problems]
    assert problems and all(f"{film}: frame " in p and "is corrupt" in p for p in problems)
    kept = sorted(int(p.stem) for p in (tmp_path / "out/depth").iterdir())
    assert sorted(kept + lost) == list(range(20)) and len(kept) > 10


def test_a_film_cut_short(workdir, film, tmp_path):
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 2 // 3])
    problems = writer.predict(workdir, tmp_path / "out", film, saves=("depth",))
    assert problems and str(film) in problems[0]
    film.write_bytes(film.read_bytes()[:300])
    with pytest.raises(UserError, match=r"film\.mp4: no frame can be decoded"):
        writer.predict(workdir, tmp_path / "none", film)


def test_a_rerun_recording(workdir, tmp_path):
    pytest.importorskip("rerun")
    writer.predict(workdir, tmp_path / "out", max_samples=2, saves=("rerun",))
    content = (tmp_path / "out" / "recording.rrd").read_bytes()
    assert content[:3] == b"RRF" and len(content) > 20_000
    for entity in (b"CAMERA_09/depth", b"world/lidar", b"world/cloud"):
        assert entity in content


def test_packages_that_are_missing_are_named(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--save=rerun needs .*pip install -e \"\.\[predict\]\""):
        writer.predict(workdir, tmp_path / "a", saves=("rerun",))
    (tmp_path / "film.mp4").touch()
    with pytest.raises(UserError, match=r"imageio-ffmpeg: pip install -e \"\.\[predict\]\""):
        writer.predict(workdir, tmp_path / "b", tmp_path / "film.mp4")
    assert "rerun" not in writer._choose(None, "ring")
    assert "no recording.rrd is written" in capsys.readouterr().err


def test_what_stops_everything_is_named(workdir, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    photo = picture(tmp_path / "a.png", (40, 80))
    out = tmp_path / "out"
    for what, options, text in (
        (empty, {}, r"empty: holds no images \(\.jpg, \.jpeg, \.png\)"),
        (tmp_path / "nowhere", {}, "there is no such file or folder"),
        (None, {"split": "test"}, r"no split 'test'; it has train, val"),
        (photo, {"focal_px": -3.0}, r"--focal_px=-3 must be positive"),
        (photo, {"saves": ("mesh",)}, r"--save=mesh: use some of depth, npz"),
        (photo, {"saves": ("video",)}, "photos are no film"),
    ):
        with pytest.raises(UserError, match=text):
            writer.predict(workdir, out, what, **options)
        assert not out.exists()
    with pytest.raises(UserError, match="is there already; remove it"):
        writer.predict(workdir, workdir, photo)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        writer.predict(workdir, tmp_path / "file" / "out", photo)
    (tmp_path / "bad.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"nothing could be predicted: .*bad\.jpg: the image is tr"):
        writer.predict(workdir, out, tmp_path / "bad.jpg")
    assert not out.exists()


def test_a_full_disk_is_named(workdir, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    photo = picture(tmp_path / "a.png", (40, 80))
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", lambda *_, **__: full())
        with pytest.raises(UserError, match=r"out cannot be written \(the disk is full\)"):
            writer.predict(workdir, tmp_path / "out", photo, saves=("depth", "npz"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    left = tmp_path / ".unfinished-out"  # as a kill leaves it
    left.mkdir()
    for name in (".made_by_fsmde_jax", "half"):
        (left / name).touch()
    assert writer.predict(workdir, tmp_path / "out", photo, saves=("depth",)) == []
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"depth", "about.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "out"}


def test_photos_and_recordings_need_the_run_alone(workdir, root, tmp_path, monkeypatch):
    """A run of an own rig, whose config's names say no size, moved; its data is gone."""
    run = shutil.copytree(workdir, tmp_path / "moved")
    values = json.loads((run / "config.json").read_text())
    values["data"] |= {"data_dir": str(tmp_path / "gone"), "config_name": "night"}
    (run / "config.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png", (80, 160))
    for name, what in (("photo", Path("a.png")), ("ring", root / "raw")):
        out = tmp_path / name
        assert writer.predict(Path("moved"), out, what, max_samples=1, saves=("depth",)) == []
        assert {Image.open(path).size for path in out.rglob("*.png")} == {(64, 32)}


def _other_bins(config):
    config["bins"]["num_bins"] = 16


def _other_size(config):
    config["student"]["size"] = "small"


def _unknown_key(config):
    config["bins"]["shape"] = "round"


def _old(config):
    del config["teacher"]


@pytest.mark.parametrize("change", [_other_bins, _other_size, _unknown_key, _old])
def test_a_checkpoint_of_another_version_is_one_line(workdir, tmp_path, change):
    run = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as raised:
        writer.predict(run, tmp_path / "out", saves=("depth",))
    text = str(raised.value)
    assert str(run) in text and "\n" not in text


def test_the_command(workdir, tmp_path):
    folder = tmp_path / "photos"
    picture(folder / "a.png", (40, 80))
    (folder / "b.jpg").write_bytes(b"no image")
    command = [sys.executable, "-m", "fsmde_jax.predict", f"--checkpoint={workdir}"]
    command += [f"--input={folder}", "--save=depth,cloud"]
    run = {"capture_output": True, "text": True, "cwd": REPOSITORY, "timeout": 240}
    done = subprocess.run([*command, f"--out={tmp_path / 'out'}"], check=False, **run)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"left out: {folder / 'b.jpg'}: the image is truncated or broken" in done.stderr
    assert (tmp_path / "out/depth/a.png").is_file() and (tmp_path / "out/cloud/a.ply").is_file()
    again = subprocess.run([*command, f"--out={tmp_path / 'out'}"], check=False, **run)
    assert again.returncode == 1 and "error: " in again.stderr and "already" in again.stderr


@pytest.mark.parametrize(("name", "cameras"), [("dgp", 3), ("nuscenes", 6)])
def test_real_frames(workdir, shared_dir, tmp_path, name, cameras):
    what, out = shared_dir / "real" / name, tmp_path / "out"
    saves = ("depth", "cloud")
    assert writer.predict(workdir, out, what, split="train", max_samples=1, saves=saves) == []
    assert len(list(out.rglob("*.png"))) == cameras
    assert len(read_ply(next(out.rglob("*.ply")))) > 1000
