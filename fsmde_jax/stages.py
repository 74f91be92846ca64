"""The runs that make up a job: the miniature world's data, the teacher's stages, the run itself."""

import logging
import pathlib

from ml_collections import ConfigDict

from fsmde_jax import prepare, train
from fsmde_jax.data import prepared
from fsmde_jax.data.world import WorldConfig, write_world

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """Trains the teacher's stages, then `config` into `workdir`.

    Returns the number of a signal that interrupted it, or None.
    """
    return run_stages(config, workdir) or train.train(config, workdir)


def run_stages(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """What comes before a run: the teacher's stages in `workdir/teacher_*`, and the world's data.

    Finished stages are not repeated, and `config` then names their weights. Returns the number of
    a signal that interrupted it, or None.
    """
    for name, key in (("foundation", "weights"), ("head", "head_weights")):
        stage = config.teacher.stages[name]
        if stage is None or (name == "head" and config.teacher.head_weights):
            continue
        folder = workdir / f"teacher_{name}"
        stage.data.data_dir, stage.mesh = config.data.data_dir, config.mesh
        if name == "head":
            for same in ("weights", "size", "image", "resize", "position_offset", "train_neck"):
                stage.teacher[same] = config.teacher[same]
        if interrupted := run(stage, folder):
            return interrupted
        config.teacher[key] = str(folder)
    if config.data.dataset == "world":
        make_world(config)
    return None


def make_world(config: ConfigDict) -> None:
    """Renders and prepares the miniature world, unless that is done."""
    data, world = config.data, config.world.to_dict()
    directory = prepared.version_dir(pathlib.Path(data.data_dir), data.dataset, data.config_name)
    image_size, dense_depth = world.pop("image_size"), world.pop("dense_depth")
    source = pathlib.Path(data.data_dir) / "world_raw" / data.config_name
    # A world that is there already is checked against the config, and finished if it was cut off.
    if source.is_dir() or not directory.is_dir():
        log.info("Rendering the miniature world into %s", source)
        write_world(WorldConfig(**world), source)
    summary = prepare.prepare(
        data.dataset,
        source,
        pathlib.Path(data.data_dir),
        tuple(image_size),
        dense_depth=dense_depth,
        num_workers=2,
        config_name=data.config_name,
    )
    log.info("%s\n%s", directory, summary.table())
