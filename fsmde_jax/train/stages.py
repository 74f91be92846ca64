"""What has to exist before a run: the world's data, the teacher's head, the teacher's cache.

Pure: a config in, a list of stages out, in the order in which they are made. `fsmde_jax/make.py`
makes them.
"""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from fsmde_jax.config import HEAD_FOLDER, input_focal_px, validate
from fsmde_jax.run import checkpoints
from fsmde_jax.run.load import check_head
from fsmde_jax.tasks import foundation, make_task

# Keys of `data` that a head's stage has from its run, unless it names data of its own.
_SAME_DATA = ("dataset", "config_name", "train_split", "eval_split", "cameras", "labelled_scenes")
_SAME_DATA += ("downscale", "masks")

KINDS = WORLD, RUN, TEACHER_CACHE = ("world", "run", "teacher cache")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One thing that has to exist before a run.

    Attributes:
      kind: `WORLD` (rendered and prepared), `RUN` (a finished training) or `TEACHER_CACHE`.
      config: of what is made.
      workdir: a run's folder; that of the run which needs the stage for the other kinds.
    """

    kind: str
    config: ConfigDict
    workdir: pathlib.Path


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
    for key in ("data_dir", "min_depth_m", "max_depth_m"):
        stage.data[key] = config.data[key]
    for key in ("weights", "size", "image", "resize", "position_offset", "train_neck"):
        stage.teacher[key] = config.teacher[key]
    own = (config.data.dataset, config.data.config_name)
    if not stage.data.config_name or (stage.data.dataset, stage.data.config_name) == own:
        for key in _SAME_DATA:
            stage.data[key] = config.data[key]
        stage.world = config.world
    # As the network of the run has it, at the size that each of them gets.
    stage.student.canonical_focal_px = input_focal_px(config) * stage.data.downscale
    config.teacher.head_weights = str(_head_folder(workdir))
    return config


def needed(config: ConfigDict, workdir: pathlib.Path) -> list[Stage]:
    """The stages before a run in `workdir`, whether they exist already or not."""
    config, stages = planned(config, workdir), []
    if _makes_head(config, workdir):
        head, folder = config.teacher.head_stage, _head_folder(workdir)
        stages += [*needed(head, folder), Stage(RUN, planned(head, folder), folder)]
    if config.data.dataset == "world":
        stages.append(Stage(WORLD, config, workdir))
    if config.teacher.source == "cached" and _has_teacher(config):
        stages.append(Stage(TEACHER_CACHE, config, workdir))
    return stages


def check(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses what cannot work before anything is made, of the run and of its stages.

    Raises `UserError`: a value of a config, a foundation model that is not there, or a teacher's
    head that does not fit.
    """
    config = planned(config, workdir)
    makes_head = _makes_head(config, workdir)
    if makes_head:
        validate(config.teacher.head_stage)
        check(config.teacher.head_stage, _head_folder(workdir))
    if _has_teacher(config) or config.task in ("teacher_head", "foundation"):
        foundation.architecture(config)
    if _needs_head(config) and config.teacher.head_weights:
        trained = checkpoints.latest_step(pathlib.Path(config.teacher.head_weights)) is not None
        if trained or not makes_head:
            check_head(config)


def _makes_head(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether the planned config's head is its own stage's."""
    own = config.teacher.head_weights == str(_head_folder(workdir))
    return _needs_head(config) and config.teacher.head_stage is not None and own


def _needs_head(config: ConfigDict) -> bool:
    return _has_teacher(config) and config.teacher.binning == "head"


def _has_teacher(config: ConfigDict) -> bool:
    return make_task(config).build_teacher is not None


def _head_folder(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / HEAD_FOLDER
