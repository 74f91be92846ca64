"""Measures what a student's confidence is worth: does it know where depth is wrong?

    python -m fsmde_jax.evaluate.sparsification --checkpoint=runs/demo --out=DIR

Leaves out the least confident of the validation split's LiDAR pixels, more and more
of them, and measures AbsRel of the rest: a curve that falls says that it does. The
oracle leaves out the pixels of the largest error. The area between the two, as a
share of the error of all pixels, is AUSE (Ilg et al., arXiv 1802.07062): 0 is the
oracle; confidence that says nothing has the oracle's distance to the level line.
Writes sparsification.md, .json and .png.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Float
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

from fsmde_jax import cli, files
from fsmde_jax import config as config_lib
from fsmde_jax.data import pipeline
from fsmde_jax.losses.depth import sample_at_lidar
from fsmde_jax.run import sharding
from fsmde_jax.run.load import load_student
from fsmde_jax.tasks import student_inputs

FILE = "sparsification.json"
LEFT_OUT = np.linspace(0.0, 0.95, 20)  # shares of the pixels
ROWS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)  # of the table


def remaining_error(
    error: Float[np.ndarray, "p"], keep_first: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "20"]:
    """Mean error of what remains when shares `LEFT_OUT` of the pixels are left out.

    Args:
      keep_first: the larger, the longer a pixel stays.
    """
    order = np.argsort(-keep_first, kind="stable")
    means = np.cumsum(error[order]) / np.arange(1, len(error) + 1)
    kept = np.maximum(np.round((1 - LEFT_OUT) * len(error)).astype(int), 1)
    return means[kept - 1]


def curves(
    error: Float[np.ndarray, "p"], confidence: Float[np.ndarray, "p"]
) -> dict[str, Float[np.ndarray, "20"]]:
    """Mean error left, by confidence, by the error itself, and by chance."""
    return {
        "confidence": remaining_error(error, confidence),
        "oracle": remaining_error(error, -error),
        "chance": np.full(len(LEFT_OUT), error.mean()),
    }


def ause(found: dict[str, Float[np.ndarray, "20"]], curve: str = "confidence") -> float:
    """Area between a curve and the oracle, over the error of all pixels."""
    gap = (found[curve] - found["oracle"]) / found["oracle"][0]
    return float(np.trapezoid(gap, LEFT_OUT))


def measure(
    config: ConfigDict, workdir: pathlib.Path
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """(AbsRel, confidence) at all LiDAR pixels of the run's validation split, metric."""
    student, mesh = load_student(config, workdir), sharding.make_mesh(config.mesh)

    @jax.jit
    def at_lidar(batch: dict[str, Any]) -> tuple[Any, Any]:
        output, size = student(*student_inputs(batch)), batch["image"].shape[2:4]
        depth_m, confidence = (
            sample_at_lidar(values, batch["lidar_xy"], size)
            for values in (output.depth_m, output.confidence)
        )
        return jax.numpy.abs(depth_m / batch["lidar_depth_m"] - 1), confidence

    errors, confidences = [], []
    batches = pipeline.eval_batches(
        config.data, config.data.eval_split, sharding.batch_sharding(mesh)
    )
    for batch in tqdm(batches, unit="batch"):
        error, confidence = map(np.asarray, at_lidar(batch))
        truth_m = np.asarray(batch["lidar_depth_m"])
        valid = (truth_m > config.data.min_depth_m) & (truth_m < config.data.max_depth_m)
        errors.append(error[valid])
        confidences.append(confidence[valid])
    return np.concatenate(errors).astype(float), np.concatenate(confidences)


def write(found: dict[str, np.ndarray], title: str, run: str, out: pathlib.Path) -> str:
    """The report's files; returns the table. Raises as `refuse_foreign`."""
    refuse_foreign(out, run)
    lines = ["| left out | by confidence | by the true error (oracle) |", "| --- | --- | --- |"]
    for share in ROWS:
        at = [np.interp(share, LEFT_OUT, found[name]) for name in ("confidence", "oracle")]
        lines.append(f"| {share:.0%} | {at[0]:.3f} | {at[1]:.3f} |")
    area, chance = ause(found), ause(found, "chance")
    text = (
        f"# Sparsification\n\n{title} AbsRel of the remaining LiDAR pixels, metric.\n\n"
        + "\n".join(lines)
        + f"\n\nAUSE {area:.3f}; confidence that says nothing: {chance:.3f}.\n"
    )
    values = {name: curve.tolist() for name, curve in found.items()}
    values |= {"run": run, "left_out": LEFT_OUT.tolist(), "ause": area, "ause_chance": chance}
    files.write_json(out / FILE, values)
    files.write_text(out / "sparsification.md", text)
    _draw(found, out / "sparsification.png")
    return text


def refuse_foreign(out: pathlib.Path, run: str) -> None:
    """Raises `UserError` where `out` holds something else than such a report of the same run."""

    def is_ours(found: dict[str, Any]) -> bool:
        # One of before does not say of which run it is.
        return {"left_out", "ause"} <= found.keys() and found.get("run", run) == run

    files.refuse_foreign(out, FILE, is_ours)


def _draw(found: dict[str, np.ndarray], path: pathlib.Path) -> None:
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, style in (("confidence", "-"), ("oracle", "--"), ("chance", ":")):
        axis.plot(100 * LEFT_OUT, found[name], style, color="black", label=name)
    axis.set(xlabel="pixels left out (%)", ylabel="AbsRel of the rest", ylim=(0, None))
    axis.legend()
    with files.replacing(path) as partial:
        figure.savefig(partial, dpi=110)


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "The run's folder.", required=True)
    flags.DEFINE_string("out", None, "Folder of the report; replaces one.", required=True)


def main(_) -> None:
    """Measures and prints the table."""
    cli.set_up()
    workdir, out = pathlib.Path(flags.FLAGS.checkpoint), pathlib.Path(flags.FLAGS.out)
    config = config_lib.load_config(workdir)
    run = f"{config.name} in {workdir.resolve().name}"
    refuse_foreign(out, run)
    error, confidence = measure(config, workdir)
    title = f"`{config.name}`: {len(error)} pixels of {config.data.eval_split!r}."
    with files.owned(out, f"writing the report {out}"):
        print(write(curves(error, confidence), title, run, out))


if __name__ == "__main__":
    cli.start(__name__)
