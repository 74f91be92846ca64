"""A study's runs: arms x trials and arms x seeds of one base config, and what is done of them.

`study.py` runs them, `study_report.py` tells what came out.
"""

import dataclasses
import json
import logging
import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from fsmde_jax import config as config_lib
from fsmde_jax import files
from fsmde_jax.config import ConfigError
from fsmde_jax.errors import UserError, differences
from fsmde_jax.evaluate import results

log = logging.getLogger(__name__)

TEACHER = "teacher"  # what all arms share, in the names of a study's parts


def default_study() -> ConfigDict:
    """Every key of a study, locked against unknown ones."""
    study = ConfigDict(convert_dict=False)  # arms and trials are plain dicts
    study.name = "study"
    # The runs' config, and the one whose `data` and `evaluation` are the test, as
    # `fsmde_jax.main --config=` takes them: files or names, with a variant if need be.
    study.base = ""
    study.test = ""
    study.arms = {}  # by name, {key of the base config: value}
    # By arm, a list of further overrides to try; as many for every arm. {}: nothing is tuned.
    study.trials = {}
    study.baseline = "supervised"
    study.comparisons = ()  # further pairs of arms, (first, second), whose difference is told
    study.seeds = (0, 1, 2)
    study.tuning_seed = 100
    study.lock()
    return study


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a trial or a seed of an arm."""

    arm: str
    label: str  # "trial0", "seed1"
    folder: pathlib.Path
    overrides: dict[str, Any]  # of the base config, all of them

    @property
    def name(self) -> str:
        """As `--only` calls it."""
        return f"{self.arm}:{self.label}"

    @property
    def trained(self) -> bool:
        """Whether it is whole, with its figures on the tuning split."""
        return _figures(self.folder / "report") is not None

    @property
    def diverged(self) -> bool:
        """Whether its loss became infinite: a result, too, of a trial."""
        return not self.trained and (self.folder / "not_finite").is_dir()

    @property
    def abs_rel(self) -> float:
        """On the tuning split, of a run that is trained."""
        return _figures(self.folder / "report")["abs_rel"]

    @property
    def test(self) -> pathlib.Path:
        """Folder of the figures on the test data."""
        return self.folder / "test"

    @property
    def tested(self) -> bool:
        """Whether these are there."""
        return _figures(self.test) is not None


class Study:
    """A study's runs: what they are, which are done, which trial is the best.

    Args:
      config: as `default_study` has it.
      workdir: the study's folder.

    Raises `ConfigError` where the config, an arm or a trial cannot work, or where a run in
    `workdir` was made with another config.
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.base = _load(config.base, "config.base")
        self.test = _load(config.test, "config.test")
        _check(config, self.base)
        self.shares_teacher = self.base.teacher.weights != "truth"
        self._shared = {}
        if self.shares_teacher:
            self._shared["teacher.cache_dir"] = str(workdir / "teacher" / "cache")
            if self.base.teacher.head_stage is not None and not self.base.teacher.head_weights:
                self._shared["teacher.head_weights"] = str(workdir / "teacher" / "teacher_head")
        for arm in config.arms:
            for run in [*self.trials(arm), *(self.seeds(arm) or [])]:
                self.check(run)
                for folder in (run.folder / "report", run.test):
                    _set_unreadable_aside(folder / results.FILE)

    def names(self) -> list[str]:
        """All that `--only` can choose."""
        seeds = [f"seed{seed}" for seed in self.config.seeds]
        return [TEACHER] + [
            f"{arm}:{label}"
            for arm in self.config.arms
            for label in [run.label for run in self.trials(arm)] + seeds
        ]

    def trials(self, arm: str) -> list[Run]:
        """An arm's runs on the tuning seed."""
        return [
            self._run(arm, f"trial{k}", "tuning", self.config.tuning_seed, trial)
            for k, trial in enumerate(self.config.trials.get(arm, ()))
        ]

    def abs_rel(self, run: Run) -> float | None:
        """A run's AbsRel on the tuning split; infinite if it diverged, None if it is not done."""
        if not run.trained:
            return math.inf if run.diverged else None
        return run.abs_rel

    def chosen(self, arm: str) -> dict[str, Any] | None:
        """What the arm's best trial overrides; {} without trials.

        None if one is not done, or all diverged.
        """
        trials = self.trials(arm)
        if not trials:
            return {}
        found = [self.abs_rel(run) for run in trials]
        if None in found:
            return None
        best = min(range(len(found)), key=found.__getitem__)
        return self.config.trials[arm][best] if math.isfinite(found[best]) else None

    def seeds(self, arm: str) -> list[Run] | None:
        """An arm's final runs; None while it is not tuned."""
        chosen = self.chosen(arm)
        if chosen is None:
            return None
        return [self._run(arm, f"seed{seed}", "runs", seed, chosen) for seed in self.config.seeds]

    def missing(self) -> list[str]:
        """Names of trials that are not done and of seeds that are not measured on the test data."""
        done = {TEACHER}
        for arm in self.config.arms:
            done |= {run.name for run in self.trials(arm) if self.abs_rel(run) is not None}
            done |= {run.name for run in self.seeds(arm) or [] if run.tested}
        return [name for name in self.names() if name not in done]

    def train_command(self, run: Run) -> list[str]:
        """Makes a run."""
        return _command("main", self.config.base, run.folder, run.overrides)

    def test_command(self, run: Run) -> list[str]:
        """Measures it on the test data."""
        return [
            *("python", "-m", "fsmde_jax.evaluate", f"--checkpoint={run.folder}"),
            *(f"--config={self.config.test}", f"--out={run.test}"),
        ]

    def teacher_command(self) -> list[str]:
        """Trains the teacher's head and stores the teacher's outputs."""
        shared = {"teacher.cache_dir": self._shared["teacher.cache_dir"]}
        return _command("cache_teacher", self.config.base, self.workdir / "teacher", shared)

    def check(self, run: Run) -> None:
        """Refuses overrides that cannot work, and a folder that holds a run of another config."""
        config = self.base.copy_and_resolve_references()
        try:
            config.update_from_flattened_dict(run.overrides)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{run.name}: {str(error).splitlines()[0][:200]}") from error
        config_lib.validate(config)
        file = run.folder / "config.json"
        if not file.is_file():
            return
        # A key that came later had its default then.
        defaults = json.loads(config_lib.default_config().to_json_best_effort())
        content = config_lib.read_config(file, f"Move {run.folder} away")
        found = config_lib.flatten(defaults) | config_lib.flatten(content)
        found |= {key: run.overrides[key] for key in self._shared}  # a study may be moved
        wanted = config_lib.flatten(json.loads(config.to_json_best_effort()))
        if what := differences(found, wanted, "there"):
            raise ConfigError(
                f"{run.folder} holds a run of another config: {what}. Use another --workdir, or "
                "delete that folder"
            )

    def _run(self, arm: str, label: str, folder: str, seed: int, more: dict[str, Any]) -> Run:
        overrides = {"name": f"{arm}_{label}", "seed": seed, **self._shared}
        overrides |= self.config.arms[arm] | more
        return Run(arm, label, self.workdir / folder / arm / label, overrides)


def _figures(folder: pathlib.Path) -> dict[str, float] | None:
    """The means in a report; None where it is not there, or cannot be read, so is not done."""
    try:
        means = next(iter(results.read(folder / results.FILE)["methods"].values()))["mean"]
        return means if isinstance(means["abs_rel"], float) else None
    except (UserError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def _set_unreadable_aside(file: pathlib.Path) -> None:
    if file.is_file() and _figures(file.parent) is None:
        aside = files.set_aside(file, "unreadable")
        log.warning("%s holds no figures; it is called %s now, and made again", file, aside.name)


def _command(job: str, config: str, folder: pathlib.Path, overrides: dict[str, Any]) -> list[str]:
    command = ["python", "-m", f"fsmde_jax.{job}", f"--config={config}", f"--workdir={folder}"]
    return command + [f"--config.{key}={value}" for key, value in overrides.items()]


def _load(text: str, key: str) -> ConfigDict:
    try:
        return config_lib.from_file(text)
    except ConfigError as error:
        raise ConfigError(f"{key} is {text!r}: {error}") from error


def _check(config: ConfigDict, base: ConfigDict) -> None:
    if config.baseline not in config.arms:
        raise ConfigError(
            f"config.baseline is {config.baseline!r}; the arms are {', '.join(config.arms)}"
        )
    named = {arm for pair in config.comparisons for arm in pair}
    if unknown := named - set(config.arms):
        raise ConfigError(f"config.comparisons has {sorted(unknown)}, which config.arms has not")
    if unknown := set(config.trials) - set(config.arms):
        raise ConfigError(f"config.trials has {sorted(unknown)}, which config.arms has not")
    counts = {arm: len(config.trials.get(arm, ())) for arm in config.arms}
    if len(set(counts.values())) > 1:
        raise ConfigError(
            f"config.trials has {counts}; the comparison is fair only with as many for every arm"
        )
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"config.seeds is {config.seeds}; name one or more, each once")
    if base.teacher.weights != "truth" and base.teacher.source != "cached":
        raise ConfigError(
            f"{config.base}: config.teacher.source is {base.teacher.source!r}; a study runs the "
            "teacher once for all arms, so set 'cached' (an arm may override it)"
        )
