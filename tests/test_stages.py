import json
import pathlib
import runpy
import shutil

import jax
import pytest

from fsmde_jax import checkpoints, evaluate, sharding, stages, tasks, train
from fsmde_jax.data.world import WorldError
from fsmde_jax.state import Model, place_model

DEMO = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "demo.py"))


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
    config.evaluation.pictures = 1
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo, shrunk: world, foundation, head, student."""
    root = tmp_path_factory.mktemp("demo")
    config = shrink(DEMO["get_config"](), root / "data")
    for stage in (config.teacher.stages.foundation, config.teacher.stages.head):
        shrink(stage, root / "data")
    assert stages.run(config, root / "run") is None
    return config, root / "run"


def test_the_demo_goes_from_nothing_to_a_table(run):
    config, workdir = run
    results = evaluate.evaluate_run(config, workdir)
    assert list(results) == ["student", "trivial", "teacher"]
    assert len(results["student"]["cameras"]) == 6
    assert list((workdir / "report").glob("*.png"))
    for stage, task in (("teacher_foundation", "foundation"), ("teacher_head", "teacher_head")):
        assert json.loads((workdir / stage / "config.json").read_text())["task"] == task


def test_finished_stages_are_not_repeated(run):
    config, workdir = run
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("**/checkpoints/2")}
    assert len(before) == 3
    assert stages.run(config, workdir) is None
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_neck_trained_with_the_head_starts_pretrained_and_reaches_the_student(run, tmp_path):
    config, workdir = run
    foundation = str(workdir / "teacher_foundation")
    stage = config.teacher.stages.head.copy_and_resolve_references()
    stage.teacher.weights, stage.teacher.train_neck = foundation, True
    stage.optimizer.learning_rate = 1e-9
    assert train.train(stage, tmp_path / "head") is None
    mesh = sharding.make_mesh(config.mesh)
    pretrained = tasks.load_foundation(stage, mesh)
    student = config.copy_and_resolve_references()
    student.teacher.weights, student.teacher.train_neck = foundation, True
    student.teacher.head_weights = str(tmp_path / "head")
    _, teacher, _ = place_model(student, Model(tasks.make_task(student), 0), mesh)
    differences = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), teacher["foundation"], pretrained
    )
    assert max(jax.tree.leaves(differences["neck_convs"])) < 1e-6  # it began as it was
    assert max(jax.tree.leaves(differences["neck_convs"])) > 0  # and it moved
    assert max(jax.tree.leaves(differences["backbone"])) == 0
    student.teacher.train_neck = False
    with pytest.raises(checkpoints.CheckpointError, match="neck is True in the checkpoint"):
        place_model(student, Model(tasks.make_task(student), 0), mesh)


def test_a_head_of_another_foundation_model_is_refused(run, tmp_path):
    config, workdir = run
    other = config.copy_and_resolve_references()
    other.teacher.weights, other.seed = str(workdir / "teacher_foundation"), 0
    other.teacher.head_weights = str(workdir / "teacher_head")
    shutil.copytree(workdir / "teacher_foundation", tmp_path / "foundation")
    stage = config.teacher.stages.foundation.copy_and_resolve_references()
    stage.train.steps = 3
    assert train.train(stage, tmp_path / "foundation") is None  # one step more: other weights
    other.teacher.weights = str(tmp_path / "foundation")
    with pytest.raises(checkpoints.CheckpointError, match=r"foundation is '\w+' in the checkpoint"):
        train.train(other, tmp_path / "run")


def test_another_world_in_the_same_folder_is_refused(run):
    config, _ = run
    other = config.copy_and_resolve_references()
    other.world.seed = 99
    with pytest.raises(WorldError, match="99"):
        stages.make_world(other)
