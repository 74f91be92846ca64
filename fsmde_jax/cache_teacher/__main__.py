"""Runs a frozen teacher once over the training split and stores what it says.

    python -m fsmde_jax.cache_teacher --config=ddad --config.teacher.image=prepared
    python -m fsmde_jax.main --config=ddad --config.teacher.image=prepared \\
        --config.teacher.source=cached

The first command, given again after an interruption, goes on. It trains the teacher's
head first if need be. --verify=N compares the checksums of a finished cache's files,
and N random entries with what the teacher says now.
"""

import pathlib
import sys

from absl import flags

from fsmde_jax import cli


def define_flags() -> None:
    """The command's flags."""
    cli.define_config("Whose teacher and data.")
    flags.DEFINE_string("workdir", None, "The run's folder; runs/<config.name> by default.")
    flags.DEFINE_integer("verify", 0, "Check all files, recompute so many random entries.")


def main(_) -> None:
    """The teacher's head if need be, then the cache or its verification."""
    # Slow to import; --help and a misspelt flag do without.
    from fsmde_jax import make
    from fsmde_jax.cache_teacher import fill
    from fsmde_jax.train import stages

    cli.set_up()
    values = flags.FLAGS
    workdir = pathlib.Path(values.workdir or f"runs/{values.config.name}")
    config = stages.planned(values.config, workdir)
    if interrupted := make.before(config, workdir, kinds=(stages.WORLD, stages.RUN)):
        sys.exit(128 + interrupted)
    if values.verify:
        fill.verify(config, values.verify)
    else:
        fill.build(config)


if __name__ == "__main__":
    cli.start(__name__)
