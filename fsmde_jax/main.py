"""Train, then evaluate: `python -m fsmde_jax.main --config=configs/demo.py`.

Kept short: flags, then the config's runs in order. Run the same command again and it goes
on where it stopped.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from fsmde_jax import config as config_lib
from fsmde_jax import dry_run, evaluate, process, stages
from fsmde_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default runs/<config.name>.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Build everything, print sizes, train nothing.")


def main(_) -> None:
    """Runs the config and what it needs before, evaluates it and prints its table."""
    process.set_up()
    try:
        run(CONFIG.value)
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def run(config: config_lib.ConfigDict) -> None:
    """One job: `--dry_run`, or train and evaluate."""
    config_lib.validate(config)
    if DRY_RUN.value:
        print(dry_run.report(config))
        return
    workdir = pathlib.Path(WORKDIR.value or f"runs/{config.name}")
    config = stages.planned(config, workdir)
    if interrupted := stages.run(config, workdir):
        sys.exit(128 + interrupted)  # the shell's convention for a signal
    results = evaluate.evaluate_run(config, workdir)
    print(f"\n{evaluate.summary(config, results)}\n\nReport and pictures: {workdir / 'report'}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    process.start(main)
