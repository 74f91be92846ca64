"""Trains what a config says, with all that has to exist before, then evaluates.

    python -m fsmde_jax.main --config=demo
    python -m fsmde_jax.main --config=demo --config.train.steps=2000 --workdir=runs/long

The same command goes on where it stopped. With --fork=NEW a new run starts from
the weights of the one in --workdir (`fsmde_jax/run/fork.py`).
"""

import pathlib
import sys

from absl import flags

from fsmde_jax import cli
from fsmde_jax import config as config_lib


def define_flags() -> None:
    """The command's flags."""
    cli.define_config("What to train.")
    flags.DEFINE_string("workdir", None, "The run's folder; runs/<config.name> by default.")
    flags.DEFINE_string("fork", None, "New folder of a run that starts from --workdir's weights.")
    flags.DEFINE_bool("dry_run", False, "Build everything, print sizes, train nothing.")
    flags.DEFINE_bool("print_config", False, "Print the config as a run keeps it, do nothing.")


def main(_) -> None:
    """Makes what the config needs, trains, evaluates and prints the table."""
    # Slow to import; --help and a misspelt flag do without.
    from fsmde_jax import make
    from fsmde_jax.evaluate import measure, report
    from fsmde_jax.run import fork
    from fsmde_jax.train import dry_run, stages

    cli.set_up()
    values = flags.FLAGS
    config, workdir = values.config, pathlib.Path(values.workdir or f"runs/{values.config.name}")
    config_lib.validate(config)
    if values.dry_run:
        print(dry_run.report(config))
        return
    if values.print_config:
        print(config_lib.as_json(stages.planned(config, workdir), workdir))
        return
    if values.fork:
        fork.fork(workdir, pathlib.Path(values.fork))
        workdir = pathlib.Path(values.fork)
    if interrupted := make.run(config, workdir):
        sys.exit(128 + interrupted)  # the shell's convention for a signal
    results = measure.evaluate_run(stages.planned(config, workdir), workdir)
    print(f"\n{report.summary(config, results)}\n\nReport and pictures: {workdir / 'report'}")


if __name__ == "__main__":
    cli.start(__name__)
