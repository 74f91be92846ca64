"""Measuring speed: what is compared runs in turns; what the device can do at most."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from tqdm import tqdm

Rows = list[dict[str, Any]]  # of a table: values by column
GIGA, MIB = 1e9, 2.0**20


class Timing(NamedTuple):
    """How long several runs of one thing took."""

    median_s: float
    spread: float  # distance of the quartiles over the median


class Ceilings(NamedTuple):
    """The most that this device did in a measurement."""

    flops_per_s: float  # of a product of large matrices
    bytes_per_s: float  # of an addition of large arrays, reads and writes


def in_turns(runs: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, Timing]:
    """Times each of `runs` (by any key), one after another, `repeats` times.

    A run must wait for its result. In each turn it is called twice and the second call is timed:
    the first may compile, and finds the memory as the run before left it. Without the first call
    the ResNet-18 step after torch's took 5.4 s instead of 4.7 s.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats), desc="turns", unit="turn"):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    median = statistics.median(seconds)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
    return Timing(median, (quartiles[2] - quartiles[0]) / median)


def ceilings(dtype: DTypeLike, repeats: int) -> Ceilings:
    """Measures the device's matrix product in `dtype`, and its memory in float32."""
    size = 2048 if jax.devices()[0].platform == "cpu" else 8192
    matrix, array = jnp.ones((size, size), dtype), jnp.ones(1 << 26, jnp.float32)
    product = jax.jit(lambda a: a @ a)
    # In place: fresh memory would be measured as well.
    add = jax.jit(lambda a: a + 1, donate_argnums=0)

    def run_add() -> None:
        nonlocal array
        array = add(array).block_until_ready()

    times = in_turns(
        {"product": lambda: product(matrix).block_until_ready(), "add": run_add}, repeats
    )
    return Ceilings(
        2 * size**3 / times["product"].median_s, 2 * array.nbytes / times["add"].median_s
    )


def machine() -> str:
    """The device, cores and versions, for a report."""
    return (
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores "
        f"({platform.machine()}), jax {jax.__version__}."
    )
