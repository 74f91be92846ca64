"""Measures predictors on a split of prepared data, and writes the report."""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from fsmde_jax import files
from fsmde_jax.config import ConfigError
from fsmde_jax.data import lidar, pipeline
from fsmde_jax.data.batch import Batch
from fsmde_jax.data.masks import ESTIMATE, Masks
from fsmde_jax.evaluate import metrics, protocols, results, tables
from fsmde_jax.evaluate.depth_maps import Predictions
from fsmde_jax.evaluate.references import trivial_depth
from fsmde_jax.evaluate.scoring import (
    Predictor,
    Scorer,
    limits_m,
    max_depth_m,
    truth_of,
    whole_pools,
)
from fsmde_jax.models.layers import sampling
from fsmde_jax.pictures import ring
from fsmde_jax.run import identity, sharding
from fsmde_jax.run.load import load_foundation, load_trained, place_model
from fsmde_jax.run.state import Model, TrainState
from fsmde_jax.tasks import Task, foundation, make_task, teacher_inputs

# A metric prediction this many times too large or small (median) has another unit.
UNIT_RATIO = 5.0
LISTED = 10  # skipped predictions that are named

log = logging.getLogger(__name__)

# Measuring


def evaluate_split(
    config: ConfigDict,
    predictors: dict[str, Predictor],
    split: str,
    mesh: Mesh,
    predictions: Predictions | None = None,
    shown: Sequence[int] = (),
) -> tuple[dict[str, dict], dict[int, dict[str, np.ndarray]]]:
    """`results.Scores.compute` of each predictor over a split, and samples to draw, in one pass.

    Every host adds up what all of them read, so each has the whole.

    Args:
      shown: which samples come back by index: batch fields without `b`, and `depth_m`, what the
        first predictor has for them in metres.

    Raises `ConfigError` where the protocol leaves no sample.
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
    """The split once, with what the config's task, teacher and protocol need."""
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


# What is measured


def make_predict(task: Task, model: Model) -> Callable:
    """Jitted (params, batch_stats, frozen, batch) -> depth_m [b n h w], in evaluation mode."""
    return jax.jit(
        lambda params, stats, frozen, batch: task.predict(
            model.merge(params, stats, frozen, train=False), batch
        )
    )


def _predictor(config: ConfigDict, task: Task, predict: Callable[[Batch], Array]) -> Predictor:
    if protocols.mirrors(config.evaluation):
        predict = _mirror_averaged(predict, task.predicts_inverse)
    scaling = "affine" if task.predicts_inverse else config.evaluation.scaling
    return Predictor(predict, scaling, task.predicts_inverse)


def _mirror_averaged(predict: Callable, inverse: bool) -> Callable:
    """Averages disparity with that of the mirrored images (`protocols.post_process`).

    Each camera's image is mirrored where it is, as in the public code, and its calibration with it.
    """

    @jax.jit
    def mirror(batch: Batch) -> Batch:
        mirrored = {
            name: jnp.flip(batch[name], axis=3)
            for name in ("image", "teacher_image")
            if name in batch
        }
        k = batch["intrinsics"]
        k = k.at[..., 0, 2].set(batch["image"].shape[3] - k[..., 0, 2]).at[..., 0, 1].multiply(-1)
        flipped = jnp.ones_like(batch["sample_index"], bool)
        return {**batch, **mirrored, "intrinsics": k, "flipped": flipped}

    def both(batch: Batch) -> Array:
        direct, mirrored = predict(batch), predict(mirror(batch))
        if inverse:
            return protocols.post_process(direct, mirrored)
        return 1.0 / protocols.post_process(1.0 / direct, 1.0 / mirrored)

    return both


def evaluate_state(
    config: ConfigDict, task: Task, model: Model, state: TrainState, frozen: Any, mesh: Mesh
) -> tuple[dict, UInt8[np.ndarray, "h w 3"]]:
    """The evaluation split's results of a training state (its moving average if there is one).

    And a picture of the split's first ring, images above depths.
    """
    predict = make_predict(task, model)
    params, batch_stats = state.averaged()
    predictor = _predictor(config, task, lambda batch: predict(params, batch_stats, frozen, batch))
    split = config.data.eval_split
    found, drawn = evaluate_split(config, {"model": predictor}, split, mesh, shown=[0])
    return found["model"], ring.ring_views(drawn[0], config.evaluation.picture_max_depth_m)


def evaluate_run(
    config: ConfigDict,
    workdir: pathlib.Path,
    out: pathlib.Path | None = None,
    on: ConfigDict | None = None,
) -> dict[str, dict]:
    """Measures a run's newest checkpoint, or the model its config names; writes a report.

    Args:
      config: the run's own.
      workdir: its folder.
      out: where the report goes; None is `workdir/report`.
      on: the config to measure with, whose `data` and `evaluation` may differ; None is `config`.

    Returns the figures by method. Raises `UserError` where `out` holds other files, or the report
    of another run (one of this run is written anew), or another process writes there.
    """
    out, run = out or workdir / "report", f"{config.name} in {workdir.resolve().name}"
    in_run = workdir.resolve() in out.resolve().parents
    with _owned(out, None if in_run else run):
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
            predictors |= _references(config, model, teacher_state)
        return _report(config, predictors, out, run, mesh)


def evaluate_predictions(
    config: ConfigDict, predictions: Predictions, out: pathlib.Path
) -> dict[str, dict]:
    """Measures depth maps from files on the config's data; writes a report.

    Raises `ConfigError` if metric ones are so far off that they must have another unit, after
    the report is written, or where the protocol needs mirror images.
    """
    if protocols.mirrors(config.evaluation):
        name = config.evaluation.protocol
        plain = "--protocol=ssdepth" if name == "surrounddepth" else "no --flip_average"
        raise ConfigError(
            f"protocol {name!r} averages each prediction with that of the mirrored image, which "
            f"depth maps from files do not have. Measure them with {plain}, and call the figures so"
        )
    measured = f"predictions in {predictions.folder.name}"
    with _owned(out, measured):
        mesh = sharding.make_mesh(config.mesh)
        predictor = Predictor(lambda batch: batch["prediction"], config.evaluation.scaling)
        found = _report(config, {"predictions": predictor}, out, measured, mesh, predictions)
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


def _references(config: ConfigDict, model: Model, teacher_state: Any) -> dict[str, Predictor]:
    """The trivial predictor, and the teacher median-scaled.

    The teacher is mirrored as the protocol says. The trivial predictor knows nothing of the image:
    what it has for the mirrored one is its map, mirrored.
    """
    _, cameras = pipeline.open_data(config.data, config.data.train_split)
    trivial = jnp.asarray(trivial_depth(config, cameras))
    references = {
        "trivial": Predictor(
            lambda batch: jnp.broadcast_to(trivial, (batch["image"].shape[0], *trivial.shape)),
            config.evaluation.scaling,
        )
    }
    if model.teacher_graphdef:

        @jax.jit
        def teacher_depth(state, batch):
            return model.merge_teacher(state)(*teacher_inputs(batch)).depth_m

        def predict(batch):
            return teacher_depth(teacher_state, batch)

        scaling = config.evaluation.scaling
        references["teacher"] = Predictor(
            _mirror_averaged(predict, False) if protocols.mirrors(config.evaluation) else predict,
            "median_image" if scaling == "metric" else scaling,
        )
    return references


# The report


@contextlib.contextmanager
def _owned(out: pathlib.Path, measured: str | None) -> Iterator[None]:
    """A report's folder that no other process writes into. Raises as `results.refuse_foreign`."""
    results.refuse_foreign(out, measured)
    if jax.process_index() > 0:
        yield
        return
    with files.owned(out, f"writing the report {out}"):
        results.refuse_foreign(out, measured)  # another process may just have finished one
        yield


def _report(
    config: ConfigDict,
    predictors: dict[str, Predictor],
    out: pathlib.Path,
    measured: str,
    mesh: Mesh,
    predictions: Predictions | None = None,
) -> dict[str, dict]:
    source, cameras = pipeline.open_data(config.data, config.data.eval_split)
    count = min(config.evaluation.pictures, len(source))
    shown = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    found, drawn = evaluate_split(
        config, predictors, config.data.eval_split, mesh, predictions, shown
    )
    for name, predictor in predictors.items():
        found[name]["scaling"] = predictor.scaling
    if jax.process_index() == 0:
        results.write(out, about(config, found) | {"measured": measured}, found)
        for index, sample in drawn.items():
            name = source.read(index, pictures=False)["sample_id"].replace("/", "_")
            ring.draw_ring(
                sample,
                {"prediction": sample["depth_m"]},
                cameras,
                config.evaluation.picture_max_depth_m,
                out / f"{name}.png",
            )
    return found


def about(config: ConfigDict, methods: dict[str, dict]) -> dict[str, Any]:
    """What was measured and how: `settings`, which must agree to compare, and in words."""
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
    """How points became pixels; only nuScenes is prepared by the rules of its public code."""
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


_SCALING_TEXT = {
    "metric": "in metres as predicted",
    "median_image": "scaled by each image's median",
    "median_camera": "scaled by each camera's median (of a scene or pool)",
    "affine": "scale and shift of inverse depth fitted to each image",
}


def summary(config: ConfigDict, methods: dict[str, dict]) -> str:
    """For the terminal: what was measured, and its tables without scenes."""
    return tables.describe(about(config, methods), methods, scenes=False)


def _in_metres(config: ConfigDict, predictor: Predictor, prediction: Array, batch: Batch) -> Array:
    """The prediction, or what an inverse prediction becomes by each image's alignment."""
    if not predictor.inverse:
        return prediction
    limits = (config.data.min_depth_m, max_depth_m(config))

    def aligned(inverse_depth, uv, size, truth_m):
        at_points = sampling.read_at_pixels(inverse_depth, uv, size)
        valid = (truth_m > limits[0]) & (truth_m < limits[1])
        scale, shift = metrics.fit_affine(at_points, truth_m, valid)
        return metrics.depth_of_inverse(scale * inverse_depth + shift, *limits)

    return jax.vmap(jax.vmap(aligned))(prediction, *truth_of(batch))
