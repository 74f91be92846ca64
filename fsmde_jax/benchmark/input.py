"""How fast prepared data is read, decoded and batched."""

import pathlib
import time

from ml_collections import ConfigDict

from fsmde_jax.benchmark.timing import Rows
from fsmde_jax.data import pipeline, prepared
from fsmde_jax.run import sharding, teacher_outputs
from fsmde_jax.run.load import place_model
from fsmde_jax.run.state import Model
from fsmde_jax.tasks import make_task


def input_rate(config: ConfigDict, samples: int = 200) -> Rows:
    """Measures training batches from disk to device, with nothing else running.

    Args:
      samples: at least so many are read.

    Returns one row; none, and a line on the terminal, where the data is not prepared.
    """
    data = config.data
    folder = prepared.version_dir(pathlib.Path(data.data_dir), data.dataset, data.config_name)
    if not folder.is_dir():
        print(f"{folder} is not there, so the rate of reading it is left out: prepare it first")
        return []
    mesh, stored = sharding.make_mesh(config.mesh), None
    if config.teacher.source == "cached":
        model = Model(make_task(config), config.seed)
        stored = teacher_outputs.open_cache(config, model, place_model(config, model, mesh)[2])
    batches = pipeline.train_batches(
        data,
        config.seed,
        sharding.batch_sharding(mesh),
        with_prepared=config.teacher.image == "prepared" and stored is None,
        stored=stored,
    )
    for _ in range(24 // data.batch_size + 2):  # more than is read ahead
        next(batches)
    start, count = time.perf_counter(), -(-samples // data.batch_size)
    for _ in range(count):
        batch = next(batches)
    rate = count * data.batch_size / (time.perf_counter() - start)
    return [
        {
            "data": str(folder),
            "teacher": config.teacher.source,
            "samples / s": rate,
            "images / s": rate * batch["image"].shape[1],
            "threads": data.num_threads,
            "samples": count * data.batch_size,
        }
    ]
