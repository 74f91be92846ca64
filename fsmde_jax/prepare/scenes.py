"""Makes the prepared dataset of a raw recording, scene by scene, with several processes."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from array_record.python import array_record_module
from tensorflow_datasets.core import splits as tfds_splits
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
_REPORT_KEYS = ("scene_id", "split", "scene_sha256", "samples", "points", "skipped", "files")
_REPORT_KEYS += ("shard",)
_LISTED_SKIPS = 10
_CHECK_MARK = ".made_by_check"  # in the folder of pictures: they are ours to draw again

Tick = Callable[[], None]


class PrepareError(UserError):
    """The dataset cannot be made as asked; the text says why and what to do."""


class _StoppedError(Exception):
    """Another scene failed, so this worker gives up its own."""


@dataclasses.dataclass(frozen=True)
class SceneTask:
    """All that a worker needs to make one shard."""

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


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prepared dataset holds and what was left out."""

    directory: Path
    scenes: dict[str, int]  # by split; only those with samples
    samples: dict[str, int]  # by split
    points_per_image: dict[str, tuple[int, float, int]]  # by camera: min, median, max
    images: dict[str, int]  # by camera
    skipped: list[dict[str, str]]  # "what" and "why"
    seconds: float
    already_there: bool = False

    def table(self) -> str:
        """The summary as lines for a terminal."""
        head = "already prepared" if self.already_there else "prepared"
        lines = [f"{head}: {self.directory}"]
        for split, samples in self.samples.items():
            lines.append(f"  {split}: {self.scenes[split]} scenes, {samples} samples")
        lines.append(
            f"  {'camera':<16} {'images':>8} {'LiDAR points an image: min':>28} median max"
        )
        for camera, (fewest, median, most) in self.points_per_image.items():
            images = self.images[camera]
            lines.append(f"  {camera:<16} {images:>8}   {fewest}, {median:.0f}, {most}")
        lines.append(f"  {len(self.skipped)} skipped, {self.seconds:.1f} s")
        lines += [f"    {entry['what']}: {entry['why']}" for entry in self.skipped[:_LISTED_SKIPS]]
        if len(self.skipped) > _LISTED_SKIPS:
            more = len(self.skipped) - _LISTED_SKIPS
            lines.append(f"    and {more} more, all in {self.directory / 'skipped.json'}")
        return "\n".join(lines)


def prepare(
    dataset: str,
    source: Path,
    data_dir: Path,
    image_size: tuple[int, int],
    image_format: str = "jpeg",
    dense_depth: bool = False,
    on_error: str = "stop",
    num_workers: int = 0,
    splits: tuple[str, ...] = ("train", "val"),
    config_name: str | None = None,
) -> Summary:
    """Makes `<data_dir>/<dataset>/<config_name>/<version>/`, or continues, or finds it made.

    Raises `PrepareError` or `RecordingError` naming the file at fault; then nothing that looks
    whole is left.

    Args:
      source: the recording's folder, or its dataset JSON.
      image_size: (height, width) of the stored images.
      on_error: "stop" at the first bad file, or "skip" the sample or scene and count it.
      num_workers: processes; 0 or 1 works in this one.
      config_name: folder name, "<height>x<width>" with suffixes by default.
    """
    started = time.monotonic()
    name = config_name or default_config_name(image_size, image_format, dense_depth)
    _check_arguments(dataset, image_size, image_format, dense_depth, on_error, name)
    record = {
        "dataset": dataset,
        "source": str(Path(source).resolve()),
        "config_name": name,
        "image_size": list(image_size),
        "image_format": image_format,
        "dense_depth": dense_depth,
        "splits": list(splits),
        "on_error": on_error,
    }
    options = {"name": name, "image_size": tuple(image_size), "image_format": image_format}
    if dense_depth:
        options["optional"] = ("dense_depth_m",)
    builder = make_builder(dataset, tuple(options.items()))
    final = prepared.version_dir(data_dir, dataset, name)
    incomplete = prepared.incomplete_dir(data_dir, dataset, name)
    try:
        dataset_json = find_source(dataset, Path(source))
    except PrepareError as error:
        if not final.exists():
            raise
        return _without_source(builder, final, record, error)
    record["dataset_json_sha256"] = _sha256(dataset_json)
    plan = functools.partial(_plan, dataset_json, record, tuple(options.items()))
    if not final.exists():
        with _locked(final):
            if not final.exists():  # another process may just have finished it
                _begin(incomplete, record)
                tasks = plan(incomplete)
                reports = {task.report_path: _finished_report(task) for task in tasks}
                _make_scenes(tasks, reports, num_workers)
                seconds = time.monotonic() - started
                summary = _summarise(builder, final, list(reports.values()), seconds)
                _write_metadata(builder, incomplete, tasks, reports, summary, record)
                os.rename(incomplete, final)
                return summary
    return _existing(builder, final, record, plan, num_workers)


def _locked(final: Path) -> contextlib.AbstractContextManager[None]:
    lock = final.with_name(f"{final.name}.lock")
    return files.locked(lock, f"preparing {final}", remove=True)


def default_config_name(image_size: tuple[int, int], image_format: str, dense_depth: bool) -> str:
    """For example "384x640", "96x160_png_dense"."""
    parts = [f"{image_size[0]}x{image_size[1]}"]
    return "_".join(parts + ["png"] * (image_format == "png") + ["dense"] * dense_depth)


def _check_arguments(
    dataset: str,
    image_size: tuple[int, int],
    image_format: str,
    dense_depth: bool,
    on_error: str,
    name: str,
) -> None:
    if dataset not in READERS:
        raise PrepareError(f"dataset {dataset!r} is unknown; use one of {', '.join(READERS)}")
    if min(image_size) < 1:
        raise PrepareError(f"image_size {image_size} must be positive (height, width)")
    if image_format not in ("jpeg", "png"):
        raise PrepareError(f"image_format {image_format!r} is unknown; use jpeg or png")
    if on_error not in ("stop", "skip"):
        raise PrepareError(f"on_error {on_error!r} is unknown; use stop or skip")
    if dense_depth and dataset != "world":
        raise PrepareError(f"dense_depth needs the dataset world; {dataset} has no dense truth")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise PrepareError(f"config_name {name!r} must be a plain folder name")


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
    """(height, width) of the stored images where none is asked for."""
    return _builder_class(dataset).DEFAULT_CONFIG.image_size


def _builder_class(dataset: str) -> Any:
    """Imported by name, so that it is never defined in `__main__`."""
    return importlib.import_module(f"tfds_builders.{dataset}.{dataset}_dataset_builder").Builder


@functools.lru_cache(maxsize=4)
def make_builder(dataset: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """The dataset's builder."""
    builder = _builder_class(dataset)
    config = type(builder.DEFAULT_CONFIG)(**dict(options))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is not listed
    try:
        # Only its schema and `example` serve; the data directory is ours.
        return builder(config=config, data_dir=os.devnull)
    finally:
        logging.set_verbosity(verbosity)


def _plan(
    dataset_json: Path,
    record: dict[str, Any],
    options: tuple[tuple[str, Any], ...],
    directory: Path,
) -> list[SceneTask]:
    """One task a scene and split, each with the name of its shard."""
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
                    scene_sha256=_sha256(path) if path.is_file() else None,
                    root=root,
                    num_samples=num_samples(reader, path),
                    on_error=record["on_error"],
                    shard_path=directory / shard,
                    report_path=directory / REPORTS_DIR / f"{split}-{number:05d}.done.json",
                )
            )
    return tasks


def num_samples(reader: Any, scene_path: Path) -> int:
    """Of a scene that `reader.plan` listed; 0 for a broken one."""
    try:
        return len(reader.Scene(scene_path))
    except RecordingError:
        return 0


def _sha256(path: Path) -> str:
    """Of a file, or of the tables in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


# The scenes


def _make_scenes(
    tasks: list[SceneTask], reports: dict[Path, dict[str, Any] | None], num_workers: int
) -> None:
    """Makes the scenes that `reports`, by the report's path, has as None, and fills it."""
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


def _read_report(path: Path) -> dict[str, Any] | None:
    """The report of a scene; a damaged one is told, set aside and taken as missing."""
    if not path.is_file():
        return None
    try:
        return files.read_json(path, "the report of a scene", "", _REPORT_KEYS)
    except UserError as error:
        print(f"{error}Its scene is made again", file=sys.stderr)
        files.set_aside(path, "damaged")
        return None


def _finished_report(task: SceneTask) -> dict[str, Any] | None:
    """The report of an earlier run, if it still holds for this one and its shard is whole."""
    report = _read_report(task.report_path)
    if report is None or report["scene_id"] != task.scene_id:
        return None
    if task.on_error == "stop" and report["skipped"]:
        return None
    if _changed_source(task, report):
        return None
    if problem := prepared.file_problem(task.shard_path, report["shard"], fully=True):
        print(f"{problem}. It is made again", file=sys.stderr)
        return None
    return report


def _changed_source(task: SceneTask, report: dict[str, Any]) -> Path | None:
    """The first file of the recording that is not as it was when the scene was made."""
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
    """Whether a file has the fingerprint; it is read only where its time alone is another."""
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
    """Scenes from worker processes as they come; the first failure stops all workers."""
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
    """Ctrl-C is the parent's business; a parent that dies takes the worker along."""
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
    """Writes the scene's shard, then its report; neither is seen before it is whole."""
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
    """The record, the same bytes in every process: left alone, protobuf shuffles the fields."""
    record = builder.info.features.serialize_example(example)
    return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)


def _usable_examples(
    builder: Any, task: SceneTask, report: dict[str, Any], tick: Tick
) -> Iterator[dict[str, Any]]:
    """The scene's examples, one held back until it is known whether the next one is usable.

    A sample next to a skipped one, or at an end, has no neighbour (-1) on that side.
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
    """Writes records; array_record reports a full disk as a bare RuntimeError, mostly on close."""
    try:
        with contextlib.closing(
            array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        ) as writer:
            yield writer.write
    except RuntimeError as error:
        raise OSError(errno.EIO, f"cannot be written: {error}", str(path)) from error


def _check_shard(path: Path, num_samples: int) -> None:
    """A full disk can leave a shard that opens but holds less than was written."""
    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
    if found != num_samples:
        raise OSError(errno.ENOSPC, f"holds {found} records of {num_samples}", str(path))


# The folder


def _begin(incomplete: Path, record: dict[str, Any]) -> None:
    """The incomplete folder, begun now or by an equal command before."""
    incomplete.mkdir(parents=True, exist_ok=True)
    for leftover in incomplete.rglob(f"{files.UNFINISHED}*"):  # of a kill
        leftover.unlink()
    record_path = incomplete / prepared.RECORD_FILE
    if record_path.is_file():
        there = _read_record(incomplete)
        if any(incomplete.glob(f"{REPORTS_DIR}/*.done.json")):
            _refuse_other(incomplete, there, record)
        elif there != record:  # a plan of other tables or splits
            shutil.rmtree(incomplete / PLAN_DIR, ignore_errors=True)
    files.write_json(record_path, files.sealed(record))


def _read_record(directory: Path) -> dict[str, Any]:
    what = "what the folder was made with"
    return files.read_json(directory / prepared.RECORD_FILE, what, f"Move {directory} away")


def _refuse_other(directory: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises where a folder was made with another source or configuration.

    The recording of finished data may have moved, since its scenes are compared file by file; but
    a plan on disk holds paths.
    """
    may_move = directory.name == prepared.VERSION and not (directory / PLAN_DIR).exists()
    may_differ = {"on_error", "source"} if may_move else {"on_error"}
    differ = [key for key in asked if key not in may_differ and there.get(key) != asked[key]]
    if differ:
        there_text = ", ".join(f"{key}={there.get(key)}" for key in differ)
        asked_text = ", ".join(f"{key}={asked[key]}" for key in differ)
        raise PrepareError(
            f"{directory} was made with {there_text}; now asked: {asked_text}. Remove that "
            "folder, or choose another --config_name or --data_dir"
        )


def _existing(
    builder: Any,
    final: Path,
    record: dict[str, Any],
    plan: Callable[[Path], list[SceneTask]],
    num_workers: int,
) -> Summary:
    """The summary of a finished dataset that came from this very recording.

    What is missing or cut there is made again; nothing is removed, only set aside.
    """
    there = _record_of_finished(final)
    _refuse_other(final, there, record)
    tasks = plan(final)
    reports = {task.report_path: _read_report(task.report_path) for task in tasks}
    for task in tasks:
        report = reports[task.report_path]
        if report and (changed := _changed_source(task, report)):
            drawn = "delete its scene, which is then drawn again" * (task.dataset == "world")
            raise PrepareError(
                f"{final} was made from another version of {changed}: "
                f"{drawn or 'restore that file'}, or remove the folder, or choose another "
                "--config_name or --data_dir"
            )
        problem = report and prepared.file_problem(task.shard_path, report["shard"], fully=False)
        if problem:
            print(f"{problem}. It is made again", file=sys.stderr)
            reports[task.report_path] = None
    if None in reports.values() or not _metadata_is_whole(final, tasks, reports):
        with _locked(final):
            for task in tasks:
                if reports[task.report_path] is None and task.shard_path.exists():
                    files.set_aside(task.shard_path, "damaged")
            _make_scenes(tasks, reports, num_workers)
            summary = _summarise(builder, final, list(reports.values()), there["seconds"])
            _write_metadata(builder, final, tasks, reports, summary, record)
            return summary
    summary = _summarise(builder, final, list(reports.values()), there["seconds"])
    return dataclasses.replace(summary, already_there=True)


def _record_of_finished(final: Path) -> dict[str, Any]:
    if not (final / prepared.RECORD_FILE).is_file():
        raise PrepareError(f"{final} exists but was not made by fsmde_jax.prepare; remove it")
    return _read_record(final)


def _metadata_is_whole(
    final: Path, tasks: list[SceneTask], reports: dict[Path, dict[str, Any]]
) -> bool:
    """Whether rig.json describes these shards, and TFDS's files are as they were written.

    What is not as it was is told and set aside.
    """
    try:
        written = prepared.read_rig(final)["files"]
    except UserError as error:
        print(error, file=sys.stderr)
        if (final / prepared.RIG_FILE).exists():
            files.set_aside(final / prepared.RIG_FILE, "damaged")
        return False
    whole = _shards(tasks, reports).items() <= written.items()
    for name in written.keys() - _shards(tasks, reports).keys():
        if problem := prepared.file_problem(final / name, written[name], fully=True):
            print(f"{problem}. It is made again", file=sys.stderr)
            if (final / name).exists():
                files.set_aside(final / name, "damaged")
            whole = False
    return whole


def _shards(
    tasks: list[SceneTask], reports: dict[Path, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Size and checksum of each shard, by its name."""
    return {task.shard_path.name: reports[task.report_path]["shard"] for task in tasks}


def _without_source(
    builder: Any, final: Path, record: dict[str, Any], missing: PrepareError
) -> Summary:
    """The summary of a finished dataset whose recording is gone, if its files are there."""
    there = _record_of_finished(final)
    _refuse_other(final, there, record)
    for name, written in prepared.read_rig(final)["files"].items():
        if problem := prepared.file_problem(final / name, written, fully=False):
            raise PrepareError(f"{problem}, and cannot be made again: {missing}")
    reports = [
        files.read_json(path, "the report of a scene", prepared.again(final), _REPORT_KEYS)
        for split in record["splits"]
        for path in sorted((final / REPORTS_DIR).glob(f"{split}-*.done.json"))
    ]
    summary = _summarise(builder, final, reports, there["seconds"])
    return dataclasses.replace(summary, already_there=True)


def verify(final: Path) -> tuple[int, list[str]]:
    """Reads a finished dataset's files whole: how many there are, and in words what is wrong.

    Raises `UserError` where there is no such dataset, or its rig.json is damaged.
    """
    problems = []
    written = prepared.read_rig(final)["files"]
    for name in tqdm(written, desc="verifying", unit="file"):
        if problem := prepared.file_problem(final / name, written[name], fully=True):
            problems.append(problem)
    return len(written), problems


def _summarise(builder: Any, final: Path, reports: list[dict[str, Any]], seconds: float) -> Summary:
    """Adds up the reports; an empty split is an error."""
    points: dict[str, list[int]] = {}
    scenes: dict[str, int] = {}
    samples: dict[str, int] = {}
    for report in reports:
        split = report["split"]
        scenes[split] = scenes.get(split, 0) + (report["samples"] > 0)
        samples[split] = samples.get(split, 0) + report["samples"]
        for camera, counts in report["points"].items():
            points.setdefault(camera, []).extend(counts)
    skipped = [entry for report in reports for entry in report["skipped"]]
    for split, count in samples.items():
        if not count:
            raise PrepareError(
                f"every sample of split {split!r} was skipped, first: {skipped[0]['why']}"
            )
    cameras = sorted(points, key=builder.rank)
    return Summary(
        directory=final,
        scenes=scenes,
        samples=samples,
        points_per_image={
            name: (min(points[name]), float(np.median(points[name])), max(points[name]))
            for name in cameras
        },
        images={name: len(points[name]) for name in cameras},
        skipped=skipped,
        seconds=seconds,
    )


def _write_metadata(
    builder: Any,
    directory: Path,
    tasks: list[SceneTask],
    reports: dict[Path, dict[str, Any]],
    summary: Summary,
    record: dict[str, Any],
) -> None:
    """TFDS's own files, the skipped samples, the record of how it was made, and the rig."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=record["dataset"], filetype_suffix="array_record"
    )
    split_infos = []
    for split in record["splits"]:
        of_split = [report for report in reports.values() if report["split"] == split]
        split_infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report["samples"] for report in of_split],
                num_bytes=sum(report["record_bytes"] for report in of_split),
                filename_template=template.replace(split=split),
            )
        )
    builder.info.set_file_format("array_record", override=True)
    builder.info.set_splits(tfds_splits.SplitDict(split_infos))
    # What TFDS writes is put in place file by file, each whole.
    tfds_files = {}
    with tempfile.TemporaryDirectory() as folder:
        builder.info.write_to_directory(folder)
        for path in sorted(Path(folder).iterdir()):
            with files.replacing(directory / path.name) as partial:
                shutil.copyfile(path, partial)
            digest = files.sha256(directory / path.name)
            tfds_files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    rig = {
        "dataset": record["dataset"],
        "config_name": record["config_name"],
        "cameras": list(summary.points_per_image),
        "prepared_size": record["image_size"],
        "splits": summary.samples,
        # In the order of the samples.
        "scenes": {
            split: {r["scene_id"]: r["samples"] for r in reports.values() if r["split"] == split}
            for split in record["splits"]
        },
        "points_per_image": summary.points_per_image,
        "max_points_per_image": max(most for _, _, most in summary.points_per_image.values()),
        "files": {**_shards(tasks, reports), **tfds_files},
    }
    files.write_json(directory / "skipped.json", summary.skipped)
    record = {**record, "seconds": round(summary.seconds, 1)}
    files.write_json(directory / prepared.RECORD_FILE, files.sealed(record))
    files.write_json(directory / prepared.RIG_FILE, files.sealed(rig))
