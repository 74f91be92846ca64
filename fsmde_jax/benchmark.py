"""Measurements: `python -m fsmde_jax.benchmark --what=loading|forward|step`.

loading: memory and time of loading published foundation models (`--models=NAME,NAME`) from
safetensors files of random values. forward: time of their forward pass beside transformers' torch
model (needs `pip install -e ".[torch]"`). step: time of a training step of `--config` supervised
only, with a cached and with an online teacher, on random images (and with
`--config.teacher.weights=random` a random teacher). What is compared runs in turns.
Prints Markdown; `--out` also writes it, with the command.
"""

import multiprocessing
import os
import pathlib
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from ml_collections import ConfigDict, config_flags

from fsmde_jax import dry_run, sharding, tasks, train
from fsmde_jax.config import default_config
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.models import hub_config, weights
from fsmde_jax.models.dpt import DPT, DPTConfig
from fsmde_jax.state import Model, init_state, place_model

MIB = 2.0**20


def main(_) -> None:
    """Runs one measurement and prints its report."""
    if flags.FLAGS.what == "step":
        rows = step(CONFIG.value)
    else:
        measure = {"loading": loading, "forward": forward}[flags.FLAGS.what]
        rows = [measure(name) for name in flags.FLAGS.models]
    lines = [f"# {flags.FLAGS.what}", "", f"`{_command()}`", "", machine(), ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "| --- " * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    print("\n".join(lines))
    if flags.FLAGS.out:
        pathlib.Path(flags.FLAGS.out).write_text("\n".join(lines) + "\n")


def _command() -> str:
    return shlex.join(["python", "-m", "fsmde_jax.benchmark", *sys.argv[1:]])


def machine() -> str:
    """The device, cores and versions, for a report."""
    return (
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores "
        f"({platform.machine()}), jax {jax.__version__}."
    )


def _abstract(config: DPTConfig, dtype: Any = jnp.float32) -> DPT:
    return nnx.eval_shape(lambda: DPT(config, rngs=nnx.Rngs(0), dtype=dtype))


def _write_random(folder: pathlib.Path, config: DPTConfig) -> None:
    """A float32 checkpoint of random values, as large as the published one."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32)  # noqa: E731
    state = jax.tree.map(draw, nnx.state(_abstract(config), nnx.Param))
    preprocessing = hub_config.default_preprocessing(config)
    weights.save_dpt(folder, config, preprocessing, state)


def loading(name: str) -> dict[str, str]:
    """Peak memory and time of loading a checkpoint of this architecture onto the mesh."""
    config = hub_config.PUBLISHED[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        _write_random(path, config)
        size = (path / "model.safetensors").stat().st_size
        # A process of its own: its high-water mark is this load's.
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            before, peak, seconds = pool.apply(_load, (name, folder))
    grown = peak - before
    return {
        "model": name,
        "file (MiB)": f"{size / MIB:.0f}",
        "memory before (MiB)": f"{before / MIB:.0f}",
        "growth to the peak (MiB)": f"{grown / MIB:.0f}",
        "growth / file": f"{grown / size:.2f}",
        "seconds": f"{seconds:.1f}",
    }


def _load(name: str, folder: str) -> tuple[int, int, float]:
    """Resident bytes before loading, at the peak, and seconds."""
    config = hub_config.PUBLISHED[name]
    state = nnx.state(_abstract(config), nnx.Param)
    mesh = sharding.make_mesh(default_config().mesh)
    shardings = sharding.fsdp_sharding(state, mesh)
    jax.block_until_ready(jax.device_put(np.zeros(1)))
    before = _memory_bytes("VmRSS")
    start = time.perf_counter()
    jax.block_until_ready(weights.load_dpt(folder, config, state, shardings))
    seconds = time.perf_counter() - start
    # Not getrusage: its maximum is inherited from the process that started this one.
    return before, _memory_bytes("VmHWM"), seconds


def _memory_bytes(field: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def forward(name: str) -> dict[str, str]:
    """Median seconds of a forward pass of random weights, jax and torch in turns."""
    import torch
    import transformers

    config, size = hub_config.PUBLISHED[name], flags.FLAGS.image_size
    height, width = map(int, size.split("x"))
    image = np.random.default_rng(0).standard_normal((1, height, width, 3), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        _write_random(pathlib.Path(folder), config)
        reference = transformers.AutoModelForDepthEstimation.from_pretrained(folder).eval()
        runs = {}
        for dtype in (jnp.float32, jnp.bfloat16):
            model = _abstract(config, dtype)
            state = nnx.state(model, nnx.Param)
            mesh = sharding.make_mesh(default_config().mesh)
            state = weights.load_dpt(folder, config, state, sharding.fsdp_sharding(state, mesh))
            runs[f"jax {jnp.dtype(dtype).name}"] = _compiled(model, state, image)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())

    @torch.no_grad()
    def run_torch():
        return reference(pixels).predicted_depth.numpy()

    runs["torch float32"] = run_torch
    outputs = {key: run() for key, run in runs.items()}  # compiles; and shows they agree
    error = np.abs(outputs["jax float32"] - outputs["torch float32"]).max()
    error /= np.abs(outputs["torch float32"]).max()
    median = _medians(runs)
    return {
        "model": name,
        "image": size,
        **{f"{key} (s)": f"{value:.2f}" for key, value in median.items()},
        "jax / torch": f"{median['jax float32'] / median['torch float32']:.2f}",
        "bfloat16 / float32": f"{median['jax bfloat16'] / median['jax float32']:.2f}",
        "relative error": f"{error:.1e}",
        "repeats": str(flags.FLAGS.repeats),
    }


def _medians(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, run in turns."""
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(flags.FLAGS.repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            times[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in times.items()}


def step(config: ConfigDict) -> list[dict[str, str]]:
    """Seconds of a student's training step by where its teacher comes from."""
    runs = {
        "supervised only": _step_run(config, **dict.fromkeys(DISTILLATION, 0.0)),
        "cached teacher": _step_run(config, source="cached"),
        "online teacher": _step_run(config),
    }
    for run in runs.values():
        run()  # compiles
    median = _medians(runs)
    return [
        {
            "step": key,
            "seconds": f"{value:.4f}",
            "times supervised": f"{value / median['supervised only']:.2f}",
            "repeats": str(flags.FLAGS.repeats),
        }
        for key, value in median.items()
    ]


def _step_run(config: ConfigDict, source: str = "online", **objective: float) -> Callable[[], Any]:
    """A call that makes one more step, on a batch of random values."""
    config = config.copy_and_resolve_references()
    config.objective.update(objective)
    config.teacher.source = source
    mesh, task = sharding.make_mesh(config.mesh), tasks.make_task(config)
    model = Model(task, config.seed)
    shapes = dry_run.batch_shapes(config, task, model)
    batch = jax.device_put(_random_batch(shapes), sharding.batch_sharding(mesh))
    frozen, teacher_state, _ = place_model(config, model, mesh)
    teacher_state = {} if source == "cached" else teacher_state
    train_step = train.make_train_step(config, task, model, mesh)
    state = init_state(*model.init(), train.make_optimizer(config), ema=False)
    state = jax.device_put(state, sharding.replicated(mesh))

    def run() -> None:
        nonlocal state
        state, scalars = train_step(state, frozen, teacher_state, batch)
        jax.block_until_ready(scalars)

    return run


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


def _compiled(model: DPT, state: nnx.State, image: np.ndarray) -> Callable[[], np.ndarray]:
    """A call without arguments that runs the model and waits."""
    graph, image_on_device = nnx.graphdef(model), jnp.asarray(image)
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x).prediction)
    return lambda: np.asarray(call(state, image_on_device))


if __name__ == "__main__":
    flags.DEFINE_enum(
        "what", None, ["loading", "forward", "step"], "What is measured.", required=True
    )
    flags.DEFINE_list("models", ["Intel/dpt-large"], "Published hub ids; no weights are fetched.")
    flags.DEFINE_string("image_size", "518x686", "Height x width of forward's image.")
    flags.DEFINE_integer("repeats", 5, "Of forward, after one that compiles.")
    CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration of step.")
    flags.DEFINE_string("out", "", "A file to write the report to as well.")
    app.run(main)
