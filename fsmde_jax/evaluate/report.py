"""The report of an evaluation: its settings, its sentence, its folder, its pictures."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fsmde_jax import files
from fsmde_jax.data import pipeline
from fsmde_jax.data.masks import ESTIMATE
from fsmde_jax.evaluate import protocols, results, tables
from fsmde_jax.evaluate.scoring import limits_m, whole_pools
from fsmde_jax.pictures import ring

_SCALING_TEXT = {
    "metric": "in metres as predicted",
    "median_image": "scaled by each image's median",
    "median_camera": "scaled by each camera's median (of a scene or pool)",
    "affine": "scale and shift of inverse depth fitted to each image",
}


@contextlib.contextmanager
def owned(out: pathlib.Path, measured: str | None) -> Iterator[None]:
    """Within its `with` no other process writes into the report's folder `out`.

    Raises as `results.refuse_foreign`, and where another process writes there.
    """
    results.refuse_foreign(out, measured)
    if jax.process_index() > 0:
        yield
        return
    with files.owned(out, f"writing the report {out}"):
        results.refuse_foreign(out, measured)  # another process may just have finished one
        yield


def write(
    config: ConfigDict,
    methods: dict[str, dict],
    measured: str,
    drawn: dict[int, dict[str, np.ndarray]],
    out: pathlib.Path,
) -> None:
    """Writes the results and a picture of each drawn sample into `out`.

    Args:
      methods: figures by method.
      measured: names the run or predictions; a later report into `out` must have the same name.
      drawn: samples by index, as `measure.evaluate_split` gives them.
    """
    source, cameras = pipeline.open_data(config.data, config.data.eval_split)
    results.write(out, about(config, methods) | {"measured": measured}, methods)
    for index, sample in drawn.items():
        name = source.read(index, pictures=False)["sample_id"].replace("/", "_")
        ring.draw_ring(
            sample,
            {"prediction": sample["depth_m"]},
            cameras,
            config.evaluation.picture_max_depth_m,
            out / f"{name}.png",
        )


def evenly_spaced(count: int, samples: int) -> list[int]:
    """Indices of at most `count` of so many samples, from the first to the last."""
    return np.linspace(0, samples - 1, min(count, samples)).round().astype(int).tolist()


def about(config: ConfigDict, methods: dict[str, dict]) -> dict[str, Any]:
    """What was measured and how.

    Args:
      methods: figures by method; those of the first say which images were covered.

    Returns `settings`, which two results must share to be compared, `text` (the same in words), the
    number of `scenes` and the `device`.
    """
    evaluation = config.evaluation
    protocol = protocols.PROTOCOLS[evaluation.protocol]
    first = next(iter(methods.values()))
    dense = config.task == "foundation"
    low, high = limits_m(config)
    settings = {
        "dataset": config.data.dataset,
        "split": config.data.eval_split,
        "protocol": protocol.name,
        "average": protocol.average,
        "truth": "dense" if dense else protocol.truth,
        "lidar_rule": _lidar_rule(config, protocol),
        "scaling": first["scaling"],
        "mirroring": "ramps" if protocols.mirrors(evaluation) else "none",
        "min_depth_m": low,
        "max_depth_m": high,
        "masks": evaluation.masks,
        "mask_rule": _mask_rule(evaluation, protocol),
        "short_batch": "none" if protocol.pool == 1 else "left out",
    }
    truth = {
        "dense": "dense truth at the size of the student's image",
        "native": "LiDAR at native pixels",
        "prepared": "LiDAR at pixels of the prepared size",
    }[settings["truth"]]
    scalings = "; ".join(f"{name} {_SCALING_TEXT[m['scaling']]}" for name, m in methods.items())
    covered = first["covered"]
    masks = f"own car left out by masks ({evaluation.masks})"
    if not evaluation.masks:
        masks = "no masks" + (", although the protocol has them" if protocol.masks_own_car else "")
    text = (
        f"{config.name} on {config.data.dataset} {config.data.eval_split}, protocol "
        f"{protocol.name}: {truth}, {low:g} to {high:g} m, {masks}"
        f"{', mirrored (post-processing by ramps)' if protocols.mirrors(evaluation) else ''}"
        f"{_of_whole_batches(config, protocol)}; {scalings}. "
        f"Covers {covered['images']} of {covered['of']} images"
    )
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return {
        "settings": settings,
        "scenes": len(first["scenes"]),
        "device": device,
        "text": text,
    }


def _lidar_rule(config: ConfigDict, protocol: protocols.Protocol) -> str:
    """How points became pixels; nuScenes alone is prepared by the rules of several public codes."""
    if config.task == "foundation":
        return "none"
    return protocol.lidar_rule if config.data.dataset == "nuscenes" else "dgp"


def _mask_rule(evaluation: ConfigDict, protocol: protocols.Protocol) -> str:
    if evaluation.masks in ("", ESTIMATE):
        return "none"
    return "network size, above 0" if protocol.masks_own_car else "own size, above 127"


def _of_whole_batches(config: ConfigDict, protocol: protocols.Protocol) -> str:
    if protocol.pool == 1:
        return ""
    source, _ = pipeline.open_data(config.data, config.data.eval_split)
    counted = whole_pools(protocol, len(source))
    return f", {counted} of {len(source)} samples (whole batches of {protocol.pool})"


def summary(config: ConfigDict, methods: dict[str, dict]) -> str:
    """For the terminal: what was measured, and the tables without a row a scene."""
    return tables.describe(about(config, methods), methods, scenes=False)
