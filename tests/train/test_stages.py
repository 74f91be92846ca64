import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from fsmde_jax import config as config_lib
from fsmde_jax import make
from fsmde_jax.config import ConfigError
from fsmde_jax.configs import demo, demo_teacher
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import measure
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.weights.files import SHIPPED, WeightsError
from fsmde_jax.models.weights.load import read_foundation_config
from fsmde_jax.run import checkpoints, sharding
from fsmde_jax.run.load import load_foundation, load_student, load_trained, place_model
from fsmde_jax.run.state import Model, TrainState
from fsmde_jax.tasks import make_task
from fsmde_jax.train import loop, stages
from fsmde_jax.world import WorldError


def shrink(config, data_dir):
    """Two streets, one instant each, two steps; on the eight devices of the tests."""
    config.data.data_dir = str(data_dir)
    config.data.batch_size = config.data.eval_batch_size = 8
    config.data.points_per_image = 64
    config.world.train_scenes = config.world.val_scenes = 1
    config.world.samples_per_scene = 1
    config.world.height, config.world.width = 50, 80
    config.world.image_size = (32, 64)
    config.objective.vrkd_grid = (2, 4)
    config.bins.num_bins = 8
    config.train.steps = 2
    config.train.checkpoint_every = 1
    config.evaluation.pictures = 1
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo, shrunk: world, head of the shipped teacher, student."""
    root = tmp_path_factory.mktemp("demo")
    config = shrink(demo.get_config(), root / "data")
    shrink(config.teacher.head_stage, root / "data")
    config = stages.planned(config, root / "run")
    assert make.run(config, root / "run") is None
    return config, root / "run"


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    """The pretraining of a teacher, shrunk."""
    root = tmp_path_factory.mktemp("demo_teacher")
    config = shrink(demo_teacher.get_config(), root / "data")
    assert make.run(config, root / "run") is None
    return config, root / "run"


def test_the_demo_goes_from_nothing_to_a_table(run):
    config, workdir = run
    results = measure.evaluate_run(config, workdir)
    assert list(results) == ["student", "trivial", "teacher"]
    assert len(results["student"]["cameras"]) == 6
    assert list((workdir / "report").glob("*.png"))
    head = json.loads((workdir / "teacher_head" / "config.json").read_text())
    assert (head["task"], head["teacher"]["weights"]) == ("teacher_head", "mini-world")


def test_a_run_goes_on_wherever_it_is_moved(run, tmp_path, monkeypatch):
    _, workdir = run
    assert json.loads((workdir / "config.json").read_text())["teacher"]["head_weights"] == (
        "teacher_head"
    )
    moved = shutil.copytree(workdir, tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = config_lib.load_config(pathlib.Path("moved"))
    assert found.teacher.head_weights == "moved/teacher_head"
    assert load_student(found, pathlib.Path("moved"))
    of_before = json.loads((moved / "config.json").read_text())
    for named in ("runs/demo/teacher_head", "/gone/teacher_head"):
        of_before["teacher"]["head_weights"] = named
        (moved / "config.json").write_text(json.dumps(of_before))
        assert config_lib.load_config(moved).teacher.head_weights == str(moved / "teacher_head")
    found = config_lib.load_config(moved)
    _, teacher, _ = place_model(found, Model(make_task(found), 0), sharding.make_mesh(found.mesh))
    assert "head" in teacher
    config_lib.save_config(found, moved / "not_finite", run=moved)
    assert config_lib.load_config(moved / "not_finite").teacher.head_weights == str(
        moved / "not_finite" / ".." / "teacher_head"
    )


def test_statistics_are_averaged_with_the_weights_and_that_is_what_is_loaded(run, tmp_path):
    config, workdir = run
    decay = config.optimizer.ema_decay
    assert 0 < decay < 1
    before = shutil.copytree(workdir, tmp_path / "before")
    shutil.rmtree(before / "checkpoints" / "2")
    model = Model(make_task(config), config.seed)

    def load(folder, item):
        shapes = model.batch_stats if "stats" in item else model.params
        return checkpoints.load_params(folder, shapes, {"task": "student"}, item)

    for average, item in (("ema", "params"), ("ema_batch_stats", "batch_stats")):
        jax.tree.map(
            lambda now, before, new: np.testing.assert_allclose(
                now, decay * before + (1 - decay) * new, rtol=1e-5, atol=1e-6
            ),
            load(workdir, average),
            load(before, average),
            load(workdir, item),
        )
    loaded = load_trained(config, model, workdir, {"task": "student"})
    expected = (load(workdir, "ema"), load(workdir, "ema_batch_stats"))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    params, batch_stats = load(workdir, "params"), load(workdir, "batch_stats")
    state = TrainState(0, params, batch_stats, None, *expected, False)
    assert all(a is b for a, b in zip(state.averaged(), expected, strict=True))
    state = state.replace(ema=None, ema_batch_stats=None)
    assert state.averaged() == (params, batch_stats)


def test_an_arm_without_teacher_trains_no_head(run, tmp_path):
    config = shrink(demo.get_config("supervised"), run[0].data.data_dir)
    assert make.before(config, tmp_path) is None
    assert not (tmp_path / "teacher_head").exists()
    assert not config.teacher.head_weights


def test_a_trained_foundation_model_is_a_checkpoint_that_can_be_named(foundation, tmp_path):
    config, workdir = foundation
    trained = measure.evaluate_run(config, workdir)["foundation"]["mean"]
    named = config.copy_and_resolve_references()
    named.teacher.weights, named.teacher.size = str(workdir / "weights"), ""
    assert make.run(named, tmp_path) is None  # nothing to train
    assert not (tmp_path / "checkpoints").exists()
    measured = measure.evaluate_run(named, tmp_path)["foundation"]["mean"]
    assert measured["abs_rel"] == pytest.approx(trained["abs_rel"], rel=2e-3)  # half precision
    assert list((tmp_path / "report").glob("*.png"))


def test_pretraining_goes_on_from_weights(foundation, tmp_path):
    config = foundation[0].copy_and_resolve_references()
    config.teacher.start_weights = str(foundation[1] / "weights")
    config.objective.foundation_scale, config.objective.foundation_saturation = 0.0, 0.25
    config.optimizer.learning_rate = 1e-9
    config.seed = 7  # another fresh model
    assert loop.train(config, tmp_path) is None
    mesh = sharding.make_mesh(config.mesh)
    start = load_foundation(config, mesh)
    config.teacher.start_weights = str(tmp_path / "weights")
    end = load_foundation(config, mesh)
    jax.tree.map(np.testing.assert_array_equal, start, end)  # in half precision, nothing moved


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("runs/nothing/weights", "no such file or folder"),
        ("mini-world", r"start_weights='mini-world'"),
    ],
)
def test_a_wrong_start_is_refused_before_anything_is_rendered(start, message, tmp_path):
    config = demo_teacher.get_config("finish")
    config.teacher.start_weights, config.teacher.size = start, "dpt_tiny"
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match=message):
        make.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_the_shipped_teacher_fits_its_limits_and_knows_an_unseen_street(tmp_path):
    folder = SHIPPED["mini-world"]
    assert (folder / "model.safetensors").stat().st_size < 10e6
    assert read_foundation_config("mini-world")[0] == MiniConfig()
    config = demo_teacher.get_config("other_rig")
    config.data.data_dir = str(tmp_path / "data")
    config.data.eval_batch_size = 8
    config.world.val_scenes, config.world.samples_per_scene = 1, 1
    config.evaluation.pictures = 0
    assert make.run(config, tmp_path / "run") is None
    mean = measure.evaluate_run(config, tmp_path / "run")["foundation"]["mean"]
    assert mean["abs_rel"] < 0.12 and mean["delta1"] > 0.87  # .093, .898; its elder: .163, .789


def test_a_world_without_dense_truth_is_named(foundation, run):
    config = foundation[0].copy_and_resolve_references()
    config.data = run[0].data
    with pytest.raises(ConfigError, match=r"config\.world\.dense_depth=True"):
        loop.train(config, foundation[1].parent / "other")


def test_finished_stages_are_not_repeated(run):
    config, workdir = run
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("**/checkpoints/2")}
    assert len(before) == 2
    assert make.run(config, workdir) is None
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_neck_trained_with_the_head_starts_pretrained_and_reaches_the_student(run, tmp_path):
    config, _ = run
    stage = config.teacher.head_stage.copy_and_resolve_references()
    stage.teacher.train_neck = True
    stage.optimizer.learning_rate = 1e-9
    assert loop.train(stage, tmp_path / "head") is None
    mesh = sharding.make_mesh(config.mesh)
    pretrained = load_foundation(stage, mesh)
    student = config.copy_and_resolve_references()
    student.teacher.train_neck = True
    student.teacher.head_weights = str(tmp_path / "head")
    _, teacher, _ = place_model(student, Model(make_task(student), 0), mesh)
    differences = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), teacher["foundation"], pretrained
    )
    assert max(jax.tree.leaves(differences["decoder"])) < 1e-6  # it began as it was
    assert max(jax.tree.leaves(differences["decoder"])) > 0  # and it moved
    assert max(jax.tree.leaves(differences["stages"])) == 0
    student.teacher.train_neck = False
    with pytest.raises(checkpoints.CheckpointError, match="neck is True in the checkpoint"):
        place_model(student, Model(make_task(student), 0), mesh)


def test_a_head_of_another_foundation_model_is_refused(run, foundation, tmp_path):
    config, workdir = run
    other = config.copy_and_resolve_references()
    other.teacher.weights = str(foundation[1] / "weights")
    other.teacher.head_weights = str(workdir / "teacher_head")
    with pytest.raises(checkpoints.CheckpointError, match=r"foundation is '\w+' in the checkpoint"):
        loop.train(other, tmp_path / "run")


def test_a_mistyped_teacher_is_refused_before_anything_is_rendered(run, tmp_path):
    config = run[0].copy_and_resolve_references()
    config.teacher.weights, config.data.data_dir = "mini-wrld", str(tmp_path / "data")
    with pytest.raises(WeightsError, match=r"mini-wrld.*mini-world"):
        make.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_another_world_in_the_same_folder_is_refused(run):
    config, _ = run
    other = config.copy_and_resolve_references()
    other.world.seed = 99
    with pytest.raises(WorldError, match="99"):
        make.world(other)


def test_the_stages_before_a_run_are_listed_and_made_in_order(tmp_path, monkeypatch):
    config = demo.get_config()
    config.data.data_dir, config.data.jitter = str(tmp_path / "data"), 0.0
    kinds = lambda: [stage.kind for stage in stages.needed(config, tmp_path / "run")]  # noqa: E731
    assert kinds() == [stages.WORLD, stages.RUN, stages.WORLD]
    config.teacher.source = "cached"
    before = config.to_json()
    assert kinds() == [stages.WORLD, stages.RUN, stages.WORLD, stages.TEACHER_CACHE]
    assert config.to_json() == before and not list(tmp_path.iterdir())
    head = stages.needed(config, tmp_path / "run")[1]
    assert (head.workdir, head.config.task) == (tmp_path / "run" / "teacher_head", "teacher_head")
    made = []
    monkeypatch.setattr(loop, "train", lambda config, folder: made.append(config.task))
    monkeypatch.setattr(make, "world", lambda config: made.append("world"))
    monkeypatch.setattr(make.fill, "build", lambda config: made.append("cache"))
    assert make.run(config, tmp_path / "run") is None
    assert made == ["world", "teacher_head", "world", "cache", "student"]
    config.objective.update(dict.fromkeys(("ckd_divergence", "ckd_crossing", "vrkd"), 0.0))
    assert kinds() == [stages.WORLD]  # nothing asks the teacher
    signal_number = 15
    monkeypatch.setattr(loop, "train", lambda config, folder: signal_number)
    assert make.run(config, tmp_path / "run") == signal_number


def test_the_heads_stage_trains_on_the_runs_own_world(tmp_path, monkeypatch):
    config = demo.get_config()
    config.world.train_scenes = 3
    trained = []
    monkeypatch.setattr(loop, "train", lambda stage, folder: trained.append(stage))
    monkeypatch.setattr(make, "world", lambda config: None)
    assert make.before(config, tmp_path) is None
    assert trained[0].world.train_scenes == 3
    config.teacher.binning = "soft"
    assert make.before(config, tmp_path) is None
    assert len(trained) == 1  # soft bins need no head


CHANGED = {
    "bins.num_bins": 16,
    "bins.centers_of": "rig",
    "student.canonical_focal_px": 99.0,
    "data.min_depth_m": 1.0,
    "data.max_depth_m": 80.0,
}
CHANGED_DATA = {
    "data.config_name": "elsewhere",
    "data.cameras": ("A", "B"),
    "data.train_split": "val",
    "data.downscale": 2,
    "data.labelled_scenes": 3,
    "world.seed": 7,
}


def test_a_heads_stage_has_what_its_run_has(tmp_path):
    config = demo.get_config()
    config.update_from_flattened_dict(CHANGED | CHANGED_DATA | {"data.data_dir": "there"})
    before = config.to_json()
    planned = stages.planned(config, tmp_path)
    assert config.to_json() == before  # it is the caller's
    assert planned.teacher.head_weights == str(tmp_path / "teacher_head")
    stage = planned.teacher.head_stage
    assert (stage.task, stage.train.steps, stage.optimizer.ema_decay) == ("teacher_head", 600, 0.0)
    for key in (*CHANGED, *CHANGED_DATA, "data.data_dir"):
        section, name = key.split(".")
        assert stage[section][name] == config[section][name], key


def test_a_heads_stage_may_name_data_of_its_own(tmp_path):
    config = demo.get_config()
    config.update_from_flattened_dict(CHANGED | {"data.labelled_scenes": 3})
    own = config.teacher.head_stage
    own.data.config_name, own.world.seed = "another_world", 5
    stage = stages.planned(config, tmp_path).teacher.head_stage
    assert (stage.data.config_name, stage.world.seed) == ("another_world", 5)
    assert stage.data.labelled_scenes == 0
    assert (stage.bins.num_bins, stage.data.max_depth_m) == (16, 80.0)  # these must agree


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bins.num_bins", 16, r"bins is {.*'num_bins': 8.* in the checkpoint, {.*'num_bins': 16"),
        ("data.max_depth_m", 80.0, "max_depth_m is 200.0 in the checkpoint, 80.0 in the config"),
        ("data.min_depth_m", 1.0, "min_depth_m is 0.1 in the checkpoint, 1.0 in the config"),
        ("student.canonical_focal_px", 99.0, "focal_px is 178.77 in the checkpoint, 99.0 in"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_head_that_does_not_fit_is_refused_before_anything_runs(
    run, given, key, value, message, tmp_path
):
    """One that is named, or that of a stage that is done."""
    config, workdir = run
    config = config.copy_and_resolve_references()
    config.data.data_dir = str(tmp_path / "data")
    if given:
        config.teacher.head_weights, workdir = str(workdir / "teacher_head"), tmp_path / "run"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=rf"head_weights='.*' does not fit.*{message}"):
        make.run(config, workdir)
    assert not list(tmp_path.iterdir())


def test_a_head_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    config = demo.get_config()
    config.data.data_dir, config.teacher.head_weights = str(tmp_path), str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"nowhere' does not fit.* holds no run"):
        make.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())
