"""Evaluation: `python -m fsmde_jax.evaluate --workdir=RUN` measures a run's newest checkpoint.

Writes `report/results.json`, `report/results.md` and pictures into the run's folder: the student
per camera, beside two references measured in the same pass, the trivial predictor and the teacher.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from tqdm import tqdm

from fsmde_jax import metrics, process, sharding, tasks, visualize
from fsmde_jax.config import load_config
from fsmde_jax.data import pipeline
from fsmde_jax.errors import UserError
from fsmde_jax.state import Model, TrainState, load_trained, place_model

# The trivial predictor's cells, and the bins of its histograms in log depth (3 % wide).
TRIVIAL_GRID = (96, 160)
TRIVIAL_BINS = 256


class Predictor(NamedTuple):
    """A way to depth: batch -> [b n h w], metres or what `metrics.ALIGNMENTS` says of it."""

    predict: Callable[[dict[str, Array]], Array]
    alignment: str = "metric"


def evaluate_split(
    config: ConfigDict, predictors: dict[str, Predictor], split: str, mesh: Mesh
) -> dict[str, dict]:
    """Results of each predictor over a split, in one pass: `CameraTable.compute` by name."""
    source, cameras = pipeline.open_data(config.data, split)
    batches = _batches(config, split, mesh)
    measure = {name: _make_measure(config, p, mesh) for name, p in predictors.items()}
    tables = {name: metrics.CameraTable.empty(cameras) for name in predictors}
    count = -(-len(source) // config.data.eval_batch_size)
    for batch in tqdm(batches, total=count, desc=f"evaluating {split}", disable=count < 20):
        for name, predictor in predictors.items():
            values, valid = jax.device_get(measure[name](predictor.predict(batch), batch))
            tables[name].add(values, valid)
    return {name: table.compute() for name, table in tables.items()}


def _batches(config: ConfigDict, split: str, mesh: Mesh) -> Iterator[dict[str, Array]]:
    """The split once, with what the config's task and teacher need."""
    return pipeline.eval_batches(
        config.data,
        split,
        sharding.batch_sharding(mesh),
        with_dense=tasks.make_task(config).needs_dense_depth,
        with_prepared=config.teacher.image == "prepared",
    )


def _truth(batch: dict[str, Array]) -> tuple[Array, Array]:
    """Positions [b n p 2] and depths [b n p]: of every pixel if truth is dense, else of LiDAR."""
    if "dense_depth_m" not in batch:
        return batch["lidar_xy"], batch["lidar_depth_m"]
    b, n, height, width = batch["dense_depth_m"].shape
    y, x = jnp.mgrid[:height, :width]
    xy = jnp.stack([x, y], axis=-1).reshape(-1, 2) + 0.5
    depth_m = batch["dense_depth_m"].reshape(b, n, -1)
    return jnp.broadcast_to(xy, (b, n, *xy.shape)), depth_m


def _make_measure(config: ConfigDict, predictor: Predictor, mesh: Mesh) -> Callable:
    def measure(depth_m, batch):
        return metrics.batch_metrics(
            depth_m,
            *_truth(batch),
            batch["image"].shape[2:4],
            config.data.min_depth_m,
            config.data.max_depth_m,
            predictor.alignment,
        )

    # On every device, so that each host can read the whole.
    return jax.jit(measure, out_shardings=sharding.replicated(mesh))


def evaluate_state(
    config: ConfigDict, task: tasks.Task, model: Model, state: TrainState, frozen: Any, mesh: Mesh
) -> dict:
    """The evaluation split's results of a training state (its moving average if there is one)."""
    predict = make_predict(task, model)
    params = state.ema or state.params
    predictor = Predictor(
        lambda batch: predict(params, state.batch_stats, frozen, batch), task.alignment
    )
    return evaluate_split(config, {"model": predictor}, config.data.eval_split, mesh)["model"]


def make_predict(task: tasks.Task, model: Model) -> Callable:
    """Jitted (params, batch_stats, frozen, batch) -> depth_m [b n h w], in evaluation mode."""
    return jax.jit(
        lambda params, stats, frozen, batch: task.predict(
            model.merge(params, stats, frozen, train=False), batch
        )
    )


def trivial_depth(config: ConfigDict, cameras: tuple[str, ...]) -> Float[np.ndarray, "n h w"]:
    """Per camera and cell of `TRIVIAL_GRID`, the median LiDAR depth of the training split.

    The median is read from histograms in log depth, so memory does not grow with the dataset;
    a cell without points takes the median of the smallest block of cells around it that has some.
    """
    source, _ = pipeline.open_data(config.data, config.data.train_split)
    rows, columns = TRIVIAL_GRID
    log_range = np.log([config.data.min_depth_m, config.data.max_depth_m])
    counts = np.zeros((len(cameras), rows, columns, TRIVIAL_BINS), np.uint32)
    for index in tqdm(range(len(source)), desc="trivial predictor", disable=len(source) < 500):
        sample = source[index]
        ends = np.cumsum(sample["lidar_counts"])
        for i, name in enumerate(sample["camera_names"]):
            points = slice(ends[i] - sample["lidar_counts"][i], ends[i])
            height, width = sample["native_sizes"][i]
            column, row = ((sample["lidar_uv"][points] + 0.5) * [columns / width, rows / height]).T
            depth_m = sample["lidar_depth_m"][points]
            place = (np.log(depth_m) - log_range[0]) / (log_range[1] - log_range[0]) * TRIVIAL_BINS
            inside = (place >= 0) & (place < TRIVIAL_BINS)
            at = (row[inside].astype(int), column[inside].astype(int), place[inside].astype(int))
            np.add.at(counts[cameras.index(name)], at, 1)
    return np.exp(log_range[0] + _medians(counts) * (log_range[1] - log_range[0])).astype(
        np.float32
    )


def _medians(counts: np.ndarray) -> np.ndarray:
    """Medians of histograms in [0, 1], coarser blocks filling cells that are empty."""
    median = np.full(counts.shape[:3], np.nan)
    block = 1
    while np.isnan(median).any() and block <= max(counts.shape[1:3]):
        n, rows, columns, bins = counts.shape
        padded = np.pad(counts, ((0, 0), (0, -rows % block), (0, -columns % block), (0, 0)))
        blocks = padded.reshape(n, -(-rows // block), block, -(-columns // block), block, bins)
        cumulative = np.cumsum(blocks.sum(axis=(2, 4)), axis=-1)
        total = cumulative[..., -1:]
        middle = (np.argmax(cumulative * 2 >= total, axis=-1) + 0.5) / bins
        middle = np.where(total[..., 0] > 0, middle, np.nan)
        filled = middle.repeat(block, axis=1).repeat(block, axis=2)[:, :rows, :columns]
        median = np.where(np.isnan(median), filled, median)
        block *= 2
    return np.nan_to_num(median, nan=0.5)


def evaluate_run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, dict]:
    """Measures a run's newest checkpoint, or the model it names; writes and returns results."""
    mesh = sharding.make_mesh(config.mesh)
    task = tasks.make_task(config)
    model = Model(task, config.seed)
    frozen, teacher_state, teacher_name = place_model(config, model, mesh)
    identity = tasks.identity(config, teacher_name)
    if tasks.is_given(config):
        params, batch_stats = tasks.load_foundation(config, mesh), model.batch_stats
    else:
        params, batch_stats = load_trained(config, model, workdir, identity)
    params, batch_stats = jax.device_put((params, batch_stats), sharding.replicated(mesh))

    predict = make_predict(task, model)
    predictors = {
        config.task: Predictor(
            lambda batch: predict(params, batch_stats, frozen, batch), task.alignment
        )
    }
    if config.evaluation.references:
        predictors |= _references(config, model, teacher_state)
    results = evaluate_split(config, predictors, config.data.eval_split, mesh)
    if jax.process_index() == 0:
        write_report(config, results, workdir / "report")
    _draw(config, predictors[config.task], workdir / "report", mesh)
    return results


def _references(config: ConfigDict, model: Model, teacher_state: Any) -> dict[str, Predictor]:
    """The trivial predictor, and the teacher median-scaled."""
    _, cameras = pipeline.open_data(config.data, config.data.train_split)
    trivial = jnp.asarray(trivial_depth(config, cameras))
    references = {
        "trivial": Predictor(
            lambda batch: jnp.broadcast_to(trivial, (batch["image"].shape[0], *trivial.shape))
        )
    }
    if model.teacher_graphdef:

        @jax.jit
        def teacher_depth(state, batch):
            return model.merge_teacher(state)(*tasks.teacher_inputs(batch)).depth_m

        references["teacher"] = Predictor(
            lambda batch: teacher_depth(teacher_state, batch), alignment="median"
        )
    return references


def write_report(config: ConfigDict, results: dict[str, dict], folder: pathlib.Path) -> None:
    """results.json for programs and results.md for people."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "results.md").write_text(describe(config, results) + "\n")


def describe(config: ConfigDict, results: dict[str, dict]) -> str:
    """The table and what was measured."""
    truth = f"protocol {config.evaluation.protocol}, native LiDAR pixels"
    scale = "metric, but the teacher is median-scaled per image"
    if config.task == "foundation":
        truth = "dense truth at the size of the student's image"
        scale = "scale and shift of inverse depth fitted to each image's truth"
    return (
        f"{config.name}: split {config.data.eval_split!r} of {config.data.dataset!r}, {truth}, "
        f"{config.data.min_depth_m:g} to {config.data.max_depth_m:g} m; {scale}.\n\n"
        + metrics.format_table(results)
    )


def _draw(config: ConfigDict, predictor: Predictor, folder: pathlib.Path, mesh: Mesh) -> None:
    """Pictures of evenly spaced samples: image, LiDAR, prediction of every camera."""
    if not config.evaluation.pictures:
        return
    source, cameras = pipeline.open_data(config.data, config.data.eval_split)
    count = min(config.evaluation.pictures, len(source))
    wanted = set(np.linspace(0, len(source) - 1, count).round().astype(int).tolist())
    replicate = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))
    for batch in _batches(config, config.data.eval_split, mesh):
        batch = {**batch, "depth_m": _in_metres(config, predictor, batch)}
        host = jax.device_get(replicate(batch))
        for i, index in enumerate(host["sample_index"].tolist()):
            if index in wanted and jax.process_index() == 0:
                sample = {name: array[i] for name, array in host.items()}
                name = source[index]["sample_id"].replace("/", "_")
                visualize.draw_ring(
                    sample, cameras, config.evaluation.picture_max_depth_m, folder / f"{name}.png"
                )


def _in_metres(config: ConfigDict, predictor: Predictor, batch: dict[str, Array]) -> Array:
    """The prediction, or what an affine prediction becomes by each image's alignment."""
    prediction, (xy, truth_m) = predictor.predict(batch), _truth(batch)
    if predictor.alignment != "affine":
        return prediction
    size = batch["image"].shape[2:4]
    limits = (config.data.min_depth_m, config.data.max_depth_m)

    def aligned(inverse_depth, xy, truth_m):
        at_points = metrics.sample_bilinear(inverse_depth, xy, size)
        valid = (truth_m > limits[0]) & (truth_m < limits[1])
        scale, shift = metrics.fit_affine(at_points, truth_m, valid)
        return metrics.depth_of_inverse(scale * inverse_depth + shift, *limits)

    return jax.vmap(jax.vmap(aligned))(prediction, xy, truth_m)


def main(_) -> None:
    """Reads the run's own config and measures its newest checkpoint."""
    process.set_up()
    workdir = pathlib.Path(flags.FLAGS.workdir)
    try:
        config = load_config(workdir)
        print(describe(config, evaluate_run(config, workdir)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run of fsmde_jax.main.", required=True)
    app.run(main)
