"""A study: its plan, running and going on, failing arms, figures over seeds, the report."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from tiny_run import prepare_recording

from fsmde_jax import cli, make
from fsmde_jax.cache_teacher import fill
from fsmde_jax.config import ConfigError
from fsmde_jax.configs import bench as bench_config
from fsmde_jax.configs import study_demo
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import __main__ as evaluate_command
from fsmde_jax.evaluate import averages, comparison, intervals, measure, metrics, results
from fsmde_jax.evaluate.protocols import PROTOCOLS
from fsmde_jax.study import execute, report
from fsmde_jax.study.plan import Study, default_study
from fsmde_jax.train import stages

ROOT = pathlib.Path(__file__).parents[2]
# The test data are the training scenes: there are two, so that there are intervals.
BASE = """
import pathlib
from tiny_run import tiny_config

def get_config(variant=""):
    config = tiny_config(pathlib.Path({data_dir!r}))
    config.teacher.weights, config.teacher.size = "mini-world", ""
    config.teacher.binning, config.teacher.image = "soft", "prepared"
    config.teacher.source = "cached"
    config.objective.vrkd_grid = (2, 4)
    config.evaluation.references = False
    config.train.steps = 3
    config.train.eval_every = 2
    config.evaluation.pictures = 1 if variant == "test" else 0
    config.data.eval_split = "train" if variant == "test" else "val"
    return config
"""
SUPERVISED = {
    "objective.ckd_divergence": 0.0,
    "objective.ckd_crossing": 0.0,
    "objective.vrkd": 0.0,
}


class InProcess(subprocess.Popen):
    """Stands for `subprocess.Popen`: does what a command says without starting Python anew."""

    def __init__(self, command, stdout, stderr, env):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
        given = ("workdir", "checkpoint", "out")
        left_out = ("predictions", "protocol", "scaling", "max_depth_m", "masks", "flip_average")
        for name in given + left_out:
            flags.DEFINE_string(name, None, "", flag_values=values)
        self.returncode = 0
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", command[2:])  # where config flags look for overrides
                values(sys.argv)
            self._do(command[2], values)
        except (UserError, FloatingPointError) as error:
            stdout.write(f"error: {error}\n")
            self.returncode = 1

    def _do(self, module, values):
        if module == "fsmde_jax.main":
            workdir = pathlib.Path(values.workdir)
            config = stages.planned(values.config, workdir)
            assert make.run(config, workdir) is None
            measure.evaluate_run(config, workdir)
        elif module == "fsmde_jax.cache_teacher":
            config = stages.planned(values.config, pathlib.Path(values.workdir))
            assert (
                make.before(config, pathlib.Path(values.workdir), (stages.WORLD, stages.RUN))
                is None
            )
            fill.build(config)
        else:
            assert module == "fsmde_jax.evaluate"
            evaluate_command._run(values)

    def poll(self):
        return self.returncode


class Pretend(subprocess.Popen):
    """Stands for `subprocess.Popen`: leaves a run's figures, AbsRel being its learning rate.

    An arm called "broken" fails, at one called "taken" another process is at work.
    """

    commands: list[str]  # so far, without "python -m"
    environment: dict[str, str]  # of the last one
    interrupt_at: int | None  # how many of them come before Ctrl-C

    def __init__(self, command, stdout, stderr, env):
        if len(self.commands) == self.interrupt_at:
            raise KeyboardInterrupt
        self.commands.append(" ".join(command[2:]))
        Pretend.environment = env
        self.returncode = 0
        values = dict(part.removeprefix("--").split("=", 1) for part in command[3:])
        if "/broken/" in values.get("workdir", ""):
            stdout.write("error: it is broken\n")
            self.returncode = 1
        elif "/taken/" in values.get("workdir", ""):
            self.returncode = cli.BUSY
        elif command[2] != "fsmde_jax.cache_teacher":
            out = values.get("out") or values["workdir"] + "/report"
            abs_rel = float(values.get("config.optimizer.learning_rate", 0.5))
            found = content(abs_rel, abs_rel)
            results.write(pathlib.Path(out), found["about"], found["methods"])

    def poll(self):
        return self.returncode


@pytest.fixture
def pretend(monkeypatch):
    monkeypatch.setattr(execute.subprocess, "Popen", Pretend)
    monkeypatch.setattr(execute, "POLL_S", 0.0)
    Pretend.commands, Pretend.interrupt_at = [], None
    return Pretend


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two arms, two trials, two seeds of three steps."""
    root = tmp_path_factory.mktemp("study")
    base = root / "base.py"
    base.write_text(BASE.format(data_dir=str(prepare_recording(root))))
    config = default_study()
    config.base, config.test = str(base), f"{base}:test"
    config.arms = {"supervised": SUPERVISED, "vrkd": SUPERVISED | {"objective.vrkd": 0.1}}
    rates = [{"optimizer.learning_rate": rate} for rate in (3e-3, 1e-3)]
    config.trials = {"supervised": rates, "vrkd": rates}
    config.seeds = (0, 1)
    return config


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """The whole study, run and reported; one trial, since compiling takes most of the time."""
    config = config.copy_and_resolve_references()
    config.trials = {arm: trials[:1] for arm, trials in config.trials.items()}
    config.comparisons = (("supervised", "vrkd"),)
    whole = Study(config, tmp_path_factory.mktemp("workdir"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute.subprocess, "Popen", InProcess)
        patch.setattr(execute, "POLL_S", 0.0)
        assert execute.execute(whole) == []
    assert report.write(whole) == []
    return whole


# Running


def jobs_of(commands):
    """The module of each command, and its folder's last two parts."""
    found = []
    for command in commands:
        module, *options = command.split()
        folder = next(o for o in options if o.startswith(("--workdir=", "--checkpoint=")))
        found.append((module.removeprefix("fsmde_jax."), "/".join(folder.split("/")[-2:])))
    return found


def test_a_study_goes_on_where_it_was_interrupted(config, pretend, tmp_path):
    pretend.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        execute.execute(Study(config, tmp_path))
    before = [("main", f"{arm}/trial{k}") for arm in config.arms for k in (0, 1)]
    assert jobs_of(pretend.commands)[1:] == before[:3]
    pretend.commands, pretend.interrupt_at = [], None
    assert execute.execute(Study(config, tmp_path)) == []
    runs = [f"{arm}/seed{k}" for arm in config.arms for k in (0, 1)]
    # All seeds are trained before the test data is touched.
    after = [("main", run) for run in runs] + [("evaluate", run) for run in runs]
    found = jobs_of(pretend.commands)
    assert found[0][0] == "cache_teacher" and found[1:] == [before[3], *after]
    assert Study(config, tmp_path).missing() == []
    pretend.commands = []
    assert execute.execute(Study(config, tmp_path)) == []
    assert pretend.commands == []  # a finished study runs nothing
    assert execute.execute(Study(config, tmp_path), ["teacher"]) == []
    assert jobs_of(pretend.commands)[0][0] == "cache_teacher"  # but when it is asked for


def test_the_best_trial_is_taken_and_all_arms_share_the_teacher(config, pretend, tmp_path):
    plan = Study(config, tmp_path)
    assert execute.execute(plan) == []
    assert plan.chosen("vrkd") == {"optimizer.learning_rate": 1e-3}
    teacher, *others = pretend.commands
    finals = [c for c in others if "/runs/vrkd/" in c and "fsmde_jax.main" in c]
    for seed, command in enumerate(finals):
        assert f"--config.seed={seed} " in command and "learning_rate=0.001" in command
        assert "--config.objective.vrkd=0.1" in command
    cache = f"--config.teacher.cache_dir={tmp_path / 'teacher' / 'cache'}"
    assert all(cache in c for c in [teacher, *others] if "fsmde_jax.evaluate" not in c)
    assert all("--config.seed=100 " in c for c in others if "/tuning/" in c)


def test_only_what_is_asked_for_runs(config, pretend, tmp_path):
    plan = Study(config, tmp_path)
    assert execute.execute(plan, ["vrkd:seed1"]) == ["vrkd:seed1"]  # not tuned
    assert pretend.commands == []
    assert execute.execute(plan, ["vrkd:trial*", "vrkd:seed1"]) == []
    assert jobs_of(pretend.commands)[1:] == [
        ("main", "vrkd/trial0"),
        ("main", "vrkd/trial1"),
        ("main", "vrkd/seed1"),
        ("evaluate", "vrkd/seed1"),
    ]
    waiting = ["supervised:trial0", "supervised:trial1", "supervised:seed0", "supervised:seed1"]
    assert plan.missing() == [*waiting, "vrkd:seed0"]
    assert execute.execute(plan, ["supervised"]) == []
    assert plan.missing() == ["vrkd:seed0"]
    with pytest.raises(UserError, match=r"--only=vrdk chooses nothing; there are supervised, vrkd"):
        execute.execute(plan, ["vrdk"])


def test_the_truth_as_the_teacher_needs_no_teachers_run(config, pretend, tmp_path):
    config = config.copy_and_resolve_references()
    base = tmp_path / "truth.py"
    text = pathlib.Path(config.base).read_text()
    teaches = "    config.teacher.weights = 'truth'\n    return config"
    base.write_text(text.replace("    return config", teaches))
    config.base, config.trials = str(base), {}
    config.arms = {"supervised": SUPERVISED}
    plan = Study(config, tmp_path / "workdir")
    assert report.write(plan) == ["supervised:seed0", "supervised:seed1"]
    assert "cache_teacher" not in (tmp_path / "workdir" / "report" / "study.md").read_text()
    assert execute.execute(plan) == []
    assert {job for job, _ in jobs_of(pretend.commands)} == {"main", "evaluate"}
    assert not any("--config.teacher." in command for command in pretend.commands)


def test_an_arm_that_fails_is_named_and_the_others_go_on(config, pretend, tmp_path, caplog):
    config = config.copy_and_resolve_references()
    config.arms = {"broken": SUPERVISED, "supervised": SUPERVISED}
    config.trials = {}
    plan = Study(config, tmp_path)
    assert execute.execute(plan) == ["broken:seed0", "broken:seed1"]
    assert "broken:seed0: FAILED" in caplog.text and "it is broken" in caplog.text
    assert plan.missing() == ["broken:seed0", "broken:seed1"]


def test_a_cut_or_foreign_result_is_not_taken_for_done(config, pretend, tmp_path, caplog):
    config = config.copy_and_resolve_references()
    config.trials = {}
    plan = Study(config, tmp_path)
    assert execute.execute(plan) == []
    cut, foreign = tmp_path / "runs/vrkd/seed0/report", tmp_path / "runs/supervised/seed1/test"
    content = (cut / "results.json").read_bytes()
    (cut / "results.json").write_bytes(content[: len(content) // 2])
    (foreign / "results.json").write_text('{"abs_rel": 0.1}')
    assert [run.trained for run in plan.seeds("vrkd")] == [False, True]
    assert [run.tested for run in plan.seeds("supervised")] == [True, False]
    plan = Study(config, tmp_path)
    assert (cut / "results.json.unreadable").read_bytes() == content[: len(content) // 2]
    assert caplog.text.count("is called results.json.unreadable now, and made again") == 2
    assert plan.missing() == ["supervised:seed1"]
    pretend.commands = []
    assert execute.execute(plan) == []
    assert jobs_of(pretend.commands)[1:] == [
        ("main", "vrkd/seed0"),
        ("evaluate", "supervised/seed1"),
    ]
    assert (cut / "results.json").read_bytes() == content
    assert plan.missing() == []


def test_a_run_that_another_process_is_at_is_left_out(config, pretend, tmp_path, caplog):
    config = config.copy_and_resolve_references()
    config.arms = {"taken": SUPERVISED, "supervised": SUPERVISED}
    config.trials = {}
    plan = Study(config, tmp_path)
    assert execute.execute(plan) == []
    assert "taken:seed1: left out, another process is at it" in caplog.text
    assert plan.missing() == ["taken:seed0", "taken:seed1"]


def test_processes_side_by_side_share_a_gpus_memory(config, pretend, tmp_path, monkeypatch):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.delenv(name, raising=False)
    plan = Study(config, tmp_path)
    execute.execute(plan, ["teacher"], at_once=2)
    assert name not in pretend.environment  # the teacher's is alone
    execute.execute(plan, ["vrkd:trial0"], at_once=2)
    assert pretend.environment[name] == "false"
    execute.execute(plan, ["vrkd:trial1"])
    assert name not in pretend.environment
    monkeypatch.setenv(name, "true")
    execute.execute(plan, ["supervised:trial0"], at_once=2)
    assert pretend.environment[name] == "true"


def test_an_arm_whose_trial_fails_has_no_seeds(config, pretend, tmp_path):
    config = config.copy_and_resolve_references()
    config.arms = {"broken": SUPERVISED, "supervised": SUPERVISED}
    config.trials = {arm: [{"optimizer.learning_rate": 1e-3}] for arm in config.arms}
    failed = execute.execute(Study(config, tmp_path))
    assert failed == ["broken:trial0", "broken:seed0", "broken:seed1"]
    assert Study(config, tmp_path).missing() == failed


def test_a_report_of_nothing_says_what_is_missing(config, tmp_path):
    plan = Study(config, tmp_path)
    missing = report.write(plan)
    assert len(missing) == 8
    text = (tmp_path / "report" / "study.md").read_text()
    assert ", ".join(missing) in text and "fsmde_jax.cache_teacher" in text


def test_the_report_holds_figures_curves_pictures_and_commands(done):
    whole = done
    folder = whole.workdir / "report"
    told = json.loads((folder / "study.json").read_text())
    row = told["arms"]["vrkd"]
    own = [results.read(run.test)["methods"]["student"]["mean"] for run in whole.seeds("vrkd")]
    assert [seed["abs_rel"] for seed in row["seeds"]] == [mean["abs_rel"] for mean in own]
    assert row["mean"]["abs_rel"] == pytest.approx(np.mean([m["abs_rel"] for m in own]))
    assert row["std"]["abs_rel"] > 0
    base = told["arms"]["supervised"]
    expected = row["mean"]["abs_rel"] - base["mean"]["abs_rel"]
    difference = row["difference"]["abs_rel"]
    assert difference["difference"] == pytest.approx(expected, abs=1e-9)
    low, high = difference["interval"]
    assert low <= difference["difference"] <= high and "difference" not in base
    assert [trial["chosen"] for trial in told["tuning"]["vrkd"]].count(True) == 1
    text = (folder / "study.md").read_text()
    assert f"{row['mean']['abs_rel']:.3f} ± {row['std']['abs_rel']:.3f}" in text
    assert f"{difference['difference']:+.4f}" in text and "cpu" in text
    (pair,) = told["comparisons"]
    assert pair["figures"] == row["difference"] and "## vrkd against supervised" in text
    assert f"| {row['where']['CAMERA_05']:.3f} |" in text
    assert all(f"| {title} |" in text for title in report.COLUMNS.values())
    for commands in told["commands"].values():
        for command in commands:
            assert f"    {command}\n" in text + "\n"
    pictures = sorted(path.name for path in folder.glob("*.[jp][pn]g"))
    assert len(pictures) == 2 and all(f"]({name})" in text for name in pictures)


def test_runs_whose_checkpoints_stayed_elsewhere_are_reported_without_pictures(done, tmp_path):
    left = shutil.ignore_patterns("checkpoints")
    shutil.copytree(done.workdir, tmp_path / "study", ignore=left)
    shutil.rmtree(tmp_path / "study" / "report")
    plan = Study(done.config, tmp_path / "study")
    assert report.write(plan) == []
    names = {path.suffix for path in (tmp_path / "study" / "report").iterdir()}
    assert names == {".md", ".json", ".png"}


def test_curves_end_with_the_finished_run(done):
    run = done.seeds("vrkd")[0]
    curves = report._curves(run)
    assert [step for step, _ in curves["train"]] == [1, 2, 3]
    assert [step for step, _ in curves["eval"]] == [2, 3]
    assert curves["eval"][-1][1] == done.abs_rel(run)


def test_a_trial_that_diverges_is_a_result(config, tmp_path):
    plan = Study(config, tmp_path)
    first, second = plan.trials("vrkd")
    (first.folder / "not_finite").mkdir(parents=True)
    assert plan.abs_rel(first) == np.inf and plan.chosen("vrkd") is None
    method = {"mean": {"abs_rel": 0.3}, "scenes": [], "images": 0}
    content = {"about": {"settings": {}}, "methods": {"m": method}}
    (second.folder / "report").mkdir(parents=True)
    (second.folder / "report" / "results.json").write_text(json.dumps(content))
    assert plan.chosen("vrkd") == config.trials["vrkd"][1]
    trials = report._tuning(plan)["vrkd"]
    assert [trial["diverged"] for trial in trials] == [True, False]


def test_a_run_of_another_config_is_refused(done):
    whole = done
    config = whole.config.copy_and_resolve_references()
    config.arms = config.arms | {"vrkd": SUPERVISED | {"objective.vrkd": 0.2}}
    with pytest.raises(ConfigError, match=r"objective\.vrkd is 0\.1 there, 0\.2 in the config"):
        Study(config, whole.workdir)


def test_a_run_from_before_a_key_was_added_counts(done, tmp_path):
    workdir = tmp_path / "study"
    shutil.copytree(done.workdir, workdir)
    for file in workdir.rglob("config.json"):
        content = json.loads(file.read_text())
        content["objective"].pop("ckd_temperature", None)
        file.write_text(json.dumps(content))
    assert Study(done.config, workdir).missing() == []  # nor does it matter that it was moved


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("arms", {"supervised": {"objective.vrdk": 1.0}}, r'supervised:seed0.*"vrdk" does not'),
        ("arms", {"supervised": {"train.steps": 2.5}}, r"supervised:seed0.*steps"),
        ("trials", {"supervised": [{}]}, r"'supervised': 1, 'vrkd': 0.*as many for every arm"),
        ("trials", {"vkrd": [{}]}, r"\['vkrd'\], which config\.arms has not"),
        ("comparisons", (("vrkd", "ckd"),), r"config\.comparisons has \['ckd'\]"),
        ("baseline", "none", r"config\.baseline is 'none'; the arms are supervised, vrkd"),
        ("seeds", (1, 1), r"config\.seeds"),
        ("test", "nowhere.py", r"config\.test is 'nowhere\.py': there is no file nowhere\.py"),
    ],
)
def test_a_mistake_in_the_study_is_named(config, tmp_path, key, value, message):
    config = config.copy_and_resolve_references()
    config.trials = {}
    config[key] = value
    with pytest.raises(ConfigError, match=message):
        Study(config, tmp_path)


def test_a_misspelt_key_of_a_study_is_refused():
    with pytest.raises(AttributeError, match="seds"):
        default_study().seds = (1,)


# Processes


def test_processes_are_started_logged_and_their_failure_is_named(tmp_path, caplog):
    code = "import sys; print('so'); sys.exit(int(sys.argv[1]))"
    jobs = {
        name: (["python", "-c", code, status], tmp_path / name)
        for name, status in (("good", "0"), ("bad", "3"), ("late", "0"))
    }
    assert execute._run_all(jobs, 2) == ["bad"]
    assert "bad: FAILED" in caplog.text and "so" in caplog.text
    for name in jobs:
        first, last = (tmp_path / name / "log.txt").read_text().splitlines()
        assert first.startswith("$ python -c ") and last == "so"


def test_an_interruption_lets_processes_save(tmp_path):
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    pathlib.Path(sys.argv[1], 'saved').touch()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(sys.argv[1], 'ready').touch()\n"
        "time.sleep(60)\n"
    )
    jobs = {
        name: (["python", "-c", code, str(tmp_path / name)], tmp_path / name)
        for name in ("one", "two")
    }

    def interrupt():
        while not (tmp_path / "one" / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    # Started in the background of a shell, Python ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            execute._run_all(jobs, 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "one" / "saved").exists() and not (tmp_path / "two").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="by prctl, which Linux has")
def test_runs_end_with_a_study_that_is_killed(tmp_path):
    child = (
        "import os, pathlib, time; from fsmde_jax import cli; cli.set_up()\n"
        f"file = pathlib.Path({str(tmp_path)!r}, 'child'); file.write_text(str(os.getpid()))\n"
        "file.rename(file.with_name('ready')); time.sleep(60)"
    )
    code = (
        "import pathlib; from fsmde_jax.study import execute\n"
        f"job = (['python', '-c', {child!r}], pathlib.Path({str(tmp_path)!r}))\n"
        "execute._run_all({'a': job}, 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    ready = tmp_path / "ready"
    while not ready.exists():
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    status = pathlib.Path(f"/proc/{ready.read_text()}/stat")
    for _ in range(100):
        if not status.exists() or ") Z " in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the run outlived its study")


def test_the_command_refuses_a_wrong_study_in_one_line(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "from fsmde_jax.study.plan import default_study as get_config\n"
    )  # neither base nor arms
    command = [sys.executable, "-m", "fsmde_jax.study", f"--config={file}"]
    found = subprocess.run(
        [*command, f"--workdir={tmp_path}"], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith("error: config.base is ''")


# Figures


def content(*scenes):
    """Results of one camera, an image a scene, of these AbsRels."""
    scores = averages.Scores.empty(("A",), len(scenes), PROTOCOLS["ssdepth"])
    for scene, abs_rel in enumerate(scenes):
        sums = np.zeros((1, len(metrics.RANGES_M), len(metrics.NAMES)))
        sums[0, 0] = abs_rel
        counts = np.zeros((1, len(metrics.RANGES_M)))
        counts[0, 0] = 1
        scores.add(scene, sums, counts)
    settings = {"protocol": "ssdepth", "average": "cameras", "mirroring": "none"}
    about = {"settings": settings, "scenes": len(scenes), "text": "T"}
    return {"about": about, "methods": {"m": scores.compute([f"s{i}" for i in range(len(scenes))])}}


def test_figures_over_seeds_are_those_worked_out_by_hand():
    contents = {
        "supervised": [content(0.4, 0.2, 0.3), content(0.5, 0.3, 0.4)],
        "ckd": [content(0.3, 0.2, 0.1), content(0.4, 0.1, 0.1)],
    }
    found = report.summarise(contents, "supervised")
    assert found["supervised"]["mean"]["abs_rel"] == pytest.approx(0.35)
    assert found["supervised"]["std"]["abs_rel"] == pytest.approx(0.1 / np.sqrt(2))
    assert [seed["abs_rel"] for seed in found["ckd"]["seeds"]] == pytest.approx([0.2, 0.2])
    assert found["ckd"]["std"]["abs_rel"] == pytest.approx(0, abs=1e-12)
    row = found["ckd"]["difference"]["abs_rel"]
    assert row["difference"] == pytest.approx(-0.15)
    assert row["percent"] == pytest.approx(100 * (0.2 / 0.35 - 1))
    by_scene = np.array([-0.1, -0.1, -0.25])  # of the means over seeds
    replicates = intervals.resample(3) @ by_scene / 3
    assert row["interval"] == pytest.approx(intervals.expanded_interval(replicates, 3))
    assert found["ckd"]["where"] == {"A": pytest.approx(0.2), "0-20 m": pytest.approx(0.2)}
    again = report.compare(contents, "ckd", "supervised")["abs_rel"]
    assert again["difference"] == pytest.approx(0.15)
    alone = report.summarise({"ckd": contents["ckd"][:1]}, "supervised")["ckd"]
    assert "difference" not in alone and alone["std"]["abs_rel"] is None


def test_seeds_of_other_images_are_not_averaged():
    with pytest.raises(UserError, match="3 in 3 scenes and 2 in 2"):
        comparison.average_seeds([content(0.1, 0.2, 0.3), content(0.1, 0.2)])


# The benchmark


def test_the_world_bench_is_frozen():
    """Figures of other values are not comparable: such a change makes another version."""
    bench, labelled, test = (
        bench_config.get_config(variant) for variant in ("", "labels200", "test")
    )
    assert (bench.data.labelled_scenes, labelled.data.labelled_scenes) == (10, 0)
    assert (bench.teacher.weights, bench.optimizer.name) == ("mini-world", "muon")
    assert (bench.train.steps, bench.teacher.head_stage.train.steps) == (750, 300)
    assert (bench.data.labelled_share, bench.student.mean_of) == (0.2, "log_depth")
    assert bench.objective.vrkd_temperature == 0.1
    world = {
        "seed": 10,
        "train_scenes": 200,
        "val_scenes": 20,
        "samples_per_scene": 3,
        "sample_stride": 20,
        "height": 160,
        "width": 256,
        "varied_rigs": False,
        "image_size": (96, 160),
        "dense_depth": False,
        "lidar_beams": 44,
    }
    assert bench.world.to_dict() == labelled.world.to_dict() == world
    assert test.world.to_dict() == world | {"seed": 13, "train_scenes": 1, "val_scenes": 60}
    assert (bench.data.config_name, test.data.config_name) == ("bench_v3", "bench_v3_test")
    for config in (bench, test):
        assert (config.evaluation.protocol, config.evaluation.scaling) == ("ssdepth", "metric")
        assert (config.data.max_depth_m, config.data.points_per_image) == (200.0, 1024)


@pytest.mark.parametrize(("variant", "count"), [("tuning", 3), ("smoke", 2)])
def test_the_demo_study_tunes_every_arm_alike(variant, count, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the study names its configs wherever it is read
    config = study_demo.get_config(variant)
    plan = Study(config, tmp_path)
    head = tmp_path / "teacher" / "teacher_head"
    for arm in config.arms:
        trials = plan.trials(arm)
        assert len({str(run.overrides) for run in trials}) == len(trials) == count
        assert all(run.overrides["teacher.head_weights"] == str(head) for run in trials)


def test_the_demo_study_trains_with_what_tuning_took(tmp_path):
    get_config = study_demo.get_config
    study, tuning = get_config(), get_config("tuning")
    assert study.trials == {}
    assert study.arms.keys() - tuning.arms.keys() == {
        "response_3",
        "response_9",
        "ckd_vrkd_sharp",
    }
    assert study.arms["response_9"] == study.arms["response"] | {"objective.response": 9.0}
    sharp = study.arms["ckd_vrkd"] | {"objective.vrkd_temperature": 0.05}
    assert study.arms["ckd_vrkd_sharp"] == sharp
    more = get_config("vrkd")
    assert (more.baseline, len(more.seeds)) == ("ckd", 10)
    assert more.arms == {arm: study.arms[arm] for arm in ("ckd", "ckd_vrkd_sharp")}
    for arm in tuning.arms:
        assert study.arms[arm] in [tuning.arms[arm] | trial for trial in tuning.trials[arm]]
    assert study.arms["response"]["objective.response"] == 0.9
    assert study.arms["supervised"]["optimizer.learning_rate"] == 16e-3
    assert Study(study, tmp_path).chosen("ckd") == {}
