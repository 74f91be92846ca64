"""nuScenes, key frame by key frame."""

from fsmde_jax.data import nuscenes, prepared
from tfds_builders import base


class Builder(base.RigBuilder):
    """v1.0-mini or v1.0-trainval, from the tables in `<manual_dir>/v1.0-*`."""

    DEFAULT_CONFIG = base.RigConfig(
        name="352x640", image_size=(352, 640), description="The published baselines' size."
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = prepared.raw_data_help("nuscenes")
    HOMEPAGE = "https://www.nuscenes.org"
    READER = nuscenes
    PROJECTION = "nuscenes"
    CAMERAS = (
        "CAM_FRONT",
        "CAM_FRONT_LEFT",
        "CAM_BACK_LEFT",
        "CAM_BACK",
        "CAM_BACK_RIGHT",
        "CAM_FRONT_RIGHT",
    )
