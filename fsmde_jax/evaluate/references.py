"""What a student is compared with: a trivial predictor and its teacher.

The trivial predictor ignores the image: it predicts each place's median depth in the training data.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from tqdm import tqdm

from fsmde_jax.data import lidar, pipeline, prepared
from fsmde_jax.evaluate import protocols
from fsmde_jax.evaluate.scoring import Predictor
from fsmde_jax.run.state import Model
from fsmde_jax.tasks import teacher_inputs

# The predictor's cells, and the bins of its histograms in log depth (3 % wide).
GRID = (96, 160)
BINS = 256


def make_references(config: ConfigDict, model: Model, teacher_state: Any) -> dict[str, Predictor]:
    """The trivial predictor, and the teacher where there is one, by name.

    The teacher's depth is scaled by medians where the student's is metric, and averaged with its
    mirror image's where the protocol says so. The trivial predictor needs no mirroring: for a
    mirrored image it would predict its own map, mirrored.
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

        predict = functools.partial(teacher_depth, teacher_state)
        if protocols.mirrors(config.evaluation):
            predict = protocols.mirror_averaged(predict, inverse=False)
        scaling = config.evaluation.scaling
        references["teacher"] = Predictor(
            predict, "median_image" if scaling == "metric" else scaling
        )
    return references


def trivial_depth(config: ConfigDict, cameras: tuple[str, ...]) -> Float[np.ndarray, "n h w"]:
    """Per camera and cell of `GRID`, the median LiDAR depth of the training split's labels.

    Histograms in log depth give the median, so memory does not grow with the dataset. A cell
    without points takes the median of the smallest block of cells around it that has some. A
    process reads the labels once, and no images.
    """
    source, _ = pipeline.open_data(config.data, config.data.train_split)
    made = (source.directory / prepared.RIG_FILE).stat().st_mtime_ns
    range_m = (config.data.min_depth_m, config.data.max_depth_m)
    where = (source.directory, source.split, made)
    return _of_split(*where, cameras, range_m, config.data.masks).copy()


@functools.lru_cache(maxsize=1)
def _of_split(
    directory: pathlib.Path,
    split: str,
    made_ns: int,  # a dataset that is prepared anew gets a new map
    cameras: tuple[str, ...],
    range_m: tuple[float, float],
    masks: str,
) -> Float[np.ndarray, "n h w"]:
    source = prepared.PreparedSplit(directory, split)
    labels_of = pipeline.labels_of(source, range_m, masks)
    rows, columns = GRID
    log_range = np.log(range_m)
    counts = np.zeros((len(cameras), rows, columns, BINS), np.uint32)
    for index in tqdm(range(len(source)), desc="trivial predictor", disable=len(source) < 500):
        sample = labels_of(source.read(index, pictures=False))
        of_image = lidar.slices_of(sample)
        for i, name in enumerate(sample["camera_names"]):
            points = of_image[i]
            height, width = sample["native_sizes"][i]
            column, row = ((sample["lidar_uv"][points] + 0.5) * [columns / width, rows / height]).T
            depth_m = sample["lidar_depth_m"][points]
            place = (np.log(depth_m) - log_range[0]) / (log_range[1] - log_range[0]) * BINS
            inside = (place >= 0) & (place < BINS)
            at = (row[inside].astype(int), column[inside].astype(int), place[inside].astype(int))
            np.add.at(counts[cameras.index(name)], at, 1)
    return np.exp(log_range[0] + _medians(counts) * (log_range[1] - log_range[0])).astype(
        np.float32
    )


def _medians(counts: np.ndarray) -> np.ndarray:
    """Medians in [0, 1] from histograms; coarser and coarser blocks fill the empty cells."""
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
