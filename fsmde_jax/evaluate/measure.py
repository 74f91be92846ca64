"""Measures predictors on a split of prepared data: a run's, a training state's, depth maps'."""

import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from fsmde_jax.config import ConfigError
from fsmde_jax.data import lidar, pipeline
from fsmde_jax.data.batch import Batch
from fsmde_jax.data.masks import ESTIMATE, Masks
from fsmde_jax.evaluate import metrics, protocols, report
from fsmde_jax.evaluate.depth_maps import Predictions
from fsmde_jax.evaluate.references import make_references
from fsmde_jax.evaluate.scoring import Predictor, Scorer, max_depth_m, truth_of, whole_pools
from fsmde_jax.models.layers import sampling
from fsmde_jax.pictures import ring
from fsmde_jax.run import identity, sharding
from fsmde_jax.run.load import load_foundation, load_trained, place_model
from fsmde_jax.run.state import Model, TrainState
from fsmde_jax.tasks import Task, foundation, make_task

# A metric prediction that is this many times too large or small (median) has another unit.
UNIT_RATIO = 5.0
LISTED = 10  # so many skipped predictions are named

log = logging.getLogger(__name__)


def evaluate_run(
    config: ConfigDict,
    workdir: pathlib.Path,
    out: pathlib.Path | None = None,
    on: ConfigDict | None = None,
) -> dict[str, dict]:
    """Measures a run's newest checkpoint, or the model that its config names; writes a report.

    Args:
      config: the run's own.
      workdir: the run's folder.
      out: where the report goes; None is `workdir/report`. A report of the same run is replaced.
      on: the config to measure with; its `data` and `evaluation` may differ. None is `config`.

    Returns the figures by method. Raises `UserError` where `out` holds other files or the report
    of another run, and where another process writes there.
    """
    out, run = out or workdir / "report", f"{config.name} in {workdir.resolve().name}"
    in_run = workdir.resolve() in out.resolve().parents
    with report.owned(out, None if in_run else run):
        mesh = sharding.make_mesh(config.mesh)
        task = make_task(config)
        model = Model(task, config.seed)
        frozen, teacher_state, teacher_name = place_model(config, model, mesh)
        wanted = identity.of_run(config, teacher_name)
        if foundation.is_given(config):
            params, batch_stats = load_foundation(config, mesh), model.batch_stats
        else:
            params, batch_stats = load_trained(config, model, workdir, wanted)
        params, batch_stats = jax.device_put((params, batch_stats), sharding.replicated(mesh))
        config = on or config

        predict = make_predict(task, model)
        predictors = {
            config.task: _predictor(
                config, task, lambda batch: predict(params, batch_stats, frozen, batch)
            )
        }
        if config.evaluation.references:
            predictors |= make_references(config, model, teacher_state)
        return _measure_and_write(config, predictors, out, run, mesh)


def evaluate_predictions(
    config: ConfigDict, predictions: Predictions, out: pathlib.Path
) -> dict[str, dict]:
    """Measures depth maps from files on the config's data; writes a report.

    Returns the figures by method. Raises `ConfigError` where the protocol needs mirror images,
    and, after writing the report, where metric depths are so far off that the unit is wrong.
    """
    if protocols.mirrors(config.evaluation):
        name = config.evaluation.protocol
        plain = "--protocol=ssdepth" if name == "surrounddepth" else "no --flip_average"
        raise ConfigError(
            f"protocol {name!r} averages each prediction with the mirrored image's, which "
            f"depth maps from files do not have. Measure them with {plain}, and call the figures so"
        )
    measured = f"predictions in {predictions.folder.name}"
    with report.owned(out, measured):
        mesh = sharding.make_mesh(config.mesh)
        predictor = Predictor(lambda batch: batch["prediction"], config.evaluation.scaling)
        predictors = {"predictions": predictor}
        found = _measure_and_write(config, predictors, out, measured, mesh, predictions)
    wrong = sorted(set(predictions.skipped))
    for problem in wrong[:LISTED]:
        log.warning("skipped: %s", problem)
    if len(wrong) > LISTED:
        log.warning("skipped: %d more", len(wrong) - LISTED)
    scale = found["predictions"].get("median_scale", 1.0)
    if not 1 / UNIT_RATIO < scale < UNIT_RATIO:
        problem = (
            f"the median of prediction / LiDAR is {scale:.3g}: the predictions have another unit "
            "than --unit_m says, or no scale at all (--scaling=median_image, or affine)"
        )
        if not predictions.skip:
            raise ConfigError(problem)
        log.warning(problem)
    return found


def evaluate_state(
    config: ConfigDict, task: Task, model: Model, state: TrainState, frozen: Any, mesh: Mesh
) -> tuple[dict, UInt8[np.ndarray, "h w 3"]]:
    """Measures a training state on the evaluation split: its moving average, if it has one.

    Returns the figures, and a picture of the split's first ring with the images above the depths.
    """
    predict = make_predict(task, model)
    params, batch_stats = state.averaged()
    predictor = _predictor(config, task, lambda batch: predict(params, batch_stats, frozen, batch))
    split = config.data.eval_split
    found, drawn = evaluate_split(config, {"model": predictor}, split, mesh, shown=[0])
    return found["model"], ring.ring_views(drawn[0], config.evaluation.picture_max_depth_m)


def _measure_and_write(
    config: ConfigDict,
    predictors: dict[str, Predictor],
    out: pathlib.Path,
    measured: str,
    mesh: Mesh,
    predictions: Predictions | None = None,
) -> dict[str, dict]:
    split = config.data.eval_split
    source, _ = pipeline.open_data(config.data, split)
    shown = report.evenly_spaced(config.evaluation.pictures, len(source))
    found, drawn = evaluate_split(config, predictors, split, mesh, predictions, shown)
    for name, predictor in predictors.items():
        found[name]["scaling"] = predictor.scaling
    if jax.process_index() == 0:
        report.write(config, found, measured, drawn, out)
    return found


def evaluate_split(
    config: ConfigDict,
    predictors: dict[str, Predictor],
    split: str,
    mesh: Mesh,
    predictions: Predictions | None = None,
    shown: Sequence[int] = (),
) -> tuple[dict[str, dict], dict[int, dict[str, np.ndarray]]]:
    """Measures each predictor over a split, all of them in one pass.

    Every host sums over the samples of all hosts, so that each has the whole result.

    Args:
      predictors: by name.
      predictions: depth maps from files, where these are what is measured.
      shown: indices of the samples that come back for a picture.

    Returns the figures by predictor (`averages.Scores.compute`), and the samples in `shown` by
    index: batch fields without `b`, and `depth_m`, the first predictor's depth in metres. Raises
    `ConfigError` where the protocol leaves no sample.
    """
    source, cameras = pipeline.open_data(config.data, split)
    protocol = protocols.PROTOCOLS[config.evaluation.protocol]
    if not whole_pools(protocol, len(source)):
        batch = f" as a batch of {protocol.pool}, of which protocol {protocol.name!r} leaves out "
        batch += "what is not whole: use another --protocol"
        raise ConfigError(
            f"{source.directory} has {len(source)} samples in split {split!r}, too few to measure"
            f"{batch if len(source) else ''}"
        )
    scores = {
        name: Scorer(config, predictor, protocol, list(source.scenes.items()), cameras, mesh)
        for name, predictor in predictors.items()
    }
    batches = _batches(config, split, mesh, predictions)
    count = -(-len(source) // config.data.eval_batch_size)
    replicate = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))
    first, drawn = next(iter(predictors.values())), {}
    progress = tqdm(batches, total=count, desc=f"evaluating {split}", disable=count < 20)
    for place, batch in enumerate(progress):
        predicted, *_ = [scorer.add(batch) for scorer in scores.values()]
        start = place * config.data.eval_batch_size
        wanted = set(shown) & set(range(start, start + config.data.eval_batch_size))
        if wanted:  # the same on all hosts
            batch = {**batch, "depth_m": _in_metres(config, first, predicted, batch)}
            host = jax.device_get(replicate(batch))
            drawn |= {
                int(index): {name: array[row] for name, array in host.items()}
                for row, index in enumerate(host["sample_index"])
                if index in wanted
            }
    return {name: scorer.compute() for name, scorer in scores.items()}, drawn


def _batches(
    config: ConfigDict, split: str, mesh: Mesh, predictions: Predictions | None = None
) -> Iterator[Batch]:
    """Batches of the split, once, with all that the task, the teacher and the protocol need."""
    source, _ = pipeline.open_data(config.data, split)
    protocol = protocols.PROTOCOLS[config.evaluation.protocol]
    changes = [functools.partial(lidar.of_rule, rule=protocol.lidar_rule)]
    if predictions:
        changes.append(predictions.add)
    if protocol.truth == "prepared":
        changes.append(protocols.at_prepared_size)
    if config.evaluation.masks == ESTIMATE:
        changes.append(Masks.estimate(source).hide_own_car)
    elif config.evaluation.masks:
        size = None
        if protocol.masks_own_car:
            height, width = source.rig["prepared_size"]
            size = (height // config.data.downscale, width // config.data.downscale)
        masks = Masks.read(pathlib.Path(config.evaluation.masks), source, size)
        changes.append(masks.hide_own_car)

    def change(sample: dict) -> dict:
        for step in changes:
            sample = step(sample)
        return sample

    return pipeline.eval_batches(
        config.data,
        split,
        sharding.batch_sharding(mesh),
        with_dense=predictions is None and config.task == "foundation",
        with_prepared=predictions is None and config.teacher.image == "prepared",
        change=change,
    )


def _in_metres(config: ConfigDict, predictor: Predictor, prediction: Array, batch: Batch) -> Array:
    """The prediction in metres; inverse depth is fitted to each image's truth."""
    if not predictor.inverse:
        return prediction
    limits = (config.data.min_depth_m, max_depth_m(config))

    def aligned(inverse_depth, uv, size, truth_m):
        at_points = sampling.read_at_pixels(inverse_depth, uv, size)
        valid = (truth_m > limits[0]) & (truth_m < limits[1])
        scale, shift = metrics.fit_affine(at_points, truth_m, valid)
        return metrics.depth_of_inverse(scale * inverse_depth + shift, *limits)

    return jax.vmap(jax.vmap(aligned))(prediction, *truth_of(batch))


def make_predict(task: Task, model: Model) -> Callable:
    """The model in evaluation mode: (params, batch_stats, frozen, batch) -> depth_m [b n h w]."""
    return jax.jit(
        lambda params, stats, frozen, batch: task.predict(
            model.merge(params, stats, frozen, train=False), batch
        )
    )


def _predictor(config: ConfigDict, task: Task, predict: Callable[[Batch], Array]) -> Predictor:
    if protocols.mirrors(config.evaluation):
        predict = protocols.mirror_averaged(predict, task.predicts_inverse)
    scaling = "affine" if task.predicts_inverse else config.evaluation.scaling
    return Predictor(predict, scaling, task.predicts_inverse)
