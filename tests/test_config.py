import json
import pathlib
import subprocess
import sys

import pytest
from tiny_run import tiny_config

from fsmde_jax import config as config_lib
from fsmde_jax.errors import UserError, differences
from fsmde_jax.losses.arms import ARMS
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.run import identity, sharding
from fsmde_jax.train import dry_run

ROOT = pathlib.Path(__file__).parents[1]


def load(name):
    return lambda variant="": config_lib.from_file(f"{ROOT}/configs/{name}:{variant}")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("demo.py", None),
        *(("demo.py", arm) for arm in ARMS),
        ("demo_teacher.py", ""),
        ("demo_teacher.py", "unseen"),
        ("demo_teacher.py", "other_rig"),
        ("ddad.py", ""),
        ("ddad.py", "smoke"),
        ("teacher_ddad.py", None),
        ("nuscenes.py", ""),
        ("nuscenes.py", "smoke"),
    ],
)
def test_shipped_configs_are_valid_and_so_are_their_heads(name, variant):
    config = load(name)() if variant is None else load(name)(variant)
    config_lib.validate(config)
    if config.teacher.head_stage is not None:
        config_lib.validate(config.teacher.head_stage)


@pytest.mark.parametrize("text", ["demo", "demo:feature", "configs/demo.py", "bench:labels20"])
def test_a_config_is_named_by_file_or_by_name_from_anywhere(text, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT if text.endswith(".py") else tmp_path)
    config_lib.validate(config_lib.from_file(text))


def test_the_folder_of_configs_is_that_of_the_package():
    assert (ROOT / "configs").samefile(config_lib.SHIPPED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dmeo", r"no config 'dmeo': name a \.py file, or one of bench, .*; did you mean demo\?"),
        ("", "there is no config ''"),
        ("configs/demo", "there is no config 'configs/demo'.*; did you mean demo"),
        ("configs/demo.py", r"there is no file configs/demo\.py; did you mean demo\?"),
        ("mine.py:x", "there is no file mine.py$"),
        ("demo:distil", "there is no arm 'distil'; use one of supervised"),
    ],
)
def test_a_config_that_is_not_there_is_named(text, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        config_lib.from_file(text)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere\n", r"mine\.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config(:\n", r"mine\.py: SyntaxError: .*mine\.py, line 1"),
        ("x = 1\n", r"mine\.py: AttributeError: .*get_config"),
        (
            "from fsmde_jax.configs import demo\n"
            "def get_config():\n    config = demo.get_config()\n    config.optimizer.rat = 1\n",
            r"mine\.py, line 4: AttributeError: .*rat",
        ),
    ],
)
def test_a_fault_of_a_config_file_is_told_with_its_line(code, message, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(config_lib.ConfigError, match=message):
        config_lib.from_file(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("name", ["ddad.py", "nuscenes.py"])
def test_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name}:smoke"):
        load(name)("smoek")


@pytest.mark.parametrize("variant", ["", "smoke"])
def test_nuscenes_differs_from_ddad_in_the_data_alone(variant):
    ddad, nuscenes = load("ddad.py")(variant), load("nuscenes.py")(variant)
    assert nuscenes.data.config_name == "352x640"
    for a, b in ((ddad, nuscenes), (ddad.teacher.head_stage, nuscenes.teacher.head_stage)):
        assert "nuscenes" in b.name and "ddad" not in b.name
        assert b.data.dataset == "nuscenes"
        assert (b.data.min_depth_m, b.data.max_depth_m) == (0.1, 80.0)
        # The focal length in which depth is predicted is that of the prepared width.
        assert b.student.canonical_focal_px == 500.0
        assert b.data.cameras[0] == "CAM_FRONT" and len(set(b.data.cameras)) == 6
        for section in ("bins", "objective", "optimizer", "train"):
            assert b[section].to_dict() == a[section].to_dict()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "students", r"config\.task"),
        ("teacher.binning", "hard", r"config\.teacher\.binning"),
        ("objective.vrkd_on", "depth", r"config\.objective\.vrkd_on"),
        ("objective.vrkd_pairs", "ring", r"config\.objective\.vrkd_pairs"),
        ("data.labelled_share", 1.0, r"config\.data\.labelled_share"),
        ("objective.foundation_scale", 2.0, r"config\.objective\.foundation_scale"),
        ("objective.foundation_saturation", -1.0, r"config\.objective\.foundation_saturation"),
        ("data.min_depth_m", 300.0, r"config\.data\.min_depth_m"),
        ("data.zoom", 0.5, r"config\.data\.zoom"),
        ("data.masks", "nowhere", r"config\.data\.masks='nowhere' is no folder"),
        ("evaluation.protocol", "monodepth", r"config\.evaluation\.protocol"),
        ("train.log_every", 0, r"config\.train\.log_every"),
        ("train.keep_checkpoints", 0, r"config\.train\.keep_checkpoints"),
        ("data.batch_size", 0, r"config\.data\.batch_size is 0; it must be at least 1"),
        ("data.eval_batch_size", -1, r"config\.data\.eval_batch_size"),
        ("data.downscale", 0, r"config\.data\.downscale"),
        ("data.num_workers", -1, r"config\.data\.num_workers"),
        ("train.dtype", "bf16", r"config\.train\.dtype is 'bf16'; use 'float32' or 'bfloat16'"),
        ("seed", -1, r"config\.seed"),
        ("optimizer.ema_decay", 1.0, r"config\.optimizer\.ema_decay"),
        ("bins.num_bins", 0, r"config\.bins\.num_bins"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_key(key, value, message):
    config = config_lib.default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        config_lib.validate(config)


def test_weights_to_start_from_are_refused_where_nothing_starts():
    config = config_lib.default_config()
    config.teacher.start_weights = "mini-world"
    with pytest.raises(ValueError, match=r"config\.teacher\.start_weights='mini-world'"):
        config_lib.validate(config)
    config.task, config.teacher.weights, config.teacher.size = "foundation", "", "mini"
    config_lib.validate(config)


@pytest.mark.parametrize("name", ["ddad.py", "nuscenes.py"])
def test_real_configs_carry_what_was_measured_best(name):
    config = load(name)()
    assert (config.student.mean_of, config.optimizer.name) == ("log_depth", "muon")
    assert config.optimizer.ema_decay == 0.999
    assert config.teacher.head_stage.optimizer.name == "muon"
    assert config.teacher.head_stage.objective.bin_likelihood == 0.1


@pytest.mark.parametrize("name", ["ddad.py", "nuscenes.py", None])
def test_the_objective_is_that_of_ckd_and_vrkd_unless_said_otherwise(name):
    config = load(name)() if name else config_lib.default_config()
    assert {
        term: config.objective[term] for term in DISTILLATION if config.objective[term]
    } == ARMS["ckd_vrkd"]


def test_the_demo_is_the_arm_of_ckd_and_vrkd():
    demo, arm = load("demo.py")(), load("demo.py")("ckd_vrkd")
    assert demo.objective.to_dict() == arm.objective.to_dict()
    assert (demo.name, arm.name) == ("demo", "demo_ckd_vrkd")


def test_features_of_the_truth_are_refused():
    config = config_lib.default_config()
    config.teacher.weights = "truth"
    with pytest.raises(
        config_lib.ConfigError, match=r"'truth' has no features.*config\.objective\.vrkd "
    ):
        config_lib.validate(config)
    config.objective.vrkd_on = "probabilities"
    config_lib.validate(config)


def test_soft_bins_with_rig_centers_are_refused():
    config = config_lib.default_config()
    config.teacher.binning, config.bins.centers_of = "soft", "rig"
    with pytest.raises(ValueError, match=r"config\.bins\.centers_of='rig'"):
        config_lib.validate(config)


def test_a_misspelt_key_is_refused_in_a_file():
    config = config_lib.default_config()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optimizer.learning_rat = 1e-3


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fsmde_jax.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_missing_data_says_what_to_download_and_run(tmp_path):
    result = run_main(
        "--config=configs/ddad.py",
        f"--config.data.data_dir={tmp_path}/data",
        f"--workdir={tmp_path}/run",
        "--config.teacher.weights=random",
        "--config.student.encoder_weights=",
        "--config.teacher.size=dpt_tiny",
    )
    assert result.returncode == 1
    assert "ddad_train_val" in result.stderr and "fsmde_jax.prepare" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("data", "fsdp", "expected"), [(-1, 1, (8, 1)), (2, 4, (2, 4)), (1, -1, (1, 8))]
)
def test_mesh_takes_the_devices_that_are_left(data, fsdp, expected):
    config = config_lib.default_config()
    config.mesh.data, config.mesh.fsdp = data, fsdp
    mesh = sharding.make_mesh(config.mesh)
    assert tuple(mesh.shape.values()) == expected


def test_a_mesh_that_does_not_fit_is_refused():
    config = config_lib.default_config()
    config.mesh.data, config.mesh.fsdp = 3, 2
    with pytest.raises(ValueError, match=r"config\.mesh\.data=3"):
        sharding.make_mesh(config.mesh)


def test_dry_run_counts_parameters_and_memory_without_data(tmp_path, capsys):
    config = tiny_config(tmp_path / "nothing")
    report = dry_run.report(config)
    printed = capsys.readouterr().out
    assert "teacher: 1.4" in printed
    assert "(8, 6, 32, 64, 3)" in printed
    assert "GiB" in report


def test_dry_run_of_a_cached_teacher_counts_its_outputs_instead(tmp_path, capsys):
    config = tiny_config(tmp_path / "nothing")
    config.teacher.source, config.data.jitter = "cached", 0.0
    dry_run.report(config)
    printed = capsys.readouterr().out
    assert "teacher_roots" in printed and "(8, 6, 8, 16, 8)" in printed
    assert "teacher:" not in printed


def test_a_run_of_another_version_is_named(tmp_path):
    config = config_lib.default_config()
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    assert config_lib.load_config(tmp_path).data.to_dict() == config.data.to_dict()
    content = json.loads(config.to_json_best_effort())
    content["train"]["steps"] = None
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(config_lib.ConfigError, match=r"'train\.steps' has no value"):
        config_lib.load_config(tmp_path)
    with config.unlocked():
        config.teacher.forgotten = 1
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    with pytest.raises(config_lib.ConfigError, match="written by another version"):
        config_lib.load_config(tmp_path)


def test_what_a_run_may_go_on_with_and_what_not(tmp_path):
    config = tiny_config("data")
    config_lib.save_config(config, tmp_path)
    for key, value in {
        "name": "other",
        "train.steps": 99,
        "train.log_every": 7,
        "train.checkpoint_every": 7,
        "train.keep_checkpoints": 7,
        "train.eval_every": 7,
        "evaluation.protocol": "packnet",
        "data.data_dir": "elsewhere",
        "data.eval_batch_size": 16,
        "data.num_workers": 2,
        "data.num_threads": 3,
        "mesh.fsdp": 2,
        "teacher.cache_dir": "elsewhere",
        "teacher.head_weights": "elsewhere",
    }.items():
        config.update_from_flattened_dict({key: value})
        config_lib.refuse_other_config(config, tmp_path, started=True)
    config.seed, config.data.jitter = 1, 0.5
    config_lib.refuse_other_config(config, tmp_path, started=False)  # nothing to lose yet
    with pytest.raises(
        config_lib.ConfigError,
        match=r"run of another config: seed is 0 there, 1 in the config; data\.jitter is 0\.2 "
        r"there, 0\.5 in the config\. .*--fork=NEW_WORKDIR",
    ):
        config_lib.refuse_other_config(config, tmp_path, started=True)


def test_a_key_that_came_after_a_run_had_its_default_then(tmp_path):
    config = tiny_config("data")
    values = json.loads(config.to_json_best_effort())
    del values["data"]["zoom"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config_lib.refuse_other_config(config, tmp_path, started=True)
    config.data.zoom = 1.5
    with pytest.raises(config_lib.ConfigError, match=r"data\.zoom is 1\.0 there, 1\.5"):
        config_lib.refuse_other_config(config, tmp_path, started=True)


def test_shrinking_the_images_alone_keeps_what_the_model_means():
    config = config_lib.default_config()
    whole = config_lib.input_focal_px(config)
    config.data.downscale = 2
    assert config_lib.input_focal_px(config) == whole / 2
    smoke = load("nuscenes.py")("smoke")
    assert (smoke.data.downscale, config_lib.input_focal_px(smoke)) == (2, 250.0)
    assert identity.of_student(smoke)["canonical_focal_px"] == 250.0


@pytest.mark.parametrize(("downscale", "focal_px"), [(1, 178.77), (2, 357.54365), (3, 99.99)])
def test_a_run_from_before_has_the_focal_length_that_it_was_trained_for(
    downscale, focal_px, tmp_path
):
    """Its config.json has that in pixels of the shrunk images, and so have its checkpoints."""
    config = tiny_config("data")
    config.data.downscale, config.student.canonical_focal_px = downscale, focal_px
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    found = config_lib.load_config(tmp_path)
    assert config_lib.input_focal_px(found) == pytest.approx(focal_px, rel=1e-15)
    saved = {"student": config.student.to_dict()}
    assert not differences(saved, {"student": identity.of_student(found)}, "there")
    # It goes on, by a config whose focal length is of the prepared images.
    config.student.canonical_focal_px = focal_px * downscale
    config_lib.refuse_other_config(config, tmp_path, started=True)
    config_lib.save_config(found, tmp_path)
    assert config_lib.load_config(tmp_path).to_dict() == found.to_dict()


def test_only_paths_into_a_run_are_relative_to_it(tmp_path):
    config = tiny_config("data")
    (tmp_path / "run" / "teacher_head").mkdir(parents=True)
    (tmp_path / "head").mkdir()
    config.teacher.head_weights = str(tmp_path / "head")
    config.teacher.cache_dir = str(tmp_path / "run" / "cache")
    config_lib.save_config(config, tmp_path / "run")
    values = json.loads((tmp_path / "run" / "config.json").read_text())["teacher"]
    assert (values["head_weights"], values["cache_dir"]) == (str(tmp_path / "head"), "cache")
    (tmp_path / "run" / "cache").mkdir()
    found = config_lib.load_config(tmp_path / "run").teacher
    assert found.head_weights == str(tmp_path / "head")
    assert found.cache_dir == str(tmp_path / "run" / "cache")
    assert config.teacher.cache_dir == str(tmp_path / "run" / "cache")  # as it was
