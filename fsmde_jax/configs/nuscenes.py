"""nuScenes: six cameras, 352x640, 0 to 80 m; otherwise the run of `configs/ddad.py`.

    python -m fsmde_jax.prepare --dataset=nuscenes --source=RAW --data_dir=data
    python -m fsmde_jax.main --config=configs/nuscenes.py

For accelerators: networks compute in bfloat16, and what was measured best on the miniature world is
taken from there (`configs/ddad.py` says what and why). Weights come from the Hugging Face hub. RAW
holds v1.0-trainval/ (or v1.0-mini/), samples/ and sweeps/.

`configs/nuscenes.py:smoke` is the same path shrunk: a small student overfits a handful of real
frames, taught by the shipped model of the miniature world, and is measured on those very frames;
minutes on two CPU cores. For the frames in RAW:

    python -m fsmde_jax.prepare --dataset=nuscenes --source=RAW --data_dir=data --splits=train
    python -m fsmde_jax.main --config=configs/nuscenes.py:smoke
"""

from fsmde_jax.config import ConfigError
from fsmde_jax.configs import ddad
from fsmde_jax.data.readers import nuscenes


def get_config(variant: str = ""):
    """The full run, or `smoke`."""
    if variant not in ("", "smoke"):
        raise ConfigError(
            f"configs/nuscenes.py has no variant {variant!r}; use configs/nuscenes.py:smoke"
        )
    config = ddad.get_config(variant)
    for run in (config, config.teacher.head_stage):
        _put_on_nuscenes(run)
        if variant == "smoke":
            run.data.eval_split = "train"
    config.teacher.head_stage.data.config_name = ""  # the student's data
    return config


def _put_on_nuscenes(config):
    """Its rig, depth range and canonical camera."""
    config.name = config.name.replace("ddad", "nuscenes")
    config.data.dataset = "nuscenes"
    config.data.config_name = "352x640"
    config.data.cameras = nuscenes.CAMERAS
    config.data.max_depth_m = 80.0
    config.student.canonical_focal_px = 500.0  # at 640 px of width
