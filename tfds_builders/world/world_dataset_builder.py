"""The miniature world, which is written in DDAD's layout, and its dense truth."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fsmde_jax.data import dgp, prepared, recording
from fsmde_jax.data.recording import RecordingError
from tfds_builders import base
from tfds_builders.ddad import ddad_dataset_builder as ddad


@dataclasses.dataclass(eq=False, kw_only=True)
class WorldRigConfig(base.RigConfig):
    """As for DDAD.

    Attributes:
      dense_depth: also store the true depth of every pixel.
    """

    dense_depth: bool = False


class Builder(ddad.Builder):
    """Procedural streets seen by a DDAD-like ring."""

    HOMEPAGE = None
    DEFAULT_CONFIG = WorldRigConfig(name="96x160", image_size=(96, 160), description="The demo's.")
    MANUAL_DOWNLOAD_INSTRUCTIONS = prepared.raw_data_help("world")

    def feature_dict(self) -> dict[str, Any]:
        """DDAD's schema, and `dense_depth_m` [n h w] on request, 0 where there is no surface."""
        features = super().feature_dict()
        if self.builder_config.dense_depth:
            features["dense_depth_m"] = tfds.features.Tensor(
                shape=(None, *self.builder_config.image_size), dtype=np.float16, encoding="zlib"
            )
        return features

    def example(self, sample: recording.Sample) -> base.Example:
        """DDAD's, with the dense truth of each camera on request."""
        example = super().example(sample)
        if self.builder_config.dense_depth:
            example["dense_depth_m"] = np.stack(
                [self._dense_depth_m(camera) for camera in self.ring_order(sample)]
            )
        return example

    def _dense_depth_m(self, camera: recording.Camera) -> np.ndarray:
        """Depth at the native pixel under each prepared pixel's centre: no mixing over edges."""
        scene_dir = camera.image_path.parents[2]
        path = scene_dir / "depth" / camera.name / f"{camera.image_path.stem}.npz"
        depth_m = dgp.read_array(path)
        if depth_m.shape != camera.size:
            raise RecordingError(path, f"`data` is {depth_m.shape}, its image is {camera.size}")
        rows, columns = (
            ((np.arange(small) + 0.5) * large / small).astype(int)
            for small, large in zip(self.builder_config.image_size, camera.size, strict=True)
        )
        return np.nan_to_num(depth_m[np.ix_(rows, columns)], posinf=0.0).astype(np.float16)
