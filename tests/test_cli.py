"""The front door: the console script, help, mistakes; how many processes a command starts."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags

import fsmde_jax
from fsmde_jax import cli
from fsmde_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def fsmde(monkeypatch, capsys):
    """`fsmde` in this process: its exit code or last words, and what it prints."""
    there = set(flags.FLAGS)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # a script
    monkeypatch.setattr(cli.app, "run", lambda main, flags_parser: main(flags_parser(sys.argv)))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["/bin/fsmde", *arguments])
        try:
            code = cli.fsmde()
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    yield run
    for name in set(flags.FLAGS) - there:
        delattr(flags.FLAGS, name)


def test_the_script_says_what_there_is(fsmde):
    code, shown = fsmde()
    assert fsmde("--help") == (code, shown) and not code
    for command in cli.COMMANDS:
        assert f"  fsmde {command} " in shown
    assert fsmde("--version") == (None, f"fsmde_jax {fsmde_jax.__version__}\n")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_is_a_screen_with_an_example(fsmde, command):
    code, shown = fsmde(command, "--help")
    lines = shown.splitlines()
    assert not code and len(lines) <= 40 and max(map(len, lines)) <= 88
    assert any(line.startswith(f"    fsmde {command} ") for line in lines)
    assert "python -m" not in shown and "--alsologtostderr" not in shown
    assert sum(line.startswith("  --") for line in lines) >= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trian", "fsmde has no command 'trian'; did you mean train?"),
        ("train --hlep", "fsmde train has no flag --hlep; did you mean --help?"),
        (
            "train --config=demo --dry-run",
            "fsmde train has no flag --dry-run; did you mean --dry_run?",
        ),
        ("train", "fsmde train needs --config; see fsmde train --help"),
        ("train --config.seed=1", "--config.seed changes a config: name that first, by --config"),
        (
            "train --config=demo --config.optimizer.learning_rat=1",
            "--config has no key 'learning_rat' Did you mean \"learning_rate\"",
        ),
        ("train --config=demo --config.optimize.name=muon", 'Did you mean "optimizer"'),
        ("train --config=demo --config.seed=x", "flag --config.seed=x: invalid literal"),
        ("train --config=dmeo", "did you mean demo?"),
        ("train --config=demo:arm", "flag --config=demo:arm: there is no arm 'arm'"),
        ("train --config=study_demo", "a config without 'task' is not for fsmde train"),
        ("export --out=x", "fsmde export needs --checkpoint and --format; see"),
        ("prepare --dataset=kitti", "flag --dataset=kitti: value should be one of <ddad|"),
        ("compare one", "fsmde compare needs FIRST and SECOND; see fsmde compare --help"),
        ("compare one two three", "unexpected argument 'three'; options start with --"),
        ("world --out=x 3", "unexpected argument '3'; options start with --"),
        ("train --config=demo configs/demo.py", "unexpected argument 'configs/demo.py'"),
        ("predict --checkpoint=x --out=y photos", "unexpected argument 'photos'"),
    ],
)
def test_a_mistake_is_one_line(fsmde, arguments, said):
    code, shown = fsmde(*arguments.split())
    assert code.startswith("error: ") and "\n" not in code and not shown
    assert said in code


def test_python_m_is_the_same_command_and_help_imports_nothing_slow():
    module = [sys.executable, "-X", "importtime", "-m", "fsmde_jax.main"]
    run = {"capture_output": True, "text": True, "cwd": ROOT, "timeout": 60}
    shown = subprocess.run([*module, "--help"], **run)
    assert shown.returncode == 0
    assert "    python -m fsmde_jax.main --config=demo\n" in shown.stdout
    assert "| jax\n" not in shown.stderr and "tensorflow_datasets" not in shown.stderr
    whole = subprocess.run([*module, "--helpfull"], **run)
    assert whole.returncode == 0 and "--[no]alsologtostderr" in whole.stdout


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("setuptools", "pip"))), reason="builds a wheel"
)
def test_the_wheel_stands_alone(tmp_path):
    """Built, installed and used in an empty folder: script, configs by name, data files."""
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    for folder in ("fsmde_jax", "tfds_builders"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in filter(pathlib.Path.is_file, ROOT.iterdir()):
        shutil.copy(file, source)
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}"]
    subprocess.run([*wheel, str(source)], check=True, timeout=120)
    (built,) = tmp_path.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-compile", f"--target={site}", str(built)]
    subprocess.run(install, check=True, timeout=120)

    def run(*command):
        environment = os.environ | {"PYTHONPATH": str(site), "XLA_FLAGS": ""}
        done = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import fsmde_jax; print(fsmde_jax.__file__)"
    assert run(sys.executable, "-c", where).startswith(str(site))
    script = str(site / "bin" / "fsmde")
    assert run(script, "--version") == f"fsmde_jax {fsmde_jax.__version__}\n"
    assert "fsmde train" in run(script, "--help")
    printed = json.loads(run(script, "train", "--config=demo", "--print_config"))
    demo = json.loads(config_lib.from_file("demo").to_json_best_effort())
    demo["teacher"]["head_weights"] = config_lib.HEAD_FOLDER
    assert printed["teacher"].pop("head_stage") and demo["teacher"].pop("head_stage")
    assert printed == {"format": 2, **demo}
    assert not any(empty.iterdir())


@pytest.mark.parametrize(
    ("membership", "groups", "cores"),
    [
        ("0::/\n", {}, []),
        ("0::/\n", {"cpu.max": "max 100000"}, []),
        ("0::/\n", {"cpu.max": "200000 100000"}, [2]),
        ("0::/\n", {"cpu.max": "150000 100000"}, [2]),
        ("0::/\n", {"cpu.max": "10000 100000"}, [1]),
        # Of all the groups it is in.
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 100000"}, [1, 3]),
        # v1; a container's own group is mounted at the top, whatever the host calls it.
        (
            "4:cpu,cpuacct:/docker/1f\n3:memory:/x\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            [4],
        ),
        (
            "1:cpu:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            [],
        ),
    ],
)
def test_a_quota_of_cores_is_read_from_the_cgroup(tmp_path, membership, groups, cores):
    (tmp_path / "self").write_text(membership)
    for name, content in groups.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert list(cli._quotas(tmp_path / "self", tmp_path / "cgroup")) == cores
    assert list(cli._quotas(tmp_path / "none", tmp_path / "cgroup")) == []


def test_affinity_and_quota_limit_the_number_of_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    for quotas, cores in (([], 3), ([7, 2], 2)):
        monkeypatch.setattr(cli, "_quotas", lambda *_, quotas=quotas: quotas)
        assert cli.num_cores() == cores
