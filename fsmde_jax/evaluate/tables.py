"""Tables of results and of comparisons, in Markdown."""

from collections.abc import Sequence
from typing import Any

from fsmde_jax import markdown
from fsmde_jax.evaluate.intervals import MIN_SCENES


def describe(about: dict[str, Any], methods: dict[str, dict], scenes: bool = True) -> str:
    """A sentence on what was measured and how, then the tables.

    Args:
      about: as `report.about` makes it.
      methods: figures by method, as `averages.Scores.compute` makes them.
      scenes: whether there is a table with a row a scene.
    """
    intervals = "one scene, so no intervals"
    if about["scenes"] >= MIN_SCENES:
        intervals = f"± is half the 95 % interval over {about['scenes']} scenes"
    parts = [f"{about['text']}; {intervals}.", mean_table(methods)]
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
    """The metrics, a row a method, each with half the width of its interval."""
    return _table_with_margins(methods, "mean", "interval")


def cross_view_table(methods: dict[str, dict]) -> str:
    """How far a rig's cameras disagree, a row a method that has these figures."""
    crossed = {name: result for name, result in methods.items() if "cross_view" in result}
    return _table_with_margins(crossed, "cross_view", "cross_view_interval")


def comparison_table(compared: dict[str, dict[str, Any]], names: Sequence[str]) -> str:
    """A comparison (`comparison.compare`) of two results of these `names`, a row a metric."""
    rows = [
        [
            metric,
            f"{row['first']:.4f}",
            f"{row['second']:.4f}",
            f"{row['difference']:+.4f}",
            interval_text(row["interval"]),
            "-" if row["percent"] is None else f"{row['percent']:+.1f}",
        ]
        for metric, row in compared.items()
    ]
    head = ["metric", *names, "difference", "95 % interval over scenes", "%"]
    return markdown.table(head, rows)


def interval_text(interval: Sequence[float] | None) -> str:
    """The interval of a difference as a cell; a dash where there is none."""
    return "-" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def _table_with_margins(methods: dict[str, dict], figures: str, intervals: str) -> str:
    rows = {
        name: {
            metric: f"{value:.3f}{_margin(result[intervals], metric)}"
            for metric, value in result[figures].items()
        }
        for name, result in methods.items()
    }
    return _table("method", rows)


def _margin(intervals: dict[str, list[float]] | None, metric: str) -> str:
    if intervals is None:
        return ""
    low, high = intervals[metric]
    return f" ± {(high - low) / 2:.3f}"


def _table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    head = [title, *next(iter(rows.values()))]
    cells = [
        [name, *(v if isinstance(v, str) else f"{v:.3f}" for v in row.values())]
        for name, row in rows.items()
    ]
    return markdown.table(head, cells)
