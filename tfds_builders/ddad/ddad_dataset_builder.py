"""DDAD and other recordings in the DGP layout."""

from fsmde_jax.data import prepared
from fsmde_jax.data.readers import dgp
from tfds_builders import base


class Builder(base.RigBuilder):
    """DDAD, prepared from `<manual_dir>/ddad.json`."""

    DEFAULT_CONFIG = base.RigConfig(name="384x640", description="The published baselines' size.")
    MANUAL_DOWNLOAD_INSTRUCTIONS = prepared.raw_data_help("ddad")
    HOMEPAGE = "https://github.com/TRI-ML/DDAD"
    READER = dgp
    CAMERAS = ("CAMERA_01", "CAMERA_05", "CAMERA_07", "CAMERA_09", "CAMERA_08", "CAMERA_06")
