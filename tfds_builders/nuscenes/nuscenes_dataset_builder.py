"""nuScenes, key frame by key frame."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fsmde_jax.data import prepared
from fsmde_jax.data.readers import nuscenes, recording
from tfds_builders import base


class Builder(base.RigBuilder):
    """v1.0-mini or v1.0-trainval, from the tables in `<manual_dir>/v1.0-*`."""

    DEFAULT_CONFIG = base.RigConfig(
        name="352x640", image_size=(352, 640), description="The published baselines' size."
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = prepared.raw_data_help("nuscenes")
    HOMEPAGE = "https://www.nuscenes.org"
    READER = nuscenes
    PROJECTS_BY_RULES = True
    CAMERAS = nuscenes.CAMERAS

    def feature_dict(self) -> dict[str, Any]:
        """The common schema, and each camera's frames before and after at its own 12 Hz.

        Of those only the file, relative to the folder that holds `sweeps/` and empty where there
        is none, and the pose, then 0.
        """
        features = super().feature_dict()
        for side in ("previous", "next"):
            features[f"{side}_files"] = tfds.features.Sequence(tfds.features.Text())
            features[f"world_from_{side}_camera"] = base.array((4, 4), np.float64)
        return features

    def example(self, sample: recording.Sample) -> base.Example:
        """The common example with the cameras' frames before and after."""
        example = super().example(sample)
        for side in ("previous", "next"):
            frames = [getattr(camera, side) for camera in self.ring_order(sample)]
            example[f"{side}_files"] = [frame.filename if frame else "" for frame in frames]
            example[f"world_from_{side}_camera"] = np.stack(
                [frame.world_from_camera if frame else np.zeros((4, 4)) for frame in frames]
            )
        return example
