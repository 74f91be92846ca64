"""Makes the scenes of a prepared dataset: one shard and one report each, with several processes."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import logging
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from fsmde_jax import files
from fsmde_jax.data import prepared
from fsmde_jax.data.readers import dgp, nuscenes, rig_folder
from fsmde_jax.data.readers.recording import RecordingError
from fsmde_jax.errors import UserError

# Which module reads the recordings of a dataset.
READERS = {"ddad": dgp, "world": dgp, "nuscenes": nuscenes, "rig": rig_folder}
REPORTS_DIR = "scenes"
PLAN_DIR = "plan"
REPORT_KEYS = (
    "scene_id",
    "split",
    "scene_sha256",
    "samples",
    "points",
    "skipped",
    "files",
    "shard",
)

Tick = Callable[[], None]


class PrepareError(UserError):
    """The dataset cannot be made as requested; the text says why and what to do."""


class _StoppedError(Exception):
    """Another scene failed, so this worker gives up its own."""


@dataclasses.dataclass(frozen=True)
class SceneTask:
    """Everything that a worker needs to make one shard."""

    dataset: str
    options: tuple[tuple[str, Any], ...]  # of the builder's config
    split: str
    scene_id: str
    scene_path: Path
    scene_sha256: str | None  # None: the file is missing
    root: Path  # of the recording; its files are named relative to it
    num_samples: int  # 0 where the scene file is broken
    on_error: str
    shard_path: Path
    report_path: Path


def find_source(dataset: str, source: Path) -> Path:
    """The folder in `source` that the dataset's reader reads. Raises `PrepareError`."""
    try:
        return READERS[dataset].find(source)
    except FileNotFoundError as error:
        raise PrepareError(
            f"There is no {dataset} recording in {source}: {error}. "
            f"{prepared.raw_data_help(dataset)} Then run: "
            f"python -m fsmde_jax.prepare --dataset={dataset} --source=RAW --data_dir=OUT"
        ) from error


def default_image_size(dataset: str) -> tuple[int, int]:
    """(height, width) of the stored images by default."""
    return _builder_class(dataset).DEFAULT_CONFIG.image_size


def _builder_class(dataset: str) -> Any:
    """Imported by name, so that it is never defined in `__main__`."""
    return importlib.import_module(f"tfds_builders.{dataset}.{dataset}_dataset_builder").Builder


@functools.lru_cache(maxsize=4)
def make_builder(dataset: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The TFDS builder of a dataset, whose schema and `example` are used here.

    Args:
      options: fields of the builder's config, as (name, value).
    """
    builder = _builder_class(dataset)
    config = type(builder.DEFAULT_CONFIG)(**dict(options))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is not listed
    try:
        # The data directory is not used: shards are written here, not by TFDS.
        return builder(config=config, data_dir=os.devnull)
    finally:
        logging.set_verbosity(verbosity)


def plan(
    dataset_json: Path,
    record: dict[str, Any],
    options: tuple[tuple[str, Any], ...],
    directory: Path,
) -> list[SceneTask]:
    """One task for each scene of each split, with the name of its shard.

    Args:
      record: what the folder is made with, as `folder.prepare` writes it down.
      options: of the builder, see `make_builder`.
      directory: the dataset's folder, finished or not.
    """
    tasks = []
    reader = READERS[record["dataset"]]
    root = Path(record["source"])
    root = root.parent if root.is_file() else root
    planned = reader.plan(dataset_json, tuple(record["splits"]), directory / PLAN_DIR)
    for split, scenes in planned.items():
        if not scenes:
            raise PrepareError(f"{dataset_json}: split {split!r} lists no scenes")
        for number, (scene_id, path) in enumerate(scenes.items()):
            shard = f"{record['dataset']}-{split}.array_record-{number:05d}-of-{len(scenes):05d}"
            tasks.append(
                SceneTask(
                    dataset=record["dataset"],
                    options=options,
                    split=split,
                    scene_id=scene_id,
                    scene_path=path,
                    scene_sha256=sha256(path) if path.is_file() else None,
                    root=root,
                    num_samples=num_samples(reader, path),
                    on_error=record["on_error"],
                    shard_path=directory / shard,
                    report_path=directory / REPORTS_DIR / f"{split}-{number:05d}.done.json",
                )
            )
    return tasks


def num_samples(reader: Any, scene_path: Path) -> int:
    """Number of samples in a scene that `reader.plan` listed; 0 for a broken scene."""
    try:
        return len(reader.Scene(scene_path))
    except RecordingError:
        return 0


def sha256(path: Path) -> str:
    """The checksum of a file, or of all the tables in a folder together."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def make_scenes(
    tasks: list[SceneTask], reports: dict[Path, dict[str, Any] | None], num_workers: int
) -> None:
    """Makes the scenes whose report is None in `reports` (by the report's path), and fills it."""
    todo = [task for task in tasks if reports[task.report_path] is None]
    done = sum(task.num_samples for task in tasks if reports[task.report_path])
    total = sum(task.num_samples for task in tasks)
    title = f"{tasks[0].dataset} {dict(tasks[0].options)['name']}"
    with tqdm(total=total, initial=done, unit="sample", desc=title, smoothing=0.05) as bar:
        run = _run_here if num_workers < 2 else functools.partial(_run_apart, num_workers)
        finished = len(tasks) - len(todo)
        for task, report in run(todo, bar.update):
            reports[task.report_path] = report
            finished += 1
            bar.set_postfix(scenes=f"{finished}/{len(tasks)}")


def read_report(path: Path) -> dict[str, Any] | None:
    """The report of a scene; None if missing. A damaged one is announced, renamed, then missing."""
    if not path.is_file():
        return None
    try:
        return files.read_json(path, "the report of a scene", "", REPORT_KEYS)
    except UserError as error:
        print(f"{error}Its scene is made again", file=sys.stderr)
        files.set_aside(path, "damaged")
        return None


def finished_report(task: SceneTask) -> dict[str, Any] | None:
    """An earlier run's report of the scene, if it still holds and its shard is whole; else None."""
    report = read_report(task.report_path)
    if report is None or report["scene_id"] != task.scene_id:
        return None
    if task.on_error == "stop" and report["skipped"]:
        return None
    if changed_source(task, report):
        return None
    if problem := prepared.file_problem(task.shard_path, report["shard"], fully=True):
        print(f"{problem}. It is made again", file=sys.stderr)
        return None
    return report


def changed_source(task: SceneTask, report: dict[str, Any]) -> Path | None:
    """The first file of the recording that has changed since the scene was made, if any."""
    if report["scene_sha256"] != task.scene_sha256:
        return task.scene_path
    paths = {task.root / name: known for name, known in report["files"].items()}
    return next((path for path, known in paths.items() if not _is_same(path, known)), None)


def _fingerprint(path: Path) -> list[Any] | None:
    """Size, time and checksum of a file; None where there is none."""
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, files.sha256(path)]


def _is_same(path: Path, known: list[Any] | None) -> bool:
    """Whether a file has the fingerprint. It is read only if size agrees and time does not."""
    if known is None or not path.is_file():
        return known is None and not path.is_file()
    status = path.stat()
    if status.st_size != known[0]:
        return False
    return status.st_mtime_ns == known[1] or files.sha256(path) == known[2]


def _run_here(
    tasks: list[SceneTask], advance: Callable[[int], Any]
) -> Iterator[tuple[SceneTask, dict[str, Any]]]:
    for task in tasks:
        yield task, write_scene(task, lambda: advance(1))


def _run_apart(
    num_workers: int, tasks: list[SceneTask], advance: Callable[[int], Any]
) -> Iterator[tuple[SceneTask, dict[str, Any]]]:
    """Scenes made by worker processes, as they finish; the first failure stops all workers."""
    context = multiprocessing.get_context("spawn")
    stop, counter = context.Event(), context.Value("q", 0)
    with concurrent.futures.ProcessPoolExecutor(
        min(num_workers, max(len(tasks), 1)), context, _start_worker, (stop, counter)
    ) as pool:
        waiting = {pool.submit(_write_in_worker, task): task for task in tasks}
        seen = 0
        try:
            while waiting:
                done, _ = concurrent.futures.wait(
                    waiting, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                written = counter.value  # read once: workers go on counting
                advance(written - seen)
                seen = written
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise PrepareError(
                "a worker process died (out of memory?); use fewer --num_workers and run the "
                "same command again to continue"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_worker_signals: tuple[Any, Any] | None = None  # (stop event, sample counter) of this worker


def _start_worker(stop: Any, counter: Any) -> None:
    """The worker ignores Ctrl-C, which the parent handles, and ends when the parent ends."""
    global _worker_signals
    _worker_signals = stop, counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files.end_with_parent()  # the thread that starts workers waits for them
    files.end_with_parent_process()


def _write_in_worker(task: SceneTask) -> dict[str, Any]:
    stop, counter = _worker_signals

    def tick() -> None:
        with counter.get_lock():
            counter.value += 1
        if stop.is_set():
            raise _StoppedError

    return write_scene(task, tick)


def write_scene(task: SceneTask, tick: Tick) -> dict[str, Any]:
    """Writes the scene's shard, then its report; each gets its final name when it is whole."""
    started = time.monotonic()
    report = {
        "scene_id": task.scene_id,
        "split": task.split,
        "scene_sha256": task.scene_sha256,
        "samples": 0,
        "record_bytes": 0,
        "points": {},
        "skipped": [],
        "files": {},
    }
    builder = make_builder(task.dataset, task.options)
    with files.replacing(task.shard_path) as temporary:
        with _shard_writer(temporary) as write:
            for example in _usable_examples(builder, task, report, tick):
                record = _serialised(builder, example)
                write(record)
                _count(report, example, len(record))
        _check_shard(temporary, report["samples"])
        size, digest = temporary.stat().st_size, files.sha256(temporary)
        report["shard"] = {"bytes": size, "sha256": digest}
    report["seconds"] = round(time.monotonic() - started, 3)
    files.write_json(task.report_path, files.sealed(report), indent=None)
    return report


def _serialised(builder: Any, example: dict[str, Any]) -> bytes:
    """The record, with the same bytes in every process: protobuf alone varies the fields' order."""
    record = builder.info.features.serialize_example(example)
    return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def _usable_examples(
    builder: Any, task: SceneTask, report: dict[str, Any], tick: Tick
) -> Iterator[dict[str, Any]]:
    """The scene's examples without the broken ones, which are skipped or raised (`on_error`).

    A sample beside a skipped one, or at an end of the scene, has no neighbour (-1) on that side. So
    each example is held back until the next one is known to be usable or not.
    """
    try:
        scene = READERS[task.dataset].Scene(task.scene_path, task.scene_id)
    except RecordingError as error:
        _skip(task, report, f"scene {task.scene_id} ({task.split})", error)
        return
    held = None
    for index in range(len(scene)):
        try:
            sample = scene.sample(index)
            for path in builder.files_of(sample):
                name = os.path.relpath(path, task.root)
                if name not in report["files"]:
                    report["files"][name] = _fingerprint(path)
            example = builder.example(sample)
        except RecordingError as error:
            what = f"sample {task.scene_id}/{index:06d} ({task.split})"
            _skip(task, report, what, error)
            example = None
        if example is not None and held is None:
            example["previous_index"] = -1
        if held is not None:
            held["next_index"] = -1 if example is None else index
            yield held
        held = example
        tick()
    if held is not None:
        held["next_index"] = -1
        yield held


def _skip(task: SceneTask, report: dict[str, Any], what: str, error: RecordingError) -> None:
    if task.on_error == "stop":
        raise error
    report["skipped"].append({"what": what, "why": str(error)})


def _count(report: dict[str, Any], example: dict[str, Any], record_bytes: int) -> None:
    report["samples"] += 1
    report["record_bytes"] += record_bytes
    for name, points in zip(example["camera_names"], example["lidar_counts"], strict=True):
        report["points"].setdefault(name, []).append(int(points))


@contextlib.contextmanager
def _shard_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Writes records. array_record reports a full disk as a bare RuntimeError, mostly on close."""
    try:
        with contextlib.closing(
            array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        ) as writer:
            yield writer.write
    except RuntimeError as error:
        raise OSError(errno.EIO, f"cannot be written: {error}", str(path)) from error


def _check_shard(path: Path, num_samples: int) -> None:
    """Raises OSError if records are missing: a full disk can leave a shard that opens."""
    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
    if found != num_samples:
        raise OSError(errno.ENOSPC, f"holds {found} records of {num_samples}", str(path))
