"""Measures what a student's confidence is worth: does it know where depth is wrong?

    python -m fsmde_jax.evaluate.sparsification --checkpoint=runs/demo --out=DIR

Leaves out more and more of the validation split's LiDAR pixels, the least confident
first, and measures AbsRel of the rest. If this curve falls, the confidence knows. The
oracle leaves out the pixels with the largest error first. AUSE (Ilg et al., arXiv
1802.07062) is the area between the two curves, as a share of the error of all pixels.
The oracle's is 0; a confidence that says nothing has the area between the oracle's
curve and a level line. Writes sparsification.md, .json and .png.
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

from fsmde_jax import cli, files, markdown
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
    """Mean error of the remaining pixels, for each share in `LEFT_OUT` that is left out.

    Args:
      keep_first: pixels with a larger value stay longer.
    """
    order = np.argsort(-keep_first, kind="stable")
    means = np.cumsum(error[order]) / np.arange(1, len(error) + 1)
    kept = np.maximum(np.round((1 - LEFT_OUT) * len(error)).astype(int), 1)
    return means[kept - 1]


def curves(
    error: Float[np.ndarray, "p"], confidence: Float[np.ndarray, "p"]
) -> dict[str, Float[np.ndarray, "20"]]:
    """The curves of the confidence, of the oracle (by the error itself), and of chance."""
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
    """(AbsRel without scaling, confidence) at all LiDAR pixels of the validation split."""
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
    """Writes the report's files; returns the text with the table. Raises as `refuse_foreign`."""
    refuse_foreign(out, run)
    rows = []
    for share in ROWS:
        at = [np.interp(share, LEFT_OUT, found[name]) for name in ("confidence", "oracle")]
        rows.append([f"{share:.0%}", *(f"{error:.3f}" for error in at)])
    table = markdown.table(["left out", "by confidence", "by the true error (oracle)"], rows)
    area, chance = ause(found), ause(found, "chance")
    text = (
        f"# Sparsification\n\n{title} AbsRel of the remaining LiDAR pixels, metric.\n\n"
        f"{table}\n\nAUSE {area:.3f}; confidence that says nothing: {chance:.3f}.\n"
    )
    values = {name: curve.tolist() for name, curve in found.items()}
    values |= {"run": run, "left_out": LEFT_OUT.tolist(), "ause": area, "ause_chance": chance}
    files.write_json(out / FILE, values)
    files.write_text(out / "sparsification.md", text)
    _draw(found, out / "sparsification.png")
    return text


def refuse_foreign(out: pathlib.Path, run: str) -> None:
    """Raises `UserError` where `out` holds other files, or the report of another run."""

    def is_ours(found: dict[str, Any]) -> bool:
        # A report of an older version does not name its run.
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
