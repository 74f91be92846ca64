"""Runs a frozen teacher once over the training split and stores its outputs, or checks them."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from fsmde_jax import config as config_lib
from fsmde_jax.data import pipeline, teacher_cache
from fsmde_jax.run import sharding, teacher_outputs
from fsmde_jax.run.load import place_model
from fsmde_jax.run.state import Model
from fsmde_jax.tasks import make_task

# A stored root is off by at most half a step, so a probability by 2 x 0.5 / 255; the devices'
# rounding may move it by one step more.
_TOLERANCE = 3 / 255


class Runner:
    """The loaded teacher, and its outputs for any samples of the training split."""

    def __init__(self, config: ConfigDict):
        config_lib.validate(config)
        self.config = config
        self.mesh: Mesh = sharding.make_mesh(config.mesh)
        self.model = Model(make_task(config), config.seed)
        if self.model.teacher_graphdef is None:
            raise config_lib.ConfigError(
                "config.objective has no term that needs a teacher: there is nothing to store"
            )
        _, self.teacher_state, name = place_model(config, self.model, self.mesh)
        self.about = teacher_outputs.describe(config, self.model, name)
        self.directory = teacher_cache.directory_of(config)

        def run(teacher_state, batch):
            encoded = teacher_outputs.encode(config, self.model, teacher_state, batch)
            return encoded, batch["sample_index"]

        self._run = jax.jit(run, out_shardings=sharding.replicated(self.mesh))

    def entries(self, indices: list[int], flipped: bool) -> Iterator[dict[str, np.ndarray]]:
        """What is stored of each of these samples, which are in increasing order."""
        batches = pipeline.eval_batches(
            self.config.data,
            self.config.data.train_split,
            sharding.batch_sharding(self.mesh),
            with_prepared=self.config.teacher.image == "prepared",
            indices=indices,
            flipped=flipped,
        )
        for batch in batches:
            host, index = jax.device_get(self._run(self.teacher_state, batch))
            # Several hosts take turns in a batch, and -1 pads it.
            for i in np.argsort(index, stable=True)[np.count_nonzero(index < 0) :]:
                yield {name: array[i] for name, array in host.items()}


def build(config: ConfigDict) -> None:
    """Stores what is not stored yet.

    Raises `UserError` for a cache of something else, a folder of other files, and where another
    process is storing into it.
    """
    runner = Runner(config)
    if jax.process_index():
        _build(runner)
        return
    teacher_cache.write_about(runner.directory, runner.about)
    with teacher_cache.locked(runner.directory):
        teacher_cache.adopt(runner.directory, runner.about)
        _build(runner)


def _build(runner: Runner) -> None:
    # Only now all hosts find the same files missing.
    multihost_utils.sync_global_devices("cache_teacher")
    missing = teacher_cache.missing_chunks(runner.directory, runner.about)
    total = sum(len(teacher_cache.chunk_indices(chunk, runner.about)) for chunk in missing)
    flips = (False, True) if runner.about["flips"] else (False,)
    with tqdm(total=total * len(flips), desc="teacher", unit="sample") as bar:
        for chunk in missing:
            indices = list(teacher_cache.chunk_indices(chunk, runner.about))
            stored = []
            for flipped in flips:
                stored.append([])
                for entry in runner.entries(indices, flipped):
                    stored[-1].append(entry)
                    bar.update()
            by_sample = (entry for pair in zip(*stored, strict=True) for entry in pair)
            if not jax.process_index():
                teacher_cache.write_chunk(runner.directory, chunk, by_sample)
    files = list(runner.directory.glob("*.array_record"))
    size = sum(file.stat().st_size for file in files) / max(runner.about["samples"], 1)
    print(f"{runner.directory}: {runner.about['samples']} samples, {size / 1000:.1f} kB a sample")


def verify(config: ConfigDict, count: int) -> None:
    """Checks every file's checksum, recomputes `count` random entries and compares.

    Raises `TeacherCacheError` where anything differs.
    """
    runner = Runner(config)
    command = teacher_outputs.command(config)
    teacher_cache.check(runner.directory, runner.about, command)
    if damaged := teacher_cache.damaged_files(runner.directory):
        raise teacher_cache.TeacherCacheError(
            f"{', '.join(map(str, damaged))}: damaged since they were written. Delete them and run "
            f"{command}"
        )
    cache = teacher_cache.TeacherCache(runner.directory)
    rng = np.random.default_rng()
    chosen = rng.choice(runner.about["samples"], min(count, runner.about["samples"]), replace=False)
    flips = rng.random(len(chosen)) < (0.5 if runner.about["flips"] else 0.0)
    worst = {"probability": 0.0, "token": 0.0, "log depth": 0.0}
    for flipped in (False, True):
        indices = sorted(chosen[flips == flipped].tolist())
        fresh_entries = tqdm(
            runner.entries(indices, flipped),
            total=len(indices),
            desc="verifying mirror images" if flipped else "verifying",
        )
        for index, fresh in zip(indices, fresh_entries, strict=True):
            stored = cache.entry(index, flipped)
            differences = {
                "probability": probabilities(fresh) - probabilities(stored),
                "token": _difference(fresh, stored, "teacher_tokens"),
                "log depth": _difference(fresh, stored, "teacher_log_depth"),
            }
            for name, difference in differences.items():
                worst[name] = max(worst[name], float(np.abs(difference).max()))
    named = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    print(f"{len(chosen)} entries recomputed; largest differences: {named}")
    if max(worst.values()) > _TOLERANCE:
        raise teacher_cache.TeacherCacheError(
            f"{runner.directory} is not what this teacher says (tolerance {_TOLERANCE:.1e}): "
            f"delete it and run {command}"
        )


def probabilities(entry: dict[str, np.ndarray]) -> np.ndarray:
    """Bin probabilities of a stored entry."""
    return (entry["teacher_roots"] / 255.0) ** 2


def _difference(
    fresh: dict[str, np.ndarray], stored: dict[str, np.ndarray], name: str
) -> np.ndarray:
    return fresh[name].astype(np.float32) - stored[name].astype(np.float32)
