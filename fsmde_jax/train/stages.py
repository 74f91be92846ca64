"""The runs that make up a job: the miniature world's data, the teacher's head, the run itself."""

import logging
import pathlib

from ml_collections import ConfigDict

from fsmde_jax import cli
from fsmde_jax.config import HEAD_FOLDER, validate
from fsmde_jax.data import prepared
from fsmde_jax.prepare import folder
from fsmde_jax.run import checkpoints
from fsmde_jax.run.load import check_head
from fsmde_jax.tasks import foundation, make_task
from fsmde_jax.train import loop
from fsmde_jax.world import WorldConfig, write_world

log = logging.getLogger(__name__)


# Keys of `data` that a head's stage has from its run, unless it names data of its own.
_SAME_DATA = ("dataset", "config_name", "train_split", "eval_split", "cameras", "labelled_scenes")
_SAME_DATA += ("downscale", "masks")


def planned(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """A copy of the config as it is run in `workdir`: it names its teacher's head.

    A head that `teacher.head_stage` has yet to train will be in `workdir/teacher_head`. The stage
    has from its run all that teacher and student must share. It also has its data, unless it names
    other data (`data.config_name`).
    """
    config = config.copy_and_resolve_references()
    stage = config.teacher.head_stage
    if not _needs_head(config) or stage is None or config.teacher.head_weights:
        return config
    stage.mesh, stage.bins = config.mesh, config.bins
    stage.student.canonical_focal_px = config.student.canonical_focal_px
    for key in ("data_dir", "min_depth_m", "max_depth_m"):
        stage.data[key] = config.data[key]
    for key in ("weights", "size", "image", "resize", "position_offset", "train_neck"):
        stage.teacher[key] = config.teacher[key]
    own = (config.data.dataset, config.data.config_name)
    if not stage.data.config_name or (stage.data.dataset, stage.data.config_name) == own:
        for key in _SAME_DATA:
            stage.data[key] = config.data[key]
        stage.world = config.world
    config.teacher.head_weights = str(_head_folder(workdir))
    return config


def run(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """Trains the teacher's head, then `planned(config)` into `workdir`; not what is done.

    Returns the number of a signal that interrupted it, or None.
    """
    config = planned(config, workdir)
    if (interrupted := run_stages(config, workdir)) or foundation.is_given(config):
        return interrupted
    return loop.train(config, workdir)


def run_stages(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """What comes before a run: the teacher's head in `workdir/teacher_head`, and the world's data.

    What does not fit is refused before anything is made. Returns the number of a signal that
    interrupted it, or None.
    """
    config = planned(config, workdir)
    needs_teacher = make_task(config).build_teacher is not None
    if needs_teacher or config.task in ("teacher_head", "foundation"):
        foundation.architecture(config)  # a wrong name is refused before anything is rendered
    head, stage = config.teacher.head_weights, config.teacher.head_stage
    makes_head = stage is not None and head == str(_head_folder(workdir))
    if makes_head:
        validate(stage)
    if _needs_head(config) and head:
        if not makes_head or checkpoints.latest_step(pathlib.Path(head)) is not None:
            check_head(config)
        if makes_head and (interrupted := run(stage, pathlib.Path(head))):
            return interrupted
    if config.data.dataset == "world":
        make_world(config)
    return None


def _needs_head(config: ConfigDict) -> bool:
    needs_teacher = make_task(config).build_teacher is not None
    return needs_teacher and config.teacher.binning == "head"


def _head_folder(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / HEAD_FOLDER


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
    summary = folder.prepare(
        data.dataset,
        source,
        pathlib.Path(data.data_dir),
        tuple(image_size),
        dense_depth=dense_depth,
        num_workers=cli.num_cores(),
        config_name=data.config_name,
    )
    log.info("%s\n%s", directory, summary.table())
