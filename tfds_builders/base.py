"""What the datasets share: one record per instant of the rig."""

import dataclasses
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fsmde_jax import rig
from fsmde_jax.data import lidar, prepared
from fsmde_jax.data.readers import recording

Example = dict[str, Any]
_JPEG_QUALITY = 95


@dataclasses.dataclass(eq=False, kw_only=True)
class RigConfig(tfds.core.BuilderConfig):
    """How images are stored.

    Attributes:
      image_size: (height, width) of the stored images; the aspect ratio may change.
      image_format: "jpeg" (quality 95) or "png".
      optional: which of the `optional_features` are stored.
    """

    image_size: tuple[int, int] = (384, 640)
    image_format: str = "jpeg"
    optional: tuple[str, ...] = ()


class RigBuilder(tfds.core.GeneratorBasedBuilder):
    """Surround images, calibration and LiDAR points per camera in native pixels.

    `python -m fsmde_jax.prepare` writes it scene by scene with several processes and can be
    resumed; `download_and_prepare` works too, from a recording in `<manual_dir>`.
    """

    VERSION = tfds.core.Version(prepared.VERSION)
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "First release.",
        "2.0.0": "LiDAR points of every public rule (lidar_rules), from z > 0; optional features.",
    }
    # Not BUILDER_CONFIGS: TFDS refuses a custom config that has the name of a listed one.
    DEFAULT_CONFIG: RigConfig
    READER: ModuleType  # of the recordings: find, plan, Scene, read_points
    # Whether points are those of all `lidar.RULES`; otherwise DGP's rule stands for them all.
    PROJECTS_BY_RULES = False
    HOMEPAGE: str | None = None
    # Ring order, counter-clockwise from the front; cameras of other names follow by name.
    CAMERAS: tuple[str, ...] = ()

    def __init__(self, *, config: RigConfig | None = None, **kwargs: Any):
        super().__init__(config=config or self.DEFAULT_CONFIG, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(self.feature_dict()), homepage=self.HOMEPAGE
        )

    def feature_dict(self) -> dict[str, Any]:
        """The sample schema; n cameras, p points of all cameras in camera order."""
        optional = optional_features(self.builder_config)
        return {
            "sample_id": tfds.features.Text(doc="<scene id>/<index, six digits>"),
            "scene_id": tfds.features.Text(),
            "index": tfds.features.Scalar(np.int64, doc="Place in the scene."),
            "previous_index": tfds.features.Scalar(np.int64, doc="-1 where there is none."),
            "next_index": tfds.features.Scalar(np.int64, doc="-1 where there is none."),
            "camera_names": tfds.features.Sequence(tfds.features.Text()),
            "images": _pictures(self.builder_config),
            "intrinsics": array((3, 3), np.float64),
            "native_intrinsics": array((3, 3), np.float64),
            "native_sizes": array((2,), np.int32, doc="(height, width)"),
            "vehicle_from_camera": array((4, 4), np.float64),
            "world_from_camera": array((4, 4), np.float64),
            "lidar_counts": array((), np.int32, doc="Points of each camera."),
            "lidar_uv": array((2,), np.uint16, doc="Native pixel (column, row)."),
            "lidar_depth_m": array((), np.float32, doc="z-depth along the optical axis."),
            "lidar_rules": array((), np.uint8, doc="Bit r: wins its pixel by `lidar.RULES[r]`."),
            **{name: optional[name] for name in self.builder_config.optional},
        }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        source = self.READER.find(Path(dl_manager.manual_dir))
        self._plan = tempfile.TemporaryDirectory(prefix="fsmde_jax_plan_")  # gone with the builder
        planned = self.READER.plan(source, ("train", "val"), Path(self._plan.name))
        return {split: self._generate_examples(scenes) for split, scenes in planned.items()}

    def _generate_examples(self, scenes: dict[str, Path]) -> Iterator[tuple[str, Example]]:
        for scene_id, path in scenes.items():
            scene = self.READER.Scene(path, scene_id)
            for index in range(len(scene)):
                example = self.example(scene.sample(index))
                example["next_index"] = index + 1 if index + 1 < len(scene) else -1
                yield example["sample_id"], example

    def example(self, sample: recording.Sample) -> Example:
        """Reads and converts one sample, whose neighbours are taken to exist except before 0.

        Raises `RecordingError` for any file that is missing or broken.
        """
        cameras = self.ring_order(sample)
        projected = self._project(sample.lidar, cameras)
        size = self.builder_config.image_size
        return {
            "sample_id": f"{sample.scene_id}/{sample.index:06d}",
            "scene_id": sample.scene_id,
            "index": sample.index,
            "previous_index": sample.index - 1,
            "next_index": sample.index + 1,
            "camera_names": [camera.name for camera in cameras],
            "images": [self._encode(recording.read_image(camera)) for camera in cameras],
            "intrinsics": np.stack(
                [rig.scale_intrinsics(camera.intrinsics, camera.size, size) for camera in cameras]
            ),
            "native_intrinsics": np.stack([camera.intrinsics for camera in cameras]),
            "native_sizes": np.array([camera.size for camera in cameras], np.int32),
            "vehicle_from_camera": np.stack([camera.vehicle_from_camera for camera in cameras]),
            "world_from_camera": np.stack([camera.world_from_camera for camera in cameras]),
            "lidar_counts": np.array([len(uv) for uv, _, _ in projected], np.int32),
            "lidar_uv": np.concatenate([uv for uv, _, _ in projected]).astype(np.uint16),
            "lidar_depth_m": np.concatenate([depth_m for _, depth_m, _ in projected]).astype(
                np.float32
            ),
            "lidar_rules": np.concatenate([rules for _, _, rules in projected]),
        }

    def files_of(self, sample: recording.Sample) -> list[Path]:
        """What a sample is made from beside its scene's description: images, cloud, calibration."""
        lidar_files = [] if sample.lidar is None else [sample.lidar.cloud_path]
        calibration = [] if sample.calibration_path is None else [sample.calibration_path]
        return [*(camera.image_path for camera in sample.cameras), *lidar_files, *calibration]

    def _project(
        self, sweep: recording.Lidar | None, cameras: list[recording.Camera]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Pixels, depths and rules of each camera; none where the sample has no LiDAR."""
        if sweep is None:
            return [(np.zeros((0, 2), np.int64), np.zeros(0), np.zeros(0, np.uint8))] * len(cameras)
        points_m = self.READER.read_points(sweep)
        return [self._project_onto(camera, points_m, sweep.world_from_lidar) for camera in cameras]

    def _project_onto(
        self, camera: recording.Camera, points_m: np.ndarray, world_from_lidar: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        where = (world_from_lidar, camera.world_from_camera, camera.intrinsics, camera.size)
        if self.PROJECTS_BY_RULES:
            return lidar.project_for_rules(points_m, *where)
        uv, depth_m = lidar.project_points(points_m, *where)
        return uv, depth_m, np.full(len(uv), lidar.ALL_RULES, np.uint8)

    def ring_order(self, sample: recording.Sample) -> list[recording.Camera]:
        """The cameras present, in the order in which they are stored."""
        return sorted(sample.cameras, key=lambda camera: self.rank(camera.name))

    def rank(self, name: str) -> tuple[int, str]:
        """Sort key that puts the known ring first."""
        known = self.CAMERAS.index(name) if name in self.CAMERAS else len(self.CAMERAS)
        return known, name

    def _encode(self, image: Image.Image) -> bytes:
        """The image at the prepared size as a JPEG or PNG file.

        Lanczos is what the published baselines resize with; PIL widens its support when it
        shrinks an image, so nothing aliases.
        """
        height, width = self.builder_config.image_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format=self.builder_config.image_format, quality=_JPEG_QUALITY)
        return buffer.getvalue()


def optional_features(config: RigConfig) -> dict[str, Any]:
    """What a builder may store beside the schema, by name: one row a camera, in its order.

    A config names those that are there in `optional`; adding one needs no other version. Pictures
    are given as JPEG or PNG files: what TFDS would encode itself takes TensorFlow. The
    calibration of the frames before and after is the image's; where there is no such frame the
    picture is black and the pose 0.
    """
    per_pixel = _pictures(dataclasses.replace(config, image_format="png"), channels=1)
    return {
        "dense_depth_m": tfds.features.Tensor(
            shape=(None, *config.image_size),
            dtype=np.float16,
            encoding="zlib",
            doc="z-depth of every pixel; 0 where there is no surface.",
        ),
        "previous_images": _pictures(config),
        "next_images": _pictures(config),
        "world_from_previous_camera": array((4, 4), np.float64),
        "world_from_next_camera": array((4, 4), np.float64),
        "class_map": per_pixel,
        "mirror_strength": per_pixel,  # of mirror images: 0 none, 255 a perfect mirror
        "images_without_mirrors": _pictures(config),
    }


def _pictures(config: RigConfig, channels: int = 3) -> tfds.features.Sequence:
    """One picture a camera at the prepared size."""
    shape = (*config.image_size, channels)
    return tfds.features.Sequence(
        tfds.features.Image(shape=shape, encoding_format=config.image_format)
    )


def array(shape: tuple[int, ...], dtype: type, doc: str | None = None) -> tfds.features.Tensor:
    """One row a camera or point, as raw bytes: the default encoding rounds float64 to float32."""
    return tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes", doc=doc)
