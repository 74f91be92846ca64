"""Devices: the mesh, and which arrays are split over which of its axes."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fsmde_jax.config import ConfigError

# Smaller arrays are cheaper to copy to every device than to gather.
MIN_SHARDED_SIZE = 2**14


def make_mesh(config: ConfigDict) -> Mesh:
    """Mesh with axes `data` and `fsdp` over all devices; -1 in `config` takes what is left."""
    shape = {"data": config.data, "fsdp": config.fsdp}
    devices = jax.device_count()
    free = [name for name, size in shape.items() if size == -1]
    if len(free) == 1:
        other = shape["fsdp" if free[0] == "data" else "data"]
        shape[free[0]] = max(devices // other, 1)
    if len(free) > 1 or shape["data"] * shape["fsdp"] != devices:
        raise ConfigError(
            f"config.mesh.data={config.data} and config.mesh.fsdp={config.fsdp} do not fit the "
            f"{devices} devices: their product must be that number; one of them may be -1"
        )
    return jax.make_mesh(
        (shape["data"], shape["fsdp"]), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def fsdp_sharding(tree: Any, mesh: Mesh) -> Any:
    """For each array of `tree` a sharding of its largest divisible axis over `fsdp`."""
    size = mesh.shape["fsdp"]

    def of_array(array) -> NamedSharding:
        axes = [i for i, n in enumerate(array.shape) if n % size == 0]
        if size == 1 or array.size < MIN_SHARDED_SIZE or not axes:
            return replicated(mesh)
        spec: list[str | None] = [None] * array.ndim
        spec[max(axes, key=lambda i: array.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(of_array, tree)
