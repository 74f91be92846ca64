"""Inference: students and their teacher in jax, students also in onnxruntime and torch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fsmde_jax.benchmark import timing
from fsmde_jax.benchmark.contestant import Contestant, counts_of, random_teacher, speed_columns
from fsmde_jax.benchmark.timing import Rows
from fsmde_jax.config import input_focal_px
from fsmde_jax.export import formats
from fsmde_jax.models.encoders.resnet import ResNet
from fsmde_jax.models.layers import compiler
from fsmde_jax.run import sharding
from fsmde_jax.run.state import Model, count_parameters
from fsmde_jax.tasks import build_student, make_task
from fsmde_jax.train import dry_run


def measure(
    config: ConfigDict,
    students: list[str],
    batches: list[int],
    repeats: int,
    ceilings: timing.Ceilings,
) -> Rows:
    """A row for each student and the teacher, on random images.

    Args:
      students: sizes, as `config.student.size`.
      batches: how many rigs at once.
      repeats: so many turns.
      ceilings: the device's.
    """
    found, teacher = {}, config.teacher.size or config.teacher.weights
    for batch in batches:
        for size in students:
            found |= _students(_with_student(config, size), size, batch)
        found[f"teacher {teacher}, jax", batch] = _teacher(config, batch)
    times = timing.in_turns({key: one.run for key, one in found.items()}, repeats)
    teacher_s = {key[1]: times[key].median_s for key in found if key[0].startswith("teacher")}
    return [
        {
            "what": name,
            "rigs": batch,
            "parameters (M)": one.parameters and one.parameters / 1e6,
            **speed_columns(one, times[name, batch], ceilings),
            "teacher / this": teacher_s[batch] / times[name, batch].median_s,
            "relative error": one.error,
        }
        for (name, batch), one in found.items()
    ]


def _with_student(config: ConfigDict, size: str) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.student.size = size
    return config


def _students(config: ConfigDict, size: str, batch: int) -> dict[tuple[str, int], Contestant]:
    """A student in jax and in the other runtimes that are installed."""
    student = build_student(config, nnx.Rngs(config.seed))
    student.eval()
    count = count_parameters(nnx.state(student, nnx.Param))
    image, intrinsics = _rigs(config, batch)
    function = formats.inference(student)
    ours = _jax_contestant(lambda *inputs: function(*inputs)[0], (image, intrinsics), count)
    depth_m = np.asarray(ours.run())
    others = {f"{size}, onnxruntime": _onnx_run(function, image, intrinsics)}
    if isinstance(student.encoder, ResNet) and config.bins.centers_of == "image":
        others |= {f"{size}, {k}": v for k, v in _torch_runs(student, image, intrinsics).items()}
    found = {(f"{size}, jax", batch): ours}
    for name, run in others.items():
        if run is not None:
            error = float(np.abs(run() - depth_m).max() / depth_m.max())
            found[name, batch] = ours._replace(run=run, memory=None, bytes=None, error=error)
    return found


def _rigs(config: ConfigDict, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images of rigs at the student's size, and plausible intrinsics."""
    n, height, width = dry_run.image_shape(config)
    image = np.random.default_rng(0).integers(0, 256, (batch, n, height, width, 3)).astype(np.uint8)
    focal = input_focal_px(config)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
    return image, np.tile(intrinsics, (batch, n, 1, 1))


def _jax_contestant(function: Callable, inputs: tuple, parameters: int) -> Contestant:
    """`function`, compiled for these inputs."""
    program = compiler.Program(function, compiler.inference_options())
    lowered, compiled = program.compile(*inputs)
    on_device = jax.device_put(inputs)
    return Contestant(
        run=lambda: compiled(*on_device).block_until_ready(),
        images=inputs[0].shape[0] * inputs[0].shape[1],
        parameters=parameters,
        **counts_of(lowered, compiled),
    )


def _onnx_run(function: Callable, *inputs: np.ndarray) -> Callable[[], np.ndarray] | None:
    """The student in onnxruntime; None where that is not installed."""
    try:
        import onnxruntime

        from fsmde_jax.export import onnx_graph
    except ImportError:
        return None
    named = dict(zip(formats.INPUTS, inputs, strict=True))
    model = onnx_graph.convert(function, formats.free_batch(named), formats.OUTPUTS)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda: session.run([formats.OUTPUTS[0]], named)[0]


def _torch_runs(student: nnx.Module, *inputs: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """The student in torch, eager and compiled; {} where torch is not installed."""
    try:
        import torch

        from fsmde_jax.benchmark.torch_student import TorchStudent
    except ImportError:
        return {}
    model = TorchStudent(student).eval().to(memory_format=torch.channels_last)
    image, intrinsics = map(torch.from_numpy, inputs)

    def run(call: Callable) -> Callable[[], np.ndarray]:
        def timed() -> np.ndarray:
            with torch.inference_mode():
                return call(image, intrinsics).numpy()

        return timed

    return {"torch eager": run(model), "torch.compile": run(torch.compile(model))}


def _teacher(config: ConfigDict, batch: int) -> Contestant:
    """The teacher, on the images that distillation gives it."""
    model, mesh = Model(make_task(config), config.seed), sharding.make_mesh(config.mesh)
    state = random_teacher(model, mesh)
    image, intrinsics = _rigs(config, batch)
    if config.teacher.image == "prepared":
        image = image.repeat(config.data.downscale, 2).repeat(config.data.downscale, 3)
    cameras = jnp.ones(image.shape[:2], bool)
    function = lambda *inputs: model.merge_teacher(state)(*inputs, cameras).logits  # noqa: E731
    return _jax_contestant(function, (image, intrinsics), count_parameters(state))
