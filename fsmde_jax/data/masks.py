"""Self-occlusion masks: pixels of the ego vehicle, which are excluded from evaluation.

They come from files (`Masks.read`) or are found in the recording itself (`Masks.estimate`): pixels
that never change while the car drives and hardly get a LiDAR return.
"""

import json
import pathlib

import numpy as np
import scipy.ndimage
from jaxtyping import Bool
from PIL import Image
from tqdm import tqdm

from fsmde_jax.data import lidar
from fsmde_jax.data.prepared import PreparedSplit
from fsmde_jax.errors import UserError

ESTIMATE = "estimate"  # in place of a folder

# A pixel is still if its grey value's median absolute deviation over a scene is below this, of 255.
# The median bears the shadows that pass over the own car. On three streets of the miniature world
# 99 % of the pixels found are the own car's, and 42 % of the own car's are found (96x160).
STILL_GREY = 4.0
MIN_SAMPLES = 8
MAX_SAMPLES = 40  # of a scene, evenly spaced
# Where LiDAR hardly returns: fewer than this share of what the image gets elsewhere (median), in a
# square of this many pixels. Not none at all: the LiDAR sits higher than a camera, so points behind
# the own car's edge are projected onto it. On a real scene of DDAD's rig, 3.5 to 4.9 % of an image
# are own car by hand and held 0.15 to 0.24 % of its points, a twentieth of the usual density.
RARE_RETURNS = 0.1
SQUARE_PX = 7


class MaskError(UserError):
    """A mask is missing, broken or cannot be estimated; the text says what to do."""


class Masks:
    """Masks by scene and camera; True is road scene, False the own car."""

    def __init__(self, of_scene: dict[str, dict[str, Bool[np.ndarray, "h w"]]]):
        self.of_scene = of_scene

    @classmethod
    def read(
        cls, folder: pathlib.Path, source: PreparedSplit, size: tuple[int, int] | None = None
    ) -> "Masks":
        """Images of any size, dark where the own car is: `<camera>.png` or `<camera>_mask.png`.

        With `scene_to_group.json` (scene number -> group) they lie in a folder for each group, as
        VFDepth keeps DDAD's; otherwise they hold for every scene.

        Args:
          size: (height, width) that they are brought to as VFDepth does: resized with antialiasing
            (Lanczos), after which every value above 0 is road scene. None keeps their own size,
            where what is above 127 is.
        """
        table = folder / "scene_to_group.json"
        groups = json.loads(table.read_text()) if table.is_file() else None
        found: dict[pathlib.Path, dict[str, np.ndarray]] = {}
        of_scene = {}
        for scene, count in source.scenes.items():
            if not count:  # all of the scene was skipped when it was prepared
                continue
            where = folder
            if groups is not None:
                number = scene.lstrip("0") or "0"
                if number not in groups:
                    raise MaskError(f"{table}: names no group for scene {scene}")
                where = folder / str(groups[number])
            if where not in found:
                found[where] = {name: _read(where, name, size) for name in source.rig["cameras"]}
            of_scene[scene] = found[where]
        return cls(of_scene)

    @classmethod
    def estimate(cls, source: PreparedSplit) -> "Masks":
        """Found scene by scene, which must have `MIN_SAMPLES` and drive."""
        of_scene, first = {}, 0
        for scene, count in tqdm(source.scenes.items(), desc="masks", disable=None):
            if not count:
                continue
            if count < MIN_SAMPLES:
                raise MaskError(
                    f"scene {scene} of {source.directory} has {count} samples; a mask is estimated "
                    f"from {MIN_SAMPLES} or more. Give masks as files: --masks=DIR"
                )
            chosen = np.linspace(first, first + count - 1, min(count, MAX_SAMPLES)).astype(int)
            of_scene[scene] = _estimate(source, scene, np.unique(chosen).tolist())
            first += count
        return cls(of_scene)

    def hide_own_car(self, sample: dict) -> dict:
        """A prepared sample without the LiDAR points that fall on the own car."""
        depth_m = sample["lidar_depth_m"].copy()
        of_image = lidar.slices_of(sample)
        for i, camera in enumerate(sample["camera_names"]):
            mask = self.of_scene[sample["scene_id"]][camera]
            column, row = lidar.pixels_at(sample, i, mask.shape).T
            depth_m[of_image[i]] *= mask[row, column]
        return {**sample, "lidar_depth_m": depth_m}


def _read(
    folder: pathlib.Path, camera: str, size: tuple[int, int] | None
) -> Bool[np.ndarray, "h w"]:
    names = (f"{camera}.png", f"{camera}_mask.png")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise MaskError(f"{folder}: there is no mask of camera {camera}, {' or '.join(names)}")
    try:
        with Image.open(path) as image:
            grey = image.convert("L")
            if size is None:
                mask = np.asarray(grey) > 127
            else:
                mask = np.asarray(grey.resize(size[::-1], Image.Resampling.LANCZOS)) > 0
    except OSError as error:
        raise MaskError(f"{path}: the mask cannot be read ({error})") from error
    if not mask.any():
        raise MaskError(f"{path}: hides the whole image; white is road scene, black the own car")
    return mask


def _estimate(
    source: PreparedSplit, scene: str, indices: list[int]
) -> dict[str, Bool[np.ndarray, "h w"]]:
    """A scene's masks by camera, at the prepared size; holds its grey images in memory."""
    grey: dict[str, list[np.ndarray]] = {}
    returned: dict[str, np.ndarray] = {}
    for index in indices:
        sample = source[index]
        size = sample["images"].shape[1:3]
        for i, camera in enumerate(sample["camera_names"]):
            grey.setdefault(camera, []).append(sample["images"][i].mean(axis=-1).astype(np.uint8))
            column, row = lidar.pixels_at(sample, i, size).T
            returns = returned.setdefault(camera, np.zeros(size))
            np.add.at(returns, (row, column), 1)
    masks = {}
    for camera, images in grey.items():
        stack = np.stack(images).astype(np.float32)
        deviation = np.median(np.abs(stack - np.median(stack, axis=0)), axis=0)
        if np.median(deviation) < STILL_GREY:
            raise MaskError(
                f"scene {scene}, {camera}: most of the image never changes (the car stands "
                "still?), so its own parts cannot be told. Give masks as files: --masks=DIR"
            )
        density = scipy.ndimage.uniform_filter(returned[camera], SQUARE_PX, mode="nearest")
        usual = np.median(density[density > 0]) if density.any() else 1.0
        masks[camera] = ~_own_car((deviation < STILL_GREY) & (density < RARE_RETURNS * usual))
    return masks


def _own_car(candidates: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Candidates that are joined to the lower border of the image.

    Sky never changes and has no returns, too, but is joined to the upper border.
    """
    labels, _ = scipy.ndimage.label(scipy.ndimage.binary_opening(candidates))
    height = labels.shape[0]
    lower = np.concatenate([labels[-1], labels[height // 2 :, 0], labels[height // 2 :, -1]])
    joined = set(np.unique(lower)) - {0} - set(np.unique(labels[0]))
    return scipy.ndimage.binary_fill_holes(np.isin(labels, sorted(joined)))
