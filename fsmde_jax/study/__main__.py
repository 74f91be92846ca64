"""Arms x seeds on one benchmark, with a report:
`python -m fsmde_jax.study --config=configs/study_demo.py --workdir=runs/study`.

An arm is a name and what it overrides in the base config. In order: the data, the teacher's head
and its stored outputs, once for all; each arm's trials on the tuning split, of which the one with
the lowest AbsRel is taken; the seeds; each of them on the test data, once; the report. A run is a
process of `fsmde_jax.main` in a folder of its own, its output in `log.txt`:

    WORKDIR/teacher/                 head and stored outputs
    WORKDIR/tuning/<arm>/trial<k>/
    WORKDIR/runs/<arm>/seed<k>/      report/ on the tuning split, test/ on the test data
    WORKDIR/report/                  study.md, study.json, pictures

Run the same command again after an interruption and it goes on; what is done is not repeated. A
run that fails is named, one that another process is at is left out, the others go on. Several
machines, or devices, share the work over one folder: first `--only=teacher` on one of them, then on
each its own arms (`--only=ckd,vrkd`) or runs (`--only=vrkd:trial*`, then `--only=vrkd:seed1`); at
last `--report_only`. The runs end with the study, however that ends.
"""

import pathlib
import signal
import sys

from absl import flags
from ml_collections import config_flags

from fsmde_jax import cli, files
from fsmde_jax.study import execute, report
from fsmde_jax.study.plan import Study


def main(_) -> None:
    """Runs the study and writes its report."""
    cli.set_up()
    # A process that is told to end passes that on, as at Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cli.errors_as_lines():
        study = Study(CONFIG.value, pathlib.Path(WORKDIR.value))
        folder = study.workdir / "report"
        report.refuse_foreign(folder)
        failed = []
        if not REPORT_ONLY.value:
            failed = execute.execute(study, ONLY.value, JOBS.value)
        with files.owned(folder, f"writing the report {folder}"):
            missing = report.write(study)
    print(f"Report: {folder / 'study.md'}")
    if missing:
        print(f"Not there yet: {', '.join(missing)}")
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; see their log.txt")


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "The study.", lock_config=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "The study's folder.")
    ONLY = flags.DEFINE_list("only", [], "Arms or runs (vrkd, vrkd:seed1, vrkd:trial*), teacher.")
    JOBS = flags.DEFINE_integer("jobs", 1, "How many processes at once.", lower_bound=1)
    REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Only report what is there.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.start(main)
