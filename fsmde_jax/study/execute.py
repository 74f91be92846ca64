"""Does a study's runs, several at once: what they share, the trials, the seeds, their tests."""

import collections
import fnmatch
import logging
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from fsmde_jax import cli, make
from fsmde_jax.errors import UserError
from fsmde_jax.study.plan import TEACHER, Run, Study

POLL_S = 0.2

log = logging.getLogger("fsmde_jax.study")  # not "__main__", which stays silent


def execute(study: Study, only: Sequence[str] = (), at_once: int = 1) -> list[str]:
    """Does what is not done yet of what `only` chooses (all by default); returns what failed.

    Args:
      only: names as in `Study.names`, with wildcards, or arms.
      at_once: how many processes.
    """
    chosen = _choose(study, only)
    arms = study.config.arms
    trials = [run for arm in arms for run in study.trials(arm) if run.name in chosen]
    trials = [run for run in trials if study.abs_rel(run) is None]
    seeds = [run for arm in arms for run in study.seeds(arm) or [] if run.name in chosen]
    if chosen == [TEACHER] or trials or not all(run.trained for run in seeds):
        prepare(study)
    failed = _train(study, trials, at_once)
    failed = [run.name for run in failed if not run.diverged]

    seeds = []
    for arm in arms:
        wanted = [name for name in chosen if name.startswith(f"{arm}:seed")]
        runs = study.seeds(arm)
        if runs is None and wanted:
            log.error(
                "%s: no seed can run: of its trials some are not done (--only='%s:trial*') or all "
                "diverged (lower their optimizer.learning_rate)", arm, arm,
            )  # fmt: skip
            failed += wanted
        seeds += [run for run in runs or [] if run.name in chosen]
    failed += [run.name for run in _train(study, seeds, at_once)]

    measured = [run for run in seeds if run.trained and not run.tested]
    jobs = {f"{run.name} test": (study.test_command(run), run.folder) for run in measured}
    return failed + _run_all(jobs, at_once)


def _train(study: Study, runs: list[Run], at_once: int) -> list[Run]:
    """Trains those that are not; returns the ones that failed."""
    for run in runs:
        study.check(run)
    waiting = {run.name: run for run in runs if not run.trained}
    jobs = {name: (study.train_command(run), run.folder) for name, run in waiting.items()}
    return [waiting[name] for name in _run_all(jobs, at_once)]


def _choose(study: Study, only: Sequence[str]) -> list[str]:
    names, chosen = study.names(), set()
    for item in only or ("*",):
        pattern = f"{item}:*" if item in study.config.arms else item
        found = fnmatch.filter(names, pattern)
        if not found:
            raise UserError(
                f"--only={item} chooses nothing; there are {', '.join(study.config.arms)} and "
                f"{', '.join(names)}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def prepare(study: Study) -> None:
    """What all runs share: both worlds, the teacher's head, its stored outputs."""
    for config in (study.base, study.test):
        if config.data.dataset == "world":
            make.world(config)
    folder = study.workdir / "teacher"
    if study.shares_teacher and _run_all({TEACHER: (study.teacher_command(), folder)}, 1):
        raise UserError(f"without the teacher no arm can run: see {folder / 'log.txt'}")


def _run_all(jobs: dict[str, tuple[list[str], pathlib.Path]], at_once: int) -> list[str]:
    """Runs commands, by name with the folder of their log; returns the names that failed."""
    waiting, running, failed = collections.deque(jobs), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.popleft()
                command, folder = jobs[name]
                log.info("%s: started (%s)", name, folder / "log.txt")
                running[name] = (_start(command, folder, at_once), time.monotonic())
            for name, (child, started) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[name]
                seconds = time.monotonic() - started
                if child.returncode == cli.BUSY and name != TEACHER:
                    log.warning("%s: left out, another process is at it", name)
                elif child.returncode:
                    failed.append(name)
                    lines = (jobs[name][1] / "log.txt").read_text(
                        errors="replace"
                    ).splitlines() or [""]
                    log.error("%s: FAILED after %.0f s: %s", name, seconds, lines[-1])
                else:
                    log.info("%s: done in %.0f s, %d to go", name, seconds, len(waiting))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        log.warning("Interrupted: waiting until the running ones have saved their state.")
        for child, *_ in running.values():
            child.terminate()
        for child, *_ in running.values():
            child.wait()
        raise
    return failed


def _start(command: list[str], folder: pathlib.Path, at_once: int) -> subprocess.Popen:
    # Killed with this process, or the same command would find the run taken.
    environment = os.environ | {cli.PARENT: str(os.getpid())}
    if at_once > 1:  # each would take three quarters of a GPU's memory
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        return subprocess.Popen(
            [sys.executable, *command[1:]], stdout=file, stderr=file, env=environment
        )
