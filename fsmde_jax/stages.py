"""The runs that make up a job: the miniature world's data, the teacher's head, the run itself."""

import logging
import pathlib

from ml_collections import ConfigDict

from fsmde_jax import prepare, process, tasks, train
from fsmde_jax.data import prepared
from fsmde_jax.data.world import WorldConfig, write_world

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """Trains the teacher's head, then `config` into `workdir`; what is done is not repeated.

    Returns the number of a signal that interrupted it, or None.
    """
    if (interrupted := run_stages(config, workdir)) or tasks.is_given(config):
        return interrupted
    return train.train(config, workdir)


def run_stages(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """What comes before a run: the teacher's head in `workdir/teacher_head`, and the world's data.

    `config` then names the head. Returns the number of a signal that interrupted it, or None.
    """
    needs_teacher = tasks.make_task(config).build_teacher is not None
    if needs_teacher or config.task in ("teacher_head", "foundation"):
        tasks.foundation(config)  # a wrong name is refused before anything is rendered
    stage = config.teacher.head_stage
    needs_head = needs_teacher and config.teacher.binning == "head"
    if needs_head and stage is not None and not config.teacher.head_weights:
        folder = workdir / "teacher_head"
        stage.data.data_dir, stage.mesh = config.data.data_dir, config.mesh
        stage.data.labelled_scenes = config.data.labelled_scenes
        if stage.data.config_name == config.data.config_name:
            stage.world = config.world  # the same data, so the same world
        for same in ("weights", "size", "image", "resize", "position_offset", "train_neck"):
            stage.teacher[same] = config.teacher[same]
        if interrupted := run(stage, folder):
            return interrupted
        config.teacher.head_weights = str(folder)
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
        num_workers=process.num_cores(),
        config_name=data.config_name,
    )
    log.info("%s\n%s", directory, summary.table())
