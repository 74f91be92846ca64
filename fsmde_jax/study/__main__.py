"""Trains arms x seeds on one benchmark, and reports on them.

    python -m fsmde_jax.study --config=study_demo --workdir=runs/study
    python -m fsmde_jax.study --config=study_demo --workdir=runs/study --report_only

An arm is a name and what it overrides in the base config. In order: the data, the
teacher's head and its stored outputs, once for all; each arm's trials on the tuning
split, of which the one with the lowest AbsRel is taken; the seeds; each of them on the
test data, once; the report. A run is a process of its own, its output in log.txt:

    WORKDIR/teacher/                 head and stored outputs
    WORKDIR/tuning/<arm>/trial<k>/
    WORKDIR/runs/<arm>/seed<k>/      report/ on the tuning split, test/ on the test data
    WORKDIR/report/                  study.md, study.json, pictures

The same command goes on after an interruption; what is done is not repeated. Several
machines share the work over one folder: first --only=teacher on one of them, then on
each its own arms (--only=ckd,vrkd) or runs (--only=vrkd:trial*); at last --report_only.
"""

import pathlib
import signal
import sys

from absl import flags

from fsmde_jax import cli, files


def define_flags() -> None:
    """The command's flags."""
    cli.define_config("The study.", key="arms")
    flags.DEFINE_string("workdir", None, "The study's folder.", required=True)
    flags.DEFINE_list("only", [], "Arms or runs (vrkd, vrkd:seed1, vrkd:trial*), teacher.")
    flags.DEFINE_integer("jobs", 1, "How many processes at once.", lower_bound=1)
    flags.DEFINE_bool("report_only", False, "Only report what is there.")


def main(_) -> None:
    """Runs the study and writes its report."""
    # Slow to import; --help and a misspelt flag do without.
    from fsmde_jax.study import execute, report
    from fsmde_jax.study.plan import Study

    cli.set_up()
    values = flags.FLAGS
    # A process that is told to end passes that on, as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    study = Study(values.config, pathlib.Path(values.workdir))
    folder = study.workdir / "report"
    report.refuse_foreign(folder)
    failed = []
    if not values.report_only:
        failed = execute.execute(study, values.only, values.jobs)
    with files.owned(folder, f"writing the report {folder}"):
        missing = report.write(study)
    print(f"Report: {folder / 'study.md'}")
    if missing:
        print(f"Not there yet: {', '.join(missing)}")
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; see their log.txt")


if __name__ == "__main__":
    cli.start(__name__)
