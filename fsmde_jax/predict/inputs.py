"""What `predict` can look at: a prepared dataset, a raw recording, photos, a video.

All become items of the same kind: the images of one instant at the size the network runs at, with
intrinsics of those images. Rings come at the size the student was trained at, as `prepare` makes
them. Photos come at the size that `forward.size_like` chooses; an item says so where that is
another one.
"""

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from fsmde_jax.data import pipeline, prepared
from fsmde_jax.data.readers import recording
from fsmde_jax.data.readers.recording import RecordingError
from fsmde_jax.errors import UserError
from fsmde_jax.predict import forward, photos
from fsmde_jax.prepare import scenes
from fsmde_jax.run import example


@dataclasses.dataclass(frozen=True)
class Item:
    """One instant.

    Attributes:
      name: of its files, such as `<scene>/<index>` or a photo's name.
      cameras: names of those that are present.
      sample: batch fields of `data/pipeline.py` without b, of those cameras only.
      problems: what was left out of it, in words.
      remarks: what one should know of it: the focal length, another size.
    """

    name: str
    cameras: tuple[str, ...]
    sample: dict[str, np.ndarray]
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def file_names(self) -> tuple[str, ...]:
        """Of each camera's files, without suffix."""
        return tuple(f"{self.name}/{camera}" if camera else self.name for camera in self.cameras)


class Inputs(NamedTuple):
    """Items one after the other; where one is broken, the `UserError` that names it."""

    kind: str  # "ring", "photos" or "video"
    count: int
    items: Iterator[Item | UserError]
    fps: float | None = None


def open_inputs(
    path: Path | None,
    config: ConfigDict,
    workdir: Path,
    split: str | None,
    focal_px: float | None,
) -> Inputs:
    """What lies at `path`; None is the dataset that the run was trained on.

    Args:
      config: the run's.
      workdir: its folder. Unless `path` is None its dataset need not be there.
      split: of a dataset or recording; None is the run's `eval_split`.
      focal_px: of photos and videos, in pixels of the files.
    """
    data, split = config.data, split or config.data.eval_split
    if path is None:
        source, _ = pipeline.open_data(data, split)
        return _of_prepared(source, data.downscale)
    if not path.exists():
        raise UserError(f"--input={path}: there is no such file or folder")
    if path.suffix.lower() in photos.VIDEO_SUFFIXES and path.is_file():
        return _of_video(path, network_size(config, workdir), focal_px)
    if path.suffix.lower() in photos.IMAGE_SUFFIXES and path.is_file():
        return _of_photos([path], network_size(config, workdir), focal_px)
    for folder in (path, *path.glob("*.*.*")):  # of an older version, too, which is refused
        if (folder / prepared.RIG_FILE).is_file() and any(folder.glob("*.array_record*")):
            return _of_prepared(_split_of(folder, split), data.downscale)
    for dataset in ("rig", "nuscenes", "ddad"):
        try:
            found = scenes.READERS[dataset].find(path)
        except FileNotFoundError:
            continue
        return of_recording(dataset, found, split, network_size(config, workdir), data.downscale)
    if path.is_file():
        raise UserError(
            f"--input={path}: not an image ({', '.join(photos.IMAGE_SUFFIXES)}), video "
            f"({', '.join(photos.VIDEO_SUFFIXES)}) or recording"
        )
    return _of_photos(photos.find_photos(path), network_size(config, workdir), focal_px)


def network_size(config: ConfigDict, workdir: Path) -> tuple[int, int]:
    """(height, width) of the images that a run's student was trained on."""
    named = re.match(r"(\d+)x(\d+)", config.data.config_name)
    if (workdir / example.FILE).is_file() or not (named or config.data.dataset == "world"):
        return example.read(config, workdir)[0]["image"].shape[1:3]
    # A run of before, whose data may be gone: the config's names say it.
    size = config.world.image_size if config.data.dataset == "world" else named.groups()
    height, width = (int(side) // config.data.downscale for side in size)
    return height, width


# Rings


def _split_of(folder: Path, split: str) -> prepared.PreparedSplit:
    """`prepared.open_split` of a folder wherever it lies."""
    dataset, name = folder.parent.parent.name, folder.parent.name
    return prepared.open_split(folder.parent.parent.parent, dataset, name, split)


def _of_prepared(source: prepared.PreparedSplit, downscale: int) -> Inputs:
    items = (_of_sample(source[i], downscale) for i in range(len(source)))
    return Inputs("ring", len(source), items)


def _of_sample(sample: dict[str, Any], downscale: int, problems: tuple[str, ...] = ()) -> Item:
    """An item of a prepared sample; slots are the cameras it has."""
    cameras = tuple(sample["camera_names"])
    shrunk = pipeline.shrink({**sample, "sample_index": np.int32(sample["index"])}, downscale)
    most = int(max(sample["lidar_counts"]))
    return Item(
        sample["sample_id"], cameras, pipeline.place_on_rig(shrunk, cameras, most), problems
    )


def of_recording(
    dataset: str, found: Path, split: str, size: tuple[int, int], downscale: int = 1
) -> Inputs:
    """Samples as `prepare` would store them, without storing them.

    Args:
      dataset: which reader, of `scenes.READERS`.
      found: what its `find` returned.
      size: (height, width) that the network runs at.
      downscale: the prepared images were larger by that factor.
    """
    reader = scenes.READERS[dataset]
    height, width = size
    options = {"name": "predict", "image_size": (height * downscale, width * downscale)}
    builder = scenes.make_builder(dataset, tuple(options.items()))
    folder = tempfile.TemporaryDirectory(prefix="fsmde_jax_plan_")
    planned = reader.plan(found, (split,), Path(folder.name))[split]
    count = sum(scenes.num_samples(reader, path) or 1 for path in planned.values())

    def items() -> Iterator[Item | UserError]:
        with folder:
            for scene_id, path in planned.items():
                try:
                    scene = reader.Scene(path, scene_id)
                except RecordingError as error:
                    yield error
                    continue
                for index in range(len(scene)):
                    yield _item_or_error(builder, scene, index, downscale)

    return Inputs("ring", count, items())


def _item_or_error(builder: Any, scene: Any, index: int, downscale: int) -> Item | UserError:
    """A sample without the cameras, or the LiDAR, that cannot be read."""
    try:
        sample, problems = scene.sample(index), ()
        try:
            example = builder.example(sample)
        except RecordingError:
            sample, problems = _readable(sample, builder.READER.read_points)
            if not sample.cameras:
                return UserError("; ".join(problems))
            example = builder.example(sample)
    except RecordingError as error:
        return error
    images = prepared.decode_images(np.array(example["images"], object))
    return _of_sample({**example, "images": images}, downscale, problems)


def _readable(
    sample: recording.Sample, read_points: Callable
) -> tuple[recording.Sample, tuple[str, ...]]:
    """What is sound in a sample, and what is not in words."""
    good, problems, sweep = [], [], sample.lidar
    for camera in sample.cameras:
        try:
            recording.read_image(camera)
            good.append(camera)
        except RecordingError as error:
            problems.append(str(error))
    try:
        if sweep:
            read_points(sweep)
    except RecordingError as error:
        problems.append(str(error))
        sweep = None
    return dataclasses.replace(sample, cameras=tuple(good), lidar=sweep), tuple(problems)


# Photos and videos


def _of_photos(paths: list[Path], size: tuple[int, int], focal_px: float | None) -> Inputs:
    stems = [path.stem for path in paths]

    def items() -> Iterator[Item | UserError]:
        for path in paths:
            # IMG_1.jpg and IMG_1.png must not write to the same file.
            name = path.stem if stems.count(path.stem) == 1 else path.name
            try:
                photo = photos.read_photo(path, focal_px)
            except UserError as error:
                yield error
                continue
            yield _of_image(name, photo, size)

    return Inputs("photos", len(paths), items())


def _of_video(path: Path, size: tuple[int, int], focal_px: float | None) -> Inputs:
    video = photos.Video(path)
    focal, focal_from = photos.focal_of(video.size, focal_px)

    def items() -> Iterator[Item | UserError]:
        done, remarked = -1, False
        try:
            for index, frame in video:
                for lost in range(done + 1, index):
                    if lost in video.problems:
                        yield UserError(video.problems[lost])
                done = index
                photo = photos.Photo(Image.fromarray(frame), focal, focal_from)
                item = _of_image(f"{index:06d}", photo, size)
                # Once is enough: the frames are all alike.
                yield dataclasses.replace(item, remarks=() if remarked else item.remarks)
                remarked = True
            for lost in range(done + 1, video.count):
                yield UserError(video.problems.get(lost, f"{path}: frame {lost} is missing"))
        finally:
            video.close()
        if video.complaint and not video.problems:
            yield UserError(f"{path}: some frames may be damaged ({video.complaint})")

    return Inputs("video", video.count, items(), video.fps)


def _of_image(name: str, photo: photos.Photo, size: tuple[int, int]) -> Item:
    native = photo.image.size[::-1]
    run_at = forward.size_like(size, native)
    remarks = [f"focal length {photo.focal_px:.0f} px ({photo.focal_from})"]
    if run_at != size:
        remarks.append(
            f"{native[0]}x{native[1]} has another aspect ratio than the network's "
            f"{size[0]}x{size[1]}; run at {run_at[0]}x{run_at[1]}"
        )
    intrinsics = forward.intrinsics_of(native, photo.focal_px)[None]
    sample = _single(*forward.resized([photo.image], intrinsics, run_at))
    return Item(name, ("",), sample, remarks=tuple(remarks))


def _single(
    image: UInt8[np.ndarray, "1 h w 3"], intrinsics: Float[np.ndarray, "1 3 3"]
) -> dict[str, np.ndarray]:
    """Batch fields of a camera alone, without LiDAR."""
    return {
        "image": image,
        "camera_mask": np.ones(1, bool),
        "intrinsics": intrinsics,
        "vehicle_from_camera": forward.VEHICLE_FROM_PHOTO[None],
        "lidar_xy": np.zeros((1, 0, 2), np.float32),
        "lidar_depth_m": np.zeros((1, 0), np.float32),
    }
