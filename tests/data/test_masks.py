"""Self-occlusion masks: from files in both layouts, and estimated from a recording."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from fsmde_jax.data import prepared
from fsmde_jax.data.masks import MIN_SAMPLES, SQUARE_PX, MaskError, Masks
from fsmde_jax.prepare import folder

HEIGHT, WIDTH = 40, 60
OWN_CAR = np.zeros((HEIGHT, WIDTH), bool)
OWN_CAR[32:, 10:50] = True


class Recording(prepared.PreparedSplit):
    """A split of one camera: a changing street, a still sky, the own car below.

    One point of each sweep lands on the own car.
    """

    def __init__(self, samples=MIN_SAMPLES, drives=True):
        self.directory, self.split = pathlib.Path("recording"), "val"
        self.rig = {"cameras": ["A"], "scenes": {"val": {"6": 0, "7": samples, "8": 0}}}
        self.drives = drives

    def __getitem__(self, index):
        rng = np.random.default_rng(index if self.drives else 0)
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 1)).repeat(3, axis=-1).astype(np.uint8)
        image[:10] = 200  # sky
        image[OWN_CAR] = 250 if index == 3 else 30  # the sun comes out once
        row, column = np.nonzero(~OWN_CAR)
        chosen = np.flatnonzero((row >= 10) & (rng.random(len(row)) < 0.3))
        row, column = np.append(row[chosen], 38), np.append(column[chosen], 20 + 3 * index)
        # Native pixels are twice the prepared ones.
        return {
            "scene_id": "7", "camera_names": ["A"], "images": image[None],
            "native_sizes": np.array([[2 * HEIGHT, 2 * WIDTH]]),
            "lidar_counts": np.array([len(row)]),
            "lidar_uv": np.stack([column, row], -1).astype(np.uint16) * 2,
            "lidar_depth_m": np.ones(len(row), np.float32),
        }  # fmt: skip


def test_the_estimate_finds_the_own_car_and_not_the_sky():
    recording = Recording()
    masks = Masks.estimate(recording)
    assert list(masks.of_scene) == ["7"]  # scenes of which nothing could be prepared have no mask
    mask = masks.of_scene["7"]["A"]
    # LiDAR returns around the own car take a margin of it.
    margin = SQUARE_PX // 2 + 1
    assert not mask[32 + margin :, 10 + margin : 50 - margin].any()
    assert mask[~OWN_CAR].all()
    # The one point of each sweep that lands on it is left out.
    depth_m = masks.hide_own_car(recording[2])["lidar_depth_m"]
    assert depth_m[-1] == 0 and (depth_m[:-1] > 0).all()


@pytest.mark.parametrize(
    ("recording", "text"),
    [
        (Recording(samples=3), "scene 7 of recording has 3 samples"),
        (Recording(drives=False), "scene 7, A: most of the image never changes"),
    ],
)
def test_what_cannot_be_estimated_is_said(recording, text):
    with pytest.raises(MaskError, match=f"{text}.*--masks=DIR"):
        Masks.estimate(recording)


def write(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)


def test_points_on_the_own_car_do_not_count(tmp_path):
    recording = Recording()
    hidden = np.zeros((HEIGHT, WIDTH), bool)
    hidden[:, 30:] = True
    write(tmp_path / "A_mask.png", ~hidden)
    sample = recording[0]
    found = Masks.read(tmp_path, recording).hide_own_car(sample)["lidar_depth_m"]
    right = sample["lidar_uv"][:, 0] >= 60
    assert right.any() and not right.all()
    np.testing.assert_array_equal(found == 0, right)


def test_masks_by_groups_of_scenes(tmp_path):
    recording = Recording()
    write(tmp_path / "2" / "A_mask.png", OWN_CAR)
    table = tmp_path / "scene_to_group.json"
    table.write_text(json.dumps({"7": 2}))
    mask = Masks.read(tmp_path, recording).of_scene["7"]["A"]
    np.testing.assert_array_equal(mask, OWN_CAR)
    table.write_text("{}")
    with pytest.raises(MaskError, match="no group for scene 7"):
        Masks.read(tmp_path, recording)


def test_missing_and_useless_masks_are_named(tmp_path):
    with pytest.raises(MaskError, match=r"no mask of camera A, A\.png or A_mask\.png"):
        Masks.read(tmp_path, Recording())
    write(tmp_path / "A.png", np.zeros((HEIGHT, WIDTH), bool))
    with pytest.raises(MaskError, match=r"A\.png: hides the whole image"):
        Masks.read(tmp_path, Recording())
    (tmp_path / "A.png").write_bytes(b"no image")
    with pytest.raises(MaskError, match=r"A\.png: the mask cannot be read"):
        Masks.read(tmp_path, Recording())


def test_real_masks_on_the_real_scene(shared_dir, tmp_path):
    folder.prepare("ddad", shared_dir / "real" / "dgp", tmp_path, (96, 160))
    source = prepared.open_split(tmp_path, "ddad", "96x160", "val")
    masks = Masks.read(shared_dir / "real" / "ego_masks" / "ddad" / "0", source)
    sample = source[0]
    hidden = (masks.hide_own_car(sample)["lidar_depth_m"] == 0).mean()
    assert 0 < hidden < 0.2
    with pytest.raises(MaskError, match="has 3 samples"):
        Masks.estimate(source)
