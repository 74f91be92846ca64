"""A contestant is one of several ways to compute the same thing: its counts, its columns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fsmde_jax.benchmark import timing
from fsmde_jax.benchmark.timing import GIGA, MIB
from fsmde_jax.run import sharding
from fsmde_jax.run.state import Model


class Contestant(NamedTuple):
    """One way to compute something. None is not known.

    Attributes:
      run: computes it once, and waits for the result.
      images: how many images `run` takes.
      parameters: how many the model has.
      flops: of one `run`, as the compiler counts.
      bytes: read and written in one `run`, as the compiler counts.
      memory: bytes of arguments and temporaries, as the compiler counts.
      error: largest difference to jax's result, as a share of its largest value.
    """

    run: Callable[[], Any]
    images: int
    parameters: int | None = None
    flops: float | None = None
    bytes: float | None = None
    memory: float | None = None
    error: float | None = None


def counts_of(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> dict[str, float]:
    """The compiler's counts of a program, as `Contestant` names them."""
    memory = compiled.memory_analysis()
    return {
        # Once compiled for a CPU, products of matrices are library calls, which are not counted;
        # for a GPU there is no count before.
        "flops": (lowered.cost_analysis() or compiled.cost_analysis())["flops"],
        "bytes": compiled.cost_analysis()["bytes accessed"],
        "memory": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }


def speed_columns(
    one: Contestant, found: timing.Timing, ceilings: timing.Ceilings
) -> dict[str, Any]:
    """Columns of a table: time, rate, FLOPs, and their shares of what the device can do."""

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


def random_teacher(model: Model, mesh: jax.sharding.Mesh) -> Any:
    """A teacher's state of random weights on the mesh; its speed does not depend on them."""
    state = model.init_frozen()[1]
    return jax.device_put(state, sharding.fsdp_sharding(state, mesh))
