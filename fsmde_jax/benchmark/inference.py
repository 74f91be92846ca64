"""Measures a config's inference, training step and input."""

import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fsmde_jax.benchmark import timing
from fsmde_jax.config import input_focal_px
from fsmde_jax.data import pipeline, prepared
from fsmde_jax.export import formats
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.models.encoders.resnet import ResNet
from fsmde_jax.models.layers import compiler
from fsmde_jax.run import sharding, teacher_outputs
from fsmde_jax.run.load import place_model
from fsmde_jax.run.state import Model, count_parameters, init_state
from fsmde_jax.tasks import build_student, make_task
from fsmde_jax.train import dry_run, loop

Rows = list[dict[str, Any]]
GIGA, MIB = 1e9, 2.0**20
SECTIONS = ("inference", "training", "input", "loading", "forward")


class Contestant(NamedTuple):
    """One way to compute the same thing."""

    run: Callable[[], Any]  # waits for its result
    images: int
    parameters: int | None = None
    flops: float | None = None
    bytes: float | None = None  # moved, by the compiler
    memory: float | None = None  # bytes of arguments and temporaries, by the compiler
    error: float | None = None  # largest relative difference to ours


# ---------------------------------------------------------------- inference


def inference(
    config: ConfigDict,
    students: list[str],
    batches: list[int],
    repeats: int,
    ceilings: timing.Ceilings,
) -> Rows:
    """Students and teacher on `batches` rigs at once."""
    found = {}
    for batch in batches:
        for size in students:
            found |= _students(_with_student(config, size), size, batch)
        found[f"teacher {teacher_name(config)}, jax", batch] = _teacher(config, batch)
    times = timing.in_turns({key: one.run for key, one in found.items()}, repeats)
    teacher_s = {key[1]: times[key].median_s for key in found if key[0].startswith("teacher")}
    return [
        {
            "what": name,
            "rigs": batch,
            "parameters (M)": one.parameters and one.parameters / 1e6,
            **_speed(one, times[name, batch], ceilings),
            "teacher / this": teacher_s[batch] / times[name, batch].median_s,
            "relative error": one.error,
        }
        for (name, batch), one in found.items()
    ]


def teacher_name(config: ConfigDict) -> str:
    """What `teacher.weights` or, for random ones, `teacher.size` names."""
    return config.teacher.size or config.teacher.weights


def _with_student(config: ConfigDict, size: str) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.student.size = size
    return config


def _students(config: ConfigDict, size: str, batch: int) -> dict[tuple[str, int], Contestant]:
    """A student in jax, and in the other runtimes there are."""
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
    """Compiled for these inputs, with the compiler's counts."""
    program = compiler.Program(function, compiler.inference_options())
    lowered, compiled = program.compile(*inputs)
    on_device = jax.device_put(inputs)
    memory = compiled.memory_analysis()
    return Contestant(
        run=lambda: compiled(*on_device).block_until_ready(),
        images=inputs[0].shape[0] * inputs[0].shape[1],
        parameters=parameters,
        flops=_flops(lowered, compiled),
        bytes=compiled.cost_analysis()["bytes accessed"],
        memory=memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    )


def _flops(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> float:
    """Counted before compilation: afterwards a CPU's products are calls of libraries.

    For a GPU there is no count before.
    """
    return (lowered.cost_analysis() or compiled.cost_analysis())["flops"]


def _onnx_run(function: Callable, *inputs: np.ndarray) -> Callable[[], np.ndarray] | None:
    """In onnxruntime; None where it is not installed."""
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
    """Eager and compiled; {} where torch is not installed."""
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
    """The teacher as distillation reads it."""
    model, mesh = Model(make_task(config), config.seed), sharding.make_mesh(config.mesh)
    state = _random_teacher(model, mesh)
    image, intrinsics = _rigs(config, batch)
    if config.teacher.image == "prepared":
        image = image.repeat(config.data.downscale, 2).repeat(config.data.downscale, 3)
    cameras = jnp.ones(image.shape[:2], bool)
    function = lambda *inputs: model.merge_teacher(state)(*inputs, cameras).logits  # noqa: E731
    return _jax_contestant(function, (image, intrinsics), count_parameters(state))


def _random_teacher(model: Model, mesh: jax.sharding.Mesh) -> Any:
    """A teacher's state on the mesh; how fast it is does not depend on its weights."""
    state = model.init_frozen()[1]
    return jax.device_put(state, sharding.fsdp_sharding(state, mesh))


# ---------------------------------------------------------------- training


def training(config: ConfigDict, repeats: int, ceilings: timing.Ceilings) -> Rows:
    """A student's training step by where its teacher comes from, and supervised in torch."""
    runs = {
        "supervised, jax": _step(config, **dict.fromkeys(DISTILLATION, 0.0)),
        "cached teacher, jax": _step(config, source="cached"),
        "online teacher, jax": _step(config),
        **_torch_steps(config),
    }
    times = timing.in_turns({name: one.run for name, one in runs.items()}, repeats)
    supervised_s = times["supervised, jax"].median_s
    return [
        {
            "step": name,
            **_speed(one, times[name], ceilings),
            "times supervised": times[name].median_s / supervised_s,
        }
        for name, one in runs.items()
    ]


def _step(config: ConfigDict, source: str = "online", **objective: float) -> Contestant:
    """One more step at each call, on a batch of random values."""
    config = config.copy_and_resolve_references()
    config.objective.update(objective)
    config.teacher.source = source
    mesh, task = sharding.make_mesh(config.mesh), make_task(config)
    model = Model(task, config.seed)
    values = _random_batch(dry_run.batch_shapes(config, task, model))
    batch = jax.device_put(values, sharding.batch_sharding(mesh))
    teacher_state = {} if source == "cached" else _random_teacher(model, mesh)
    train_step = loop.make_train_step(config, task, model, mesh)
    state = init_state(*model.init(), loop.make_optimizer(config), config.optimizer.ema_decay > 0)
    state = jax.device_put(state, sharding.replicated(mesh))
    lowered, compiled = train_step.compile(state, model.frozen, teacher_state, batch)
    memory = compiled.memory_analysis()

    def run() -> None:
        nonlocal state
        state, scalars = compiled(state, model.frozen, teacher_state, batch)
        jax.block_until_ready(scalars)

    return Contestant(
        run=run,
        images=batch["image"].shape[0] * batch["image"].shape[1],
        flops=_flops(lowered, compiled),
        bytes=compiled.cost_analysis()["bytes accessed"],
        memory=memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    )


def _torch_steps(config: ConfigDict) -> dict[str, Contestant]:
    """The supervised step in torch, eager and compiled; {} where it is not installed."""
    try:
        import torch

        from fsmde_jax.benchmark import torch_student
    except ImportError:
        return {}
    student = build_student(config, nnx.Rngs(config.seed))
    if not isinstance(student.encoder, ResNet) or config.bins.centers_of != "image":
        return {}
    task = make_task(config)
    values = _random_batch(dry_run.batch_shapes(config, task, Model(task, config.seed)))
    batch = {name: torch.from_numpy(value) for name, value in values.items()}
    images = batch["image"].shape[0] * batch["image"].shape[1]
    found = {}
    for name, wrap in (("torch eager", lambda module: module), ("torch.compile", torch.compile)):
        model = torch_student.TorchStudent(student).to(memory_format=torch.channels_last)
        step = torch_student.make_train_step(
            wrap(model.train()),
            config.optimizer.learning_rate,
            config.optimizer.clip_norm,
            config.objective.silog_variance_focus,
        )
        found[f"supervised, {name}"] = Contestant(lambda step=step: step(batch), images)
    return found


def _random_batch(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
    """A batch of these shapes: all cameras, neighbours, points with depth."""
    rng, batch = np.random.default_rng(0), {}
    for name, leaf in shapes.items():
        draw = rng.integers(1, 100, leaf.shape) if leaf.dtype != bool else np.ones(leaf.shape)
        batch[name] = draw.astype(leaf.dtype)
    n = shapes["image"].shape[1]
    batch["neighbour"][:] = (np.arange(n) + 1) % n
    batch["intrinsics"][:] = np.diag([100.0, 100.0, 1.0])
    return batch


# ---------------------------------------------------------------- input


def input_rate(config: ConfigDict, samples: int = 200) -> Rows:
    """Training batches from disk to device, with nothing else running.

    Empty where the config's data is not prepared.
    """
    data = config.data
    folder = prepared.version_dir(pathlib.Path(data.data_dir), data.dataset, data.config_name)
    if not folder.is_dir():
        print(f"{folder} is not there, so the rate of reading it is left out: prepare it first")
        return []
    mesh, stored = sharding.make_mesh(config.mesh), None
    if config.teacher.source == "cached":
        model = Model(make_task(config), config.seed)
        stored = teacher_outputs.open_cache(config, model, place_model(config, model, mesh)[2])
    batches = pipeline.train_batches(
        data,
        config.seed,
        sharding.batch_sharding(mesh),
        with_prepared=config.teacher.image == "prepared" and stored is None,
        stored=stored,
    )
    for _ in range(24 // data.batch_size + 2):  # what was read ahead
        next(batches)
    start, count = time.perf_counter(), -(-samples // data.batch_size)
    for _ in range(count):
        batch = next(batches)
    rate = count * data.batch_size / (time.perf_counter() - start)
    return [
        {
            "data": str(folder),
            "teacher": config.teacher.source,
            "samples / s": rate,
            "images / s": rate * batch["image"].shape[1],
            "threads": data.num_threads,
            "samples": count * data.batch_size,
        }
    ]


# ---------------------------------------------------------------- rows


def _speed(one: Contestant, found: timing.Timing, ceilings: timing.Ceilings) -> dict[str, Any]:
    """Columns of all tables: time, rate, FLOPs, and how much of what the device can do that is."""

    def share(amount: float | None, ceiling: float) -> str | None:
        return amount and f"{100 * amount / found.median_s / ceiling:.0f} %"

    return {
        "ms": 1e3 * found.median_s,
        "spread": f"{100 * found.spread:.0f} %",
        "images / s": one.images / found.median_s,
        "GFLOP": one.flops and one.flops / GIGA,
        "of peak FLOP/s": share(one.flops, ceilings.flops_per_s),
        "of peak bytes/s": share(one.bytes, ceilings.bytes_per_s),
        "memory (MiB)": one.memory and one.memory / MIB,
    }
