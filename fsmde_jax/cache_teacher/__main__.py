"""Runs a frozen teacher once over the training split and stores what distillation reads of it.

    python -m fsmde_jax.cache_teacher --config=configs/ddad.py --config.teacher.image=prepared
    python -m fsmde_jax.main --config=configs/ddad.py --config.teacher.image=prepared \\
        --config.teacher.source=cached

Run the first again after an interruption and it goes on; with `--verify=N` it checks the checksums
of a finished cache's files, recomputes N random entries and compares. Trains the teacher's head
first if need be.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from fsmde_jax import cli, make
from fsmde_jax.cache_teacher import fill
from fsmde_jax.train import stages


def main(_) -> None:
    """The teacher's head if need be, then the cache or its verification."""
    cli.set_up()
    workdir = pathlib.Path(WORKDIR.value or f"runs/{CONFIG.value.name}")
    with cli.errors_as_lines():
        config = stages.planned(CONFIG.value, workdir)
        if interrupted := make.before(config, workdir, kinds=(stages.WORLD, stages.RUN)):
            sys.exit(128 + interrupted)
        if VERIFY.value:
            fill.verify(config, VERIFY.value)
        else:
            fill.build(config)


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default runs/<name>.")
    VERIFY = flags.DEFINE_integer("verify", 0, "Check all files, recompute so many random entries.")
    flags.mark_flag_as_required("config")
    cli.start(main)
