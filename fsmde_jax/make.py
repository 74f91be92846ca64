"""Makes what `train/stages.py` lists, and runs; what exists already is left as it is."""

import logging
import pathlib

from ml_collections import ConfigDict

from fsmde_jax import cli
from fsmde_jax.cache_teacher import fill
from fsmde_jax.data import prepared, teacher_cache
from fsmde_jax.prepare import folder
from fsmde_jax.tasks import foundation
from fsmde_jax.train import loop, stages
from fsmde_jax.world import WorldConfig, write_world

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    """A run with all that has to exist before it; what is done is not done again.

    Returns the number of a signal that interrupted it, or None. Raises `UserError` before anything
    is made where something cannot work.
    """
    if interrupted := before(config, workdir):
        return interrupted
    return _train(stages.planned(config, workdir), workdir)


def before(
    config: ConfigDict, workdir: pathlib.Path, kinds: tuple[str, ...] = stages.KINDS
) -> int | None:
    """What has to exist before a run, of some kinds. Returns and raises as `run` does."""
    stages.check(config, workdir)
    for stage in stages.needed(config, workdir):
        if stage.kind not in kinds:
            continue
        if stage.kind == stages.WORLD:
            world(stage.config)
        elif stage.kind == stages.TEACHER_CACHE:
            cache(stage.config)
        elif interrupted := _train(stage.config, stage.workdir):
            return interrupted
    return None


def _train(config: ConfigDict, workdir: pathlib.Path) -> int | None:
    return None if foundation.is_given(config) else loop.train(config, workdir)


def world(config: ConfigDict) -> None:
    """Renders and prepares the miniature world, unless that is done."""
    data, options = config.data, config.world.to_dict()
    directory = prepared.version_dir(pathlib.Path(data.data_dir), data.dataset, data.config_name)
    image_size, dense_depth = options.pop("image_size"), options.pop("dense_depth")
    source = pathlib.Path(data.data_dir) / "world_raw" / data.config_name
    # A world that is there already is checked against the config, and finished if it was cut off.
    if source.is_dir() or not directory.is_dir():
        log.info("Rendering the miniature world into %s", source)
        write_world(WorldConfig(**options), source)
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


def cache(config: ConfigDict) -> None:
    """Stores the teacher's outputs, unless a whole cache is there: a training checks whose it is.

    Raises `UserError` as `fill.build` does.
    """
    directory = teacher_cache.directory_of(config)
    if not teacher_cache.is_whole(directory):
        log.info("Storing the teacher's outputs in %s", directory)
        fill.build(config)
