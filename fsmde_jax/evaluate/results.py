"""Figures of an evaluation: merged from sums, with intervals over scenes, as tables and JSON.

What arrives is kept as sums by scene and camera, so batches may come in any size and order, and
memory does not grow with the number of samples.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from fsmde_jax import files
from fsmde_jax.errors import UserError, differences
from fsmde_jax.evaluate import cross_view, metrics
from fsmde_jax.evaluate.protocols import Protocol

REPLICATES = 2000
MIN_SCENES = 2
FILE = "results.json"
_ALL = len(metrics.RANGES_M)  # the place of all distances together, after the ranges


class Groups:
    """Holds what arrives of each group of samples until all of it is there."""

    def __init__(self, group_of: Int[np.ndarray, "s"]):
        self.group_of = group_of
        self._sizes = np.bincount(group_of)
        self._waiting: dict[int, dict[int, Any]] = {}

    def add(self, index: int, item: Any) -> dict[int, Any] | None:
        """The items of a sample's group by sample, in order, once this one completes it."""
        group = int(self.group_of[index])
        waiting = self._waiting.setdefault(group, {})
        waiting[index] = item
        if len(waiting) < self._sizes[group]:
            return None
        return dict(sorted(self._waiting.pop(group).items()))


@dataclasses.dataclass
class Scores:
    """Sums of figures and their numbers by scene, camera and range of depth.

    Cameras are followed by a place for `protocol.average` "pools"; ranges by all distances.
    """

    cameras: tuple[str, ...]
    sums: Float[np.ndarray, "s k d 7"]
    counts: Float[np.ndarray, "s k d"]
    cross_sums: Float[np.ndarray, "s 2"]
    cross_counts: Float[np.ndarray, "s 2"]
    average: str

    @classmethod
    def empty(cls, cameras: tuple[str, ...], num_scenes: int, protocol: Protocol) -> "Scores":
        """Nothing seen yet."""
        shape = (num_scenes, len(cameras) + 1, _ALL + 1)
        cross = (num_scenes, len(cross_view.NAMES))
        return cls(
            cameras,
            np.zeros((*shape, len(metrics.NAMES))),
            np.zeros(shape),
            np.zeros(cross),
            np.zeros(cross),
            protocol.average,
        )

    def add(
        self, scene: int, sums: Float[np.ndarray, "n r 7"], counts: Float[np.ndarray, "n r"]
    ) -> None:
        """Adds a sample's (or pool's) images: sums of errors over their points, and points."""
        sums = np.concatenate([sums, sums.sum(axis=1, keepdims=True)], axis=1)
        counts = np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)
        seen, n = counts > 0, len(self.cameras)
        values = np.where(seen[..., None], metrics.figures(sums, counts), 0.0)
        self.sums[scene, :n] += values
        self.counts[scene, :n] += seen
        self.sums[scene, n] += values.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)[..., None]
        self.counts[scene, n] += seen.any(axis=0)

    def add_cross_view(self, scene: int, values: Float[np.ndarray, "2"]) -> None:
        """Adds a sample's `cross_view.NAMES`; NaN is left out."""
        seen = ~np.isnan(values)
        self.cross_sums[scene] += np.where(seen, values, 0.0)
        self.cross_counts[scene] += seen

    def compute(self, scenes: Sequence[str]) -> dict[str, Any]:
        """All figures as plain data; what saw no point is left out.

        `mean`, `interval` (95 %), `cameras`, `ranges` (of the mean), `scenes`, `cross_view` with
        its `cross_view_interval`, and `images`: per camera, how many had points. A scene's
        `cameras` are each camera's mean there and its number of images (or pools), enough to
        average anew.
        """
        present = [i for i in range(len(self.cameras)) if self.counts[:, i, _ALL].any()]
        if not present:
            raise UserError("no image had a valid LiDAR pixel, so there is nothing to average")
        used = np.flatnonzero(self.counts[:, -1, _ALL] > 0)
        sums, counts = self.sums[used], self.counts[used]
        replicates = resample(len(used)) if len(used) >= MIN_SCENES else None

        def interval(totals, numbers, average):
            if replicates is None:
                return None
            weighted = lambda array: np.tensordot(replicates, array, 1)  # noqa: E731
            return expanded_interval(average(weighted(totals), weighted(numbers)), len(used))

        mean = headline(sums.sum(axis=0), counts.sum(axis=0), self.average)
        total, number = sums.sum(axis=0), counts.sum(axis=0)
        overall, overall_counts = sums[:, :, _ALL:], counts[:, :, _ALL:]
        bounds = interval(
            overall, overall_counts, lambda s, c: headline(s, c, self.average)[..., 0, :]
        )
        crossed = self.cross_counts.sum(axis=0) > 0
        result = {
            "mean": _named(mean[_ALL]),
            "interval": _bounds(bounds, metrics.NAMES),
            "cameras": {self.cameras[i]: _named(total[i, _ALL] / number[i, _ALL]) for i in present},
            "ranges": {
                range_name(r): _named(mean[r]) for r in range(_ALL) if not np.isnan(mean[r, 0])
            },
            "scenes": {},
            "images": {self.cameras[i]: int(number[i, _ALL]) for i in present},
        }
        for scene in used:
            of_scene = headline(self.sums[scene], self.counts[scene], self.average)[_ALL]
            in_scene = [i for i in present if self.counts[scene, i, _ALL] > 0]
            result["scenes"][scenes[scene]] = {
                "mean": _named(of_scene),
                "cameras": {
                    self.cameras[i]: {
                        **_named(self.sums[scene, i, _ALL] / self.counts[scene, i, _ALL]),
                        "images": int(self.counts[scene, i, _ALL]),
                    }
                    for i in in_scene
                },
                "pools": {
                    **_named(self.sums[scene, -1, _ALL] / self.counts[scene, -1, _ALL]),
                    "images": int(self.counts[scene, -1, _ALL]),
                },
            }
            if (self.cross_counts[scene] > 0).all():
                value = self.cross_sums[scene] / self.cross_counts[scene]
                result["scenes"][scenes[scene]] |= {
                    "cross_view": _named(value, cross_view.NAMES),
                    "cross_view_samples": _named(self.cross_counts[scene], cross_view.NAMES),
                }
        if crossed.all():
            ratio = lambda s, c: s / np.maximum(c, 1)  # noqa: E731
            value = ratio(self.cross_sums.sum(axis=0), self.cross_counts.sum(axis=0))
            result["cross_view"] = _named(value, cross_view.NAMES)
            bounds = interval(self.cross_sums[used], self.cross_counts[used], ratio)
            result["cross_view_interval"] = _bounds(bounds, cross_view.NAMES)
        return result


def headline(
    sums: Float[np.ndarray, "*s k d 7"], counts: Float[np.ndarray, "*s k d"], average: str
) -> Float[np.ndarray, "*s d 7"]:
    """The one row of figures of `Scores` by a protocol's `average`; NaN without points."""
    sums, counts = np.moveaxis(sums, -3, 0), np.moveaxis(counts, -2, 0)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        if average == "pools":
            return sums[-1] / counts[-1]
        if average == "images":
            return sums[:-1].sum(axis=0) / counts[:-1].sum(axis=0)
        seen = counts[:-1] > 0
        means = np.where(seen, sums[:-1] / np.where(seen, counts[:-1], 1), 0.0)
        return means.sum(axis=0) / seen.sum(axis=0)


# Intervals


@functools.cache
def resample(num_scenes: int) -> Float[np.ndarray, "b s"]:
    """How often each scene is drawn in each bootstrap replicate; always the same draws."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(num_scenes, np.full(num_scenes, 1 / num_scenes), REPLICATES)
    return drawn.astype(np.float64)


def expanded_interval(
    replicates: Float[np.ndarray, "b *m"], num_scenes: int
) -> Float[np.ndarray, "2 *m"]:
    """The 95 % interval of bootstrap replicates over scenes: expanded percentiles.

    Plain percentiles are too narrow for few scenes (they cover 83 % of the time for 5, 91 % for
    15); theirs are widened to Student's t and by sqrt(s / (s - 1)) (Hesterberg, "What Teachers
    Should Know About the Bootstrap", arXiv 1411.5279, section 5.2).
    """
    t = scipy.stats.t.ppf(0.025, num_scenes - 1)
    tail = scipy.stats.norm.cdf(np.sqrt(num_scenes / (num_scenes - 1)) * t)
    return np.quantile(replicates, [tail, 1 - tail], axis=0)


# Files and comparison


def write(folder: pathlib.Path, about: dict[str, Any], methods: dict[str, dict]) -> None:
    """results.json for programs and results.md for people, each whole or not at all."""
    files.write_json(folder / FILE, {"about": about, "methods": methods})
    files.write_text(folder / "results.md", describe(about, methods) + "\n")


def refuse_foreign(folder: pathlib.Path, measured: str | None) -> None:
    """Raises `UserError` where `folder` holds something else than a report of the same thing.

    Args:
      measured: of which run or predictions, as `about` has it (a report of before does not say);
        None for any, in a folder of the run's own.
    """
    is_report = lambda found: found["about"]["settings"] and found["methods"]  # noqa: E731
    files.refuse_foreign(folder, FILE, is_report)
    if measured and (folder / FILE).is_file():
        found = read(folder)["about"].get("measured", measured)
        if found != measured:
            raise UserError(
                f"{folder} holds the report of {found!r}, and this is one of {measured!r}: choose "
                "another --out"
            )


def read(path: pathlib.Path) -> dict[str, Any]:
    """A results.json, or the one in a run's or report's folder."""
    candidates = [path, path / "results.json", path / "report" / "results.json"]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise UserError(f"{path}: there is no results.json; `fsmde_jax.evaluate` writes one")
    try:
        content = json.loads(found.read_text())
        methods = list(content["methods"].values())
        if not methods or any(
            not {"mean", "scenes", "images"} <= found.keys() for found in methods
        ):
            raise ValueError("it has no figures")
        content["about"]["settings"] = _with_all_settings(content["about"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{found} is no results file of this version ({error!r})") from error
    return content


def _with_all_settings(about: dict[str, Any]) -> dict[str, Any]:
    """The settings of a result, those of before there were so many completed.

    What was called "surrounddepth" then is "ssdepth": nothing was mirrored, unless
    `flip_average` asked for it, without ramps.
    """
    settings, text = about["settings"], about.get("text", "")
    if "mirroring" in settings:
        return settings
    name, masks = settings.get("protocol"), settings.get("masks", "")
    lidar_rule = "nuscenes-devkit" if settings.get("dataset") == "nuscenes" else "dgp"
    limits = re.search(r", ([\d.e+-]+) to [\d.e+-]+ m,", text)
    low_m = 0.0 if name in ("vfdepth", "packnet") else 0.1
    return settings | {
        "protocol": "ssdepth" if name == "surrounddepth" else name,
        "lidar_rule": "none" if settings.get("truth") == "dense" else lidar_rule,
        "mirroring": "mean" if "averaged with the mirror image" in text else "none",
        "min_depth_m": float(limits[1]) if limits else low_m,
        "mask_rule": "none" if masks in ("", "estimate") else "own size, above 127",
        "short_batch": "counted" if name == "vfdepth" else "none",
    }


def average_seeds(contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result whose figures are the means of several seeds' scene by scene.

    Of the first method of each, as `read` gives them; they must have the same images. Intervals
    are left out: those of the parts say nothing of the mean.
    """
    methods = [next(iter(content["methods"].values())) for content in contents]
    for content in contents[1:]:
        _check_same(contents[0], content)
    names = ("mean", "cameras", "ranges", "images", "scenes", "cross_view")
    parts = [{name: method[name] for name in names if name in method} for method in methods]
    return {"about": contents[0]["about"], "methods": {"average": _mean(parts)}}


def _mean(trees: list[Any]) -> Any:
    """The mean of numbers in dicts, of the keys that all have."""
    if not isinstance(trees[0], dict):
        return float(np.mean(trees))
    shared = [key for key in trees[0] if all(key in tree for tree in trees)]
    return {key: _mean([tree[key] for tree in trees]) for key in shared}


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Second minus first, paired by scene, with 95 % intervals: `{metric: {...}}`.

    Each has `first`, `second`, `difference`, `interval`, `percent` (of the first). Both are results
    as `read` gives them, of whose methods the first is taken; a difference in protocol, data or
    coverage is refused.
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
        # That of the first method is in `settings`, too.
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
    """Sums and counts as in `Scores`, of all distances, from a method's plain data."""
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


# Tables


def describe(about: dict[str, Any], methods: dict[str, dict], scenes: bool = True) -> str:
    """What was measured and how, then the tables, in Markdown; `scenes`: also a row a scene."""
    intervals = "one scene, so no intervals"
    if about["scenes"] >= MIN_SCENES:
        intervals = f"± is half the 95 % interval over {about['scenes']} scenes"
    parts = [
        f"{about['text']}; {intervals}.",
        mean_table(methods),
    ]  # fmt: skip
    if any("cross_view" in result for result in methods.values()):
        parts.append(cross_view_table(methods))
    first = next(iter(methods))
    result = methods[first]
    parts += [
        f"Of {first}, by camera, by true depth{' and by scene' if scenes else ''}:",
        _table("camera", result["cameras"]),
        _table("true depth", result["ranges"]),
    ]
    if scenes:
        rows = {name: scene["mean"] for name, scene in result["scenes"].items()}
        parts.append(_table("scene", rows))
    return "\n\n".join(parts)


def mean_table(methods: dict[str, dict]) -> str:
    """Markdown: a row a method, with half the width of its interval."""
    rows = {
        name: {
            metric: _with_margin(value, result["interval"], metric)
            for metric, value in result["mean"].items()
        }
        for name, result in methods.items()
    }
    return _table("method", rows)


def cross_view_table(methods: dict[str, dict]) -> str:
    """Markdown: how far a rig's cameras are apart, a row a method."""
    rows = {
        name: {
            metric: _with_margin(value, result["cross_view_interval"], metric)
            for metric, value in result["cross_view"].items()
        }
        for name, result in methods.items()
        if "cross_view" in result
    }
    return _table("method", rows)


def comparison_table(compared: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    """Markdown: a row a metric."""
    head = ["metric", *names, "difference", "95 % interval over scenes", "%"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for metric, row in compared.items():
        interval = row["interval"]
        cells = [
            metric,
            f"{row['first']:.4f}",
            f"{row['second']:.4f}",
            f"{row['difference']:+.4f}",
            "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}",
            "-" if row["percent"] is None else f"{row['percent']:+.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [f"| {title} | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for name, row in rows.items():
        cells = [v if isinstance(v, str) else f"{v:.3f}" for v in row.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_margin(value: float, intervals: dict[str, list[float]] | None, metric: str) -> str:
    if intervals is None:
        return f"{value:.3f}"
    low, high = intervals[metric]
    return f"{value:.3f} ± {(high - low) / 2:.3f}"


def range_name(place: int) -> str:
    """ "20-40 m" and the like; the last range is open."""
    low = metrics.RANGES_M[place]
    if place + 1 == len(metrics.RANGES_M):
        return f"from {low:g} m"
    return f"{low:g}-{metrics.RANGES_M[place + 1]:g} m"


def _named(values: np.ndarray, names: Sequence[str] = metrics.NAMES) -> dict[str, float]:
    return dict(zip(names, (float(value) for value in values), strict=True))


def _bounds(bounds: np.ndarray | None, names: Sequence[str]) -> dict[str, list[float]] | None:
    if bounds is None:
        return None
    return {name: [float(bounds[0][m]), float(bounds[1][m])] for m, name in enumerate(names)}
