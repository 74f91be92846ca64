"""A user's own rig, from a folder that holds rig.json."""

from fsmde_jax.data import prepared
from fsmde_jax.data.readers import rig_folder
from tfds_builders import base


class Builder(base.RigBuilder):
    """An own rig, prepared from `<manual_dir>/rig.json`; its cameras are stored by name."""

    DEFAULT_CONFIG = base.RigConfig(
        name="96x160", image_size=(96, 160), description="The walk-through's."
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = prepared.raw_data_help("rig")
    READER = rig_folder
