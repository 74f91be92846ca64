"""Published foundation models: memory of loading them, and a forward pass beside torch's."""

import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fsmde_jax.benchmark import timing
from fsmde_jax.benchmark.timing import MIB
from fsmde_jax.config import default_config
from fsmde_jax.models.foundation.dpt import DPT, DPTConfig
from fsmde_jax.models.weights import hub_config, load, save
from fsmde_jax.run import sharding


def _abstract(config: DPTConfig, dtype: Any = jnp.float32) -> DPT:
    return nnx.eval_shape(lambda: DPT(config, rngs=nnx.Rngs(0), dtype=dtype))


def _write_random(folder: pathlib.Path, config: DPTConfig) -> None:
    """A float32 checkpoint of random values, as large as the published one."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32)  # noqa: E731
    state = jax.tree.map(draw, nnx.state(_abstract(config), nnx.Param))
    preprocessing = hub_config.default_preprocessing(config)
    save.save_foundation(folder, config, preprocessing, state)


def loading(name: str) -> dict[str, Any]:
    """Peak memory and time of loading a checkpoint of this architecture onto the mesh."""
    config = hub_config.PUBLISHED[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        _write_random(path, config)
        size = (path / "model.safetensors").stat().st_size
        # In a process of its own, whose peak memory is this load's.
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
    jax.block_until_ready(load.load_foundation(folder, config, state, shardings))
    seconds = time.perf_counter() - start
    # getrusage would not do: it inherits its maximum from the process that started this one.
    return before, _memory_bytes("VmHWM"), seconds


def _memory_bytes(field: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def forward(name: str, image_size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Median seconds of a forward pass with random weights; jax and torch take turns."""
    import torch
    import transformers

    config = hub_config.PUBLISHED[name]
    image = np.random.default_rng(0).standard_normal((1, *image_size, 3), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        _write_random(pathlib.Path(folder), config)
        reference = transformers.AutoModelForDepthEstimation.from_pretrained(folder).eval()
        runs = {}
        for dtype in (jnp.float32, jnp.bfloat16):
            model = _abstract(config, dtype)
            state = nnx.state(model, nnx.Param)
            mesh = sharding.make_mesh(default_config().mesh)
            state = load.load_foundation(folder, config, state, sharding.fsdp_sharding(state, mesh))
            runs[f"jax {jnp.dtype(dtype).name}"] = _compiled(model, state, image)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())

    @torch.no_grad()
    def run_torch():
        return reference(pixels).predicted_depth.numpy()

    runs["torch float32"] = run_torch
    outputs = {key: run() for key, run in runs.items()}
    error = np.abs(outputs["jax float32"] - outputs["torch float32"]).max()
    error /= np.abs(outputs["torch float32"]).max()
    median = {key: found.median_s for key, found in timing.in_turns(runs, repeats).items()}
    return {
        "model": name,
        "image": "x".join(map(str, image_size)),
        **{f"{key} (s)": f"{value:.2f}" for key, value in median.items()},
        "jax / torch": f"{median['jax float32'] / median['torch float32']:.2f}",
        "bfloat16 / float32": f"{median['jax bfloat16'] / median['jax float32']:.2f}",
        "relative error": f"{error:.1e}",
        "repeats": repeats,
    }


def _compiled(model: DPT, state: nnx.State, image: np.ndarray) -> Callable[[], np.ndarray]:
    """A call without arguments that runs the model and waits."""
    graph, image_on_device = nnx.graphdef(model), jnp.asarray(image)
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x).prediction)
    return lambda: np.asarray(call(state, image_on_device))
