"""A study's report: tables, learning curves, pictures, and the commands that made them."""

import json
import pathlib
import shlex
import statistics
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from fsmde_jax import config as config_lib
from fsmde_jax import files, markdown
from fsmde_jax.data import pipeline
from fsmde_jax.data.batch import Batch
from fsmde_jax.evaluate import comparison, results, tables
from fsmde_jax.evaluate.report import evenly_spaced
from fsmde_jax.losses.depth import SILOG_FLOOR
from fsmde_jax.pictures import ring
from fsmde_jax.run import checkpoints, sharding
from fsmde_jax.run.load import load_student
from fsmde_jax.study.plan import TEACHER, Run, Study

FILE = "study.json"
HEADLINE = "abs_rel"
# Columns of the table: a figure, and its title.
COLUMNS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse_m": "RMSE (m)",
    "delta1": "δ < 1.25",
    "scale_spread": "scale spread",
    "overlap_disagreement": "overlap disagreement",
}


def write(study: Study) -> list[str]:
    """Writes `report/` in the study's folder from the finished runs; returns what is missing.

    Raises `UserError` where that folder holds other files.
    """
    folder = study.workdir / "report"
    refuse_foreign(folder)
    tested = {
        arm: [run for run in study.seeds(arm) or [] if run.tested] for arm in study.config.arms
    }
    contents = {
        arm: [results.read(run.test) for run in runs] for arm, runs in tested.items() if runs
    }
    missing = study.missing()
    report = {
        "name": study.config.name,
        "base": study.config.base,
        "test": study.config.test,
        "baseline": study.config.baseline,
        "devices": sorted({c["about"]["device"] for all_ in contents.values() for c in all_}),
        "settings": [c["about"]["settings"] for all_ in contents.values() for c in all_][:1],
        "missing": missing,
        "arms": summarise(contents, study.config.baseline),
        "comparisons": [
            {"first": first, "second": second, "figures": compare(contents, first, second)}
            for first, second in study.config.comparisons
            if first in contents and second in contents
        ],
        "tuning": _tuning(study),
        "commands": _commands(study, tested),
    }
    for arm, row in report["arms"].items():
        row["seeds"] = [
            {"seed": run.overrides["seed"]} | figures
            for run, figures in zip(tested[arm], row["seeds"], strict=True)
        ]
    files.write_json(folder / FILE, report)
    pictures = []
    if contents:
        _draw_curves(tested, folder / "curves.png")
        # Runs that were measured on another machine may have come without their checkpoints.
        kept = {
            arm: [run for run in runs if checkpoints.latest_step(run.folder) is not None]
            for arm, runs in tested.items()
        }
        if shown := {arm: runs[0] for arm, runs in kept.items() if runs}:
            pictures = _draw_samples(study, shown)
    files.write_text(folder / "study.md", _describe(report, pictures) + "\n")
    return missing


def refuse_foreign(folder: pathlib.Path) -> None:
    """Raises `UserError` where the report's folder holds other files."""
    files.refuse_foreign(folder, FILE, lambda found: {"arms", "baseline"} <= found.keys())


# Figures


def summarise(contents: dict[str, list[dict[str, Any]]], baseline: str) -> dict[str, Any]:
    """The figures of each arm.

    Args:
      contents: by arm, each seed's results as `results.read` gives them.
      baseline: the arm that the others are compared with, if it is in `contents`.

    Returns by arm `mean` and `std` over its seeds (one seed has no std: None), the figures of its
    `seeds`, AbsRel by camera and by true depth (`where`), and its `difference` to the baseline, as
    `compare` makes it.
    """
    found = {}
    for arm, seeds in contents.items():
        rows = [_figures(content) for content in seeds]
        found[arm] = {
            "mean": {name: statistics.fmean(row[name] for row in rows) for name in rows[0]},
            "std": {
                name: statistics.stdev(row[name] for row in rows) if len(rows) > 1 else None
                for name in rows[0]
            },
            "seeds": rows,
            "where": _where(seeds),
        }
        if baseline in contents and arm != baseline:
            found[arm]["difference"] = compare(contents, baseline, arm)
    return found


def compare(
    contents: dict[str, list[dict[str, Any]]], first: str, second: str
) -> dict[str, dict[str, Any]]:
    """Compares two arms, each by its means over seeds in each scene (`comparison.compare`)."""
    return comparison.compare(*(comparison.average_seeds(contents[arm]) for arm in (first, second)))


def _where(seeds: list[dict[str, Any]]) -> dict[str, float]:
    method = comparison.average_seeds(seeds)["methods"]["average"]
    rows = method["cameras"] | method["ranges"]
    return {name: row[HEADLINE] for name, row in rows.items()}


def _figures(content: dict[str, Any]) -> dict[str, float]:
    method = next(iter(content["methods"].values()))
    return method["mean"] | method.get("cross_view", {})


def _tuning(study: Study) -> dict[str, list[dict[str, Any]]]:
    """By arm, each trial's overrides, its AbsRel on the tuning split, and whether it was taken."""
    return {
        arm: [
            {
                "overrides": trial,
                "abs_rel": None if run.diverged else study.abs_rel(run),
                "diverged": run.diverged,
                "chosen": trial is study.chosen(arm),
            }
            for run, trial in zip(study.trials(arm), trials, strict=True)
        ]
        for arm, trials in study.config.trials.items()
    }


def _commands(study: Study, tested: dict[str, list[Run]]) -> dict[str, list[str]]:
    """Of each run its training and its test; of the teacher, where all runs share one."""
    commands = {TEACHER: [study.teacher_command()]} if study.shares_teacher else {}
    for run in (run for runs in tested.values() for run in runs):
        commands[run.name] = [study.train_command(run), study.test_command(run)]
    return {name: [shlex.join(c) for c in found] for name, found in commands.items()}


# Tables


def _describe(report: dict[str, Any], pictures: list[str]) -> str:
    parts = [f"# {report['name']}"]
    if report["missing"]:
        parts.append(f"**Not there yet**: {', '.join(report['missing'])}.")
    if report["arms"]:
        about = report["settings"][0]
        parts += [
            f"Trained as {report['base']} says, measured on {report['test']} (protocol "
            f"{about['protocol']}, {about['scaling']}, to {about['max_depth_m']:g} m), on "
            f"{', '.join(report['devices'])}.",
            _arm_table(report),
            "± is the standard deviation over seeds. Differences are those of the means over "
            "seeds, paired by scene; their intervals (95 %) are over the test's scenes: what other "
            "streets would change, not what other seeds would.",
            "## Where\n\nAbsRel by camera and by true depth, mean over seeds.",
            _where_table(report["arms"]),
        ]
        for pair in report["comparisons"]:
            names = (pair["first"], pair["second"])
            parts += [
                f"## {names[1]} against {names[0]}",
                tables.comparison_table(pair["figures"], names),
            ]
        parts.append("## Learning curves\n\n![learning curves](curves.png)")
    if pictures:
        parts.append("## Examples\n\nThe first seed of each arm whose checkpoint is here.")
        parts += [f"![{name}]({name})" for name in pictures]
    if any(report["tuning"].values()):
        parts.append("## Tuning\n\nAbsRel on the tuning split; the lowest was taken.")
        parts += [_trial_table(arm, trials) for arm, trials in report["tuning"].items()]
    parts.append("## Commands")
    for name, commands in report["commands"].items():
        parts.append(f"{name}:\n\n" + "\n".join(f"    {command}" for command in commands))
    return "\n\n".join(parts)


def _arm_table(report: dict[str, Any]) -> str:
    arms = report["arms"]
    shown = [name for name in COLUMNS if all(name in row["mean"] for row in arms.values())]
    head = ["arm", "seeds", *(COLUMNS[name] for name in shown)]
    head += [f"AbsRel - {report['baseline']}'s", "95 % interval", "%"]
    rows = []
    for arm, row in arms.items():
        cells = [arm, str(len(row["seeds"]))]
        for name in shown:
            std = row["std"][name]
            cells.append(f"{row['mean'][name]:.3f}" + (f" ± {std:.3f}" if std is not None else ""))
        cells += _difference_cells(row.get("difference", {}).get(HEADLINE))
        rows.append(cells)
    return markdown.table(head, rows)


def _where_table(arms: dict[str, Any]) -> str:
    places = list(next(iter(arms.values()))["where"])
    rows = [
        [arm, *(f"{row['where'][place]:.3f}" if place in row["where"] else "-" for place in places)]
        for arm, row in arms.items()
    ]
    return markdown.table(["arm", *places], rows)


def _difference_cells(difference: dict[str, Any] | None) -> list[str]:
    if difference is None:
        return ["-", "-", "-"]
    return [
        f"{difference['difference']:+.4f}",
        tables.interval_text(difference["interval"]),
        f"{difference['percent']:+.1f}",
    ]


def _trial_table(arm: str, trials: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for trial in trials for key in trial["overrides"]))
    rows = []
    for trial in trials:
        value = "not done" if trial["abs_rel"] is None else f"{trial['abs_rel']:.4f}"
        value = "diverged" if trial["diverged"] else value
        cells = [str(trial["overrides"].get(key, "")) for key in keys]
        rows.append([*cells, value, "taken" if trial["chosen"] else ""])
    return f"{arm}:\n\n" + markdown.table([*keys, "AbsRel", ""], rows)


# Pictures


def _draw_curves(tested: dict[str, list[Run]], path: pathlib.Path) -> None:
    """Draws the training's SILog and the tuning split's AbsRel by step, a thin line a seed."""
    figure = Figure(figsize=(12, 4.5), dpi=110)
    axes = figure.subplots(1, 2)
    for number, (arm, runs) in enumerate(tested.items()):
        for i, run in enumerate(runs):
            style = {"color": f"C{number}", "linewidth": 0.8, "label": None if i else arm}
            style["linestyle"] = ("-", "--", ":")[number // 10 % 3]  # there are ten colours
            curves = _curves(run)
            axes[0].plot(*zip(*curves["train"], strict=True), **style)
            axes[1].plot(*zip(*curves["eval"], strict=True), marker=".", **style)
    axes[0].set(xlabel="step", ylabel="SILog of a batch with LiDAR", title="training")
    axes[1].set(xlabel="step", ylabel="AbsRel", title="tuning split")
    axes[0].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with files.replacing(path) as partial:
        figure.savefig(partial)


def _curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """(step, SILog) of batches with LiDAR; (step, AbsRel), the last one of the finished run."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    curves = {
        kind: [(r["step"], r[name]) for r in records if r["kind"] == kind]
        for kind, name in (("train", "silog"), ("eval", HEADLINE))
    }
    curves["train"] = [(step, loss) for step, loss in curves["train"] if loss > 1.01 * SILOG_FLOOR]
    curves["eval"].append((records[-1]["step"], _figures(results.read(run.folder))[HEADLINE]))
    return curves


def _draw_samples(study: Study, runs: dict[str, Run]) -> list[str]:
    """Draws evenly spaced samples of the test data, a row an arm; returns the files' names."""
    test = study.test
    source, cameras = pipeline.open_data(test.data, test.data.eval_split)
    indices = evenly_spaced(test.evaluation.pictures, len(source))
    on_devices = sharding.batch_sharding(sharding.make_mesh(test.mesh))
    predicts = {arm: _predictor(run) for arm, run in runs.items()}
    names = []
    for batch in pipeline.eval_batches(
        test.data, test.data.eval_split, on_devices, indices=indices
    ):
        depth_m = {arm: np.asarray(predict(batch)) for arm, predict in predicts.items()}
        host = jax.device_get(batch)
        for i, index in enumerate(host["sample_index"].tolist()):
            if index < 0:
                continue
            names.append(source[index]["sample_id"].replace("/", "_") + ".jpg")
            ring.draw_ring(
                {name: array[i] for name, array in host.items()},
                {arm: of_arm[i] for arm, of_arm in depth_m.items()},
                cameras,
                test.evaluation.picture_max_depth_m,
                study.workdir / "report" / names[-1],
            )
    return names


def _predictor(run: Run):  # -> batch -> depth_m [b n h w]
    student = load_student(config_lib.load_config(run.folder), run.folder)
    graphdef, parameters = nnx.split(student)

    @jax.jit
    def predict(parameters: Any, batch: Batch) -> Float[Array, "b n h w"]:
        inputs = (batch[name] for name in ("image", "intrinsics", "camera_mask"))
        return nnx.merge(graphdef, parameters)(*inputs).depth_m

    return lambda batch: predict(parameters, batch)
