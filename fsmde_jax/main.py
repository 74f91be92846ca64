"""Train, then evaluate: `python -m fsmde_jax.main --config=configs/demo.py`.

Kept short: flags, then the config's runs in order. Run the same command again and it goes
on where it stopped; with `--fork=NEW` a new run starts from its weights (`fsmde_jax/run/fork.py`).
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from fsmde_jax import cli, make
from fsmde_jax import config as config_lib
from fsmde_jax.evaluate import measure, report
from fsmde_jax.run import fork
from fsmde_jax.train import dry_run, stages

CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default runs/<config.name>.")
FORK = flags.DEFINE_string(
    "fork", None, "New folder of a run that starts from the weights of the one in --workdir."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Build everything, print sizes, train nothing.")


def main(_) -> None:
    """Runs the config and what it needs before, evaluates it and prints its table."""
    cli.set_up()
    with cli.errors_as_lines():
        run(CONFIG.value)


def run(config: config_lib.ConfigDict) -> None:
    """One job: `--dry_run`, or train and evaluate."""
    config_lib.validate(config)
    if DRY_RUN.value:
        print(dry_run.report(config))
        return
    workdir = pathlib.Path(WORKDIR.value or f"runs/{config.name}")
    if FORK.value:
        fork.fork(workdir, pathlib.Path(FORK.value))
        workdir = pathlib.Path(FORK.value)
    if interrupted := make.run(config, workdir):
        sys.exit(128 + interrupted)  # the shell's convention for a signal
    results = measure.evaluate_run(stages.planned(config, workdir), workdir)
    print(f"\n{report.summary(config, results)}\n\nReport and pictures: {workdir / 'report'}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.start(main)
