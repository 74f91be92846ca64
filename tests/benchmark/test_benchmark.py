"""The benchmark's contestants compute the same thing, and its report is whole."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_run import tiny_config

from fsmde_jax.benchmark import inference, report, timing, training
from fsmde_jax.benchmark.input import input_rate
from fsmde_jax.losses.objective import silog_on_lidar
from fsmde_jax.models.student import Student, StudentConfig


def small_student(centers_kind: str, mean_of: str) -> Student:
    """A random tiny student whose statistics are not those of a fresh one."""
    student = Student(
        StudentConfig.tiny(),
        num_bins=8,
        min_depth_m=0.1,
        max_depth_m=200.0,
        canonical_focal_px=100.0,
        centers_of="image",
        centers_kind=centers_kind,
        mean_of=mean_of,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        return 0.1 * values if values.ndim > 1 else 0.5 + 0.1 * np.abs(values)

    state = nnx.state(student, nnx.Any(nnx.Param, nnx.BatchStat))
    nnx.update(student, jax.tree.map(draw, state))
    student.eval()
    return student


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    intrinsics = np.tile(np.diag([90.0, 90.0, 1.0]).astype(np.float32), (2, 3, 1, 1))
    intrinsics[:, 1, 0, 0] = 180.0
    return {
        "image": rng.integers(0, 256, (2, 3, 64, 96, 3)).astype(np.uint8),
        "intrinsics": intrinsics,
        "lidar_xy": rng.uniform(-1, 97, (2, 3, 20, 2)).astype(np.float32),
        "lidar_depth_m": rng.uniform(-5, 60, (2, 3, 20)).astype(np.float32).clip(0),
    }


@pytest.mark.parametrize(
    ("centers_kind", "mean_of"),
    [("widths", "depth"), ("widths", "log_depth"), ("unbounded", "inverse_depth")],
)
def test_torch_student_and_its_loss_are_ours(centers_kind, mean_of, batch):
    torch = pytest.importorskip("torch")
    from fsmde_jax.benchmark import torch_student

    student = small_student(centers_kind, mean_of)
    inputs = map(jnp.asarray, (batch["image"], batch["intrinsics"], np.ones((2, 3), bool)))
    ours = student(*inputs).depth_m
    model = torch_student.TorchStudent(student).eval()
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        theirs = model(tensors["image"], tensors["intrinsics"])
        points = (tensors["lidar_xy"], tensors["lidar_depth_m"])
        loss = torch_student.silog_on_lidar(theirs, *points, variance_focus=0.85)
    assert np.ptp(ours) > 1.0
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-5)
    config = tiny_config("data").objective
    assert loss.item() == pytest.approx(
        float(silog_on_lidar(ours, jax.tree.map(jnp.asarray, batch), config)), rel=1e-5
    )


def test_torch_student_learns(batch):
    torch = pytest.importorskip("torch")
    from fsmde_jax.benchmark import torch_student

    model = torch_student.TorchStudent(small_student("widths", "depth")).train()
    step = torch_student.make_train_step(model, 1e-3, 1.0, 0.85)
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    losses = [step(tensors) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_report_has_every_section(monkeypatch, tmp_path, capsys):
    if "torch" in sys.modules:  # compiling takes a minute, and has nothing to be tested here
        monkeypatch.setattr(sys.modules["torch"], "compile", lambda module: module)
    config = tiny_config(tmp_path)
    ceilings = timing.Ceilings(1e12, 1e11)
    rows = inference.measure(config, ["tiny"], [1], 1, ceilings)
    names = [row["what"] for row in rows]
    assert names[0] == "tiny, jax" and names[-1].startswith("teacher dpt")
    assert all(row["relative error"] is None or row["relative error"] < 1e-4 for row in rows)
    assert rows[0]["GFLOP"] > 0 and rows[0]["memory (MiB)"] > 0
    # One training step is compiled, not three: they are a minute of compilation.
    step = training._step(config, source="cached")
    monkeypatch.setattr(training, "_step", lambda *args, **kwargs: step)
    steps = training.measure(config, 1, ceilings)
    assert [row["step"] for row in steps][:2] == ["supervised, jax", "cached teacher, jax"]
    assert input_rate(config) == []
    assert "prepare it first" in capsys.readouterr().out
    json.dumps([rows, steps])
    assert len(report.table(rows).splitlines()) == len(rows) + 2


def test_each_turn_warms_up_what_it_times():
    calls = []
    times = timing.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "a", "b", "b"] * 2
    assert set(times) == {"a", "b"}
    assert report.table([{"x": None, "y": 1234.5, "z": "t"}]).endswith("\n| - | 1234 | t |")
