"""A tiny prepared recording and a config that trains on it: shared by the tests of runs."""

import pathlib

from dgp_fixture import write_recording

from fsmde_jax.config import default_config
from fsmde_jax.prepare import scenes


def prepare_recording(root: pathlib.Path) -> pathlib.Path:
    """Writes and prepares a recording at 32x64; returns the data_dir."""
    write_recording(root / "raw")
    scenes.prepare("ddad", root / "raw", root / "data", (32, 64), image_format="png")
    return root / "data"


def tiny_config(data_dir: pathlib.Path):
    """A student on six training samples: one batch of four rings a step."""
    config = default_config()
    config.name = "tiny"
    config.data.data_dir = str(data_dir)
    config.data.config_name = "32x64_png"
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.data.points_per_image = 64
    config.data.num_threads = 2
    config.student.size = "tiny"
    config.student.canonical_focal_px = 60.0
    config.bins.num_bins = 8
    config.teacher.size = "dpt_tiny"
    config.teacher.weights = "random"
    config.objective.vrkd_grid = (4, 8)
    config.train.steps = 6
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.train.eval_every = 0
    config.evaluation.pictures = 1
    return config
