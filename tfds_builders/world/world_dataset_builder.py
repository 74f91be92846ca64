"""The miniature world, which is written in DDAD's layout, and its dense truth."""

from pathlib import Path

import numpy as np

from fsmde_jax.data import prepared
from fsmde_jax.data.readers import dgp, recording
from fsmde_jax.data.readers.recording import RecordingError
from tfds_builders import base
from tfds_builders.ddad import ddad_dataset_builder as ddad


class Builder(ddad.Builder):
    """Procedural streets seen by a DDAD-like ring; stores the optional `dense_depth_m`, too."""

    HOMEPAGE = None
    DEFAULT_CONFIG = base.RigConfig(name="96x160", image_size=(96, 160), description="The demo's.")
    MANUAL_DOWNLOAD_INSTRUCTIONS = prepared.raw_data_help("world")

    def example(self, sample: recording.Sample) -> base.Example:
        """DDAD's, with the dense truth of each camera on request."""
        example = super().example(sample)
        if "dense_depth_m" in self.builder_config.optional:
            example["dense_depth_m"] = np.stack(
                [self._dense_depth_m(camera) for camera in self.ring_order(sample)]
            )
        return example

    def files_of(self, sample: recording.Sample) -> list[Path]:
        """DDAD's, and the depth maps on request."""
        files = super().files_of(sample)
        if "dense_depth_m" in self.builder_config.optional:
            files += [_depth_path(camera) for camera in sample.cameras]
        return files

    def _dense_depth_m(self, camera: recording.Camera) -> np.ndarray:
        """Depth at the native pixel under each prepared pixel's centre: no mixing over edges."""
        path = _depth_path(camera)
        depth_m = dgp.read_array(path)
        if depth_m.shape != camera.size:
            raise RecordingError(path, f"`data` is {depth_m.shape}, its image is {camera.size}")
        rows, columns = (
            ((np.arange(small) + 0.5) * large / small).astype(int)
            for small, large in zip(self.builder_config.image_size, camera.size, strict=True)
        )
        return np.nan_to_num(depth_m[np.ix_(rows, columns)], posinf=0.0).astype(np.float16)


def _depth_path(camera: recording.Camera) -> Path:
    scene_dir = camera.image_path.parents[2]
    return scene_dir / "depth" / camera.name / f"{camera.image_path.stem}.npz"
