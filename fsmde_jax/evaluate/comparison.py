"""Compares two results, paired by scene; averages the results of several seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fsmde_jax.errors import UserError, differences
from fsmde_jax.evaluate import cross_view, metrics
from fsmde_jax.evaluate.averages import headline
from fsmde_jax.evaluate.intervals import MIN_SCENES, expanded_interval, resample


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The second result minus the first, paired by scene.

    Args:
      first, second: as `results.read` gives them; the first method of each is compared.

    Returns by metric `first`, `second`, `difference`, `interval` (95 %; None for one scene) and
    `percent` (the difference as a share of the first). Raises `UserError` where the two differ in
    settings or images.
    """
    _check_same(first, second)
    one, two = (next(iter(content["methods"].values())) for content in (first, second))
    scenes, cameras = list(one["scenes"]), list(one["cameras"])
    average = first["about"]["settings"]["average"]
    arrays = [_by_scene(result, scenes, cameras) for result in (one, two)]
    totals = [headline(s.sum(axis=0), c.sum(axis=0), average)[0] for s, c in arrays]
    bounds = None
    if len(scenes) >= MIN_SCENES:
        drawn = resample(len(scenes))
        rows = [
            headline(np.tensordot(drawn, s, 1), np.tensordot(drawn, c, 1), average)[..., 0, :]
            for s, c in arrays
        ]
        bounds = expanded_interval(rows[1] - rows[0], len(scenes))
    found = _rows(metrics.NAMES, totals, bounds)
    if "cross_view" in one and "cross_view" in two:
        found |= _compare_cross_view(one, two, scenes)
    return found


def _check_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    settings = []
    for content in (first, second):
        method = next(iter(content["methods"].values()))
        # The method compared need not be the file's first, whose scaling `settings` has.
        own = {"scaling": method["scaling"]} if "scaling" in method else {}
        settings.append(content["about"]["settings"] | own)
    what = differences(*settings, "in the first")
    if what:
        raise UserError(
            "these results cannot be compared: " + what.replace("in the config", "in the second")
        )
    one, two = (next(iter(content["methods"].values())) for content in (first, second))
    if one["images"] != two["images"] or list(one["scenes"]) != list(two["scenes"]):
        raise UserError(
            "these results cover different images: "
            f"{sum(one['images'].values())} in {len(one['scenes'])} scenes and "
            f"{sum(two['images'].values())} in {len(two['scenes'])}"
        )


def _compare_cross_view(one: dict, two: dict, scenes: list[str]) -> dict[str, dict[str, Any]]:
    shared = [s for s in scenes if all("cross_view" in r["scenes"][s] for r in (one, two))]

    def column(result: dict, field: str) -> Float[np.ndarray, "s 2"]:
        rows = [result["scenes"][scene][field] for scene in shared]
        return np.array([[row[name] for name in cross_view.NAMES] for row in rows])

    drawn = resample(len(shared)) if len(shared) >= MIN_SCENES else None
    totals, replicates = [], []
    for result in (one, two):
        counts = column(result, "cross_view_samples")
        sums = column(result, "cross_view") * counts
        totals.append(sums.sum(axis=0) / counts.sum(axis=0))
        if drawn is not None:
            replicates.append(drawn @ sums / (drawn @ counts))
    bounds = None
    if drawn is not None:
        bounds = expanded_interval(replicates[1] - replicates[0], len(shared))
    return _rows(cross_view.NAMES, totals, bounds)


def _rows(names: Sequence[str], totals: Sequence[np.ndarray], bounds: np.ndarray | None) -> dict:
    return {
        name: {
            "first": float(totals[0][m]),
            "second": float(totals[1][m]),
            "difference": float(totals[1][m] - totals[0][m]),
            "interval": None if bounds is None else [float(bounds[0][m]), float(bounds[1][m])],
            "percent": float(100 * (totals[1][m] / totals[0][m] - 1)) if totals[0][m] else None,
        }
        for m, name in enumerate(names)
    }


def _by_scene(
    result: dict[str, Any], scenes: list[str], cameras: list[str]
) -> tuple[Float[np.ndarray, "s k 1 7"], Float[np.ndarray, "s k 1"]]:
    """Sums and counts as in `averages.Scores`, over all distances, from a method's figures."""
    sums = np.zeros((len(scenes), len(cameras) + 1, 1, len(metrics.NAMES)))
    counts = np.zeros((len(scenes), len(cameras) + 1, 1))
    for s, scene in enumerate(scenes):
        rows = {**result["scenes"][scene]["cameras"], "pools": result["scenes"][scene]["pools"]}
        for n, camera in enumerate([*cameras, "pools"]):
            if camera in rows:
                counts[s, n] = rows[camera]["images"]
                means = np.array([rows[camera][name] for name in metrics.NAMES])
                sums[s, n] = means * counts[s, n]
    return sums, counts


def average_seeds(contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result: the mean of several seeds' results, scene by scene.

    It has no intervals: those of the single seeds say nothing about their mean.

    Args:
      contents: as `results.read` gives them; the first method of each is taken.

    Raises `UserError` where they differ in settings or images.
    """
    methods = [next(iter(content["methods"].values())) for content in contents]
    for content in contents[1:]:
        _check_same(contents[0], content)
    names = ("mean", "cameras", "ranges", "images", "scenes", "cross_view")
    parts = [{name: method[name] for name in names if name in method} for method in methods]
    return {"about": contents[0]["about"], "methods": {"average": _mean(parts)}}


def _mean(trees: list[Any]) -> Any:
    """The mean of the numbers in nested dicts; keys that some of them lack are left out."""
    if not isinstance(trees[0], dict):
        return float(np.mean(trees))
    shared = [key for key in trees[0] if all(key in tree for tree in trees)]
    return {key: _mean([tree[key] for tree in trees]) for key in shared}
