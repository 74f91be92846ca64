"""Makes, continues, compares, describes and verifies the folder of a prepared dataset."""

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import splits as tfds_splits
from tqdm import tqdm

from fsmde_jax import files
from fsmde_jax.data import prepared
from fsmde_jax.errors import UserError
from fsmde_jax.prepare import scenes
from fsmde_jax.prepare.scenes import PrepareError, SceneTask

_LISTED_SKIPS = 10


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prepared dataset holds, and what was left out of it."""

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
    """Makes `<data_dir>/<dataset>/<config_name>/<version>/`, or continues it, or finds it finished.

    Raises `PrepareError` or `RecordingError`, which name the file at fault. No folder that looks
    finished is left behind then.

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
    builder = scenes.make_builder(dataset, tuple(options.items()))
    final = prepared.version_dir(data_dir, dataset, name)
    incomplete = prepared.incomplete_dir(data_dir, dataset, name)
    try:
        dataset_json = scenes.find_source(dataset, Path(source))
    except PrepareError as error:
        if not final.exists():
            raise
        return _without_source(builder, final, record, error)
    record["dataset_json_sha256"] = scenes.sha256(dataset_json)
    plan = functools.partial(scenes.plan, dataset_json, record, tuple(options.items()))
    if not final.exists():
        with _locked(final):
            if not final.exists():  # another process may just have finished it
                _begin(incomplete, record)
                tasks = plan(incomplete)
                reports = {task.report_path: scenes.finished_report(task) for task in tasks}
                scenes.make_scenes(tasks, reports, num_workers)
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
    if dataset not in scenes.READERS:
        raise PrepareError(
            f"dataset {dataset!r} is unknown; use one of {', '.join(scenes.READERS)}"
        )
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


def _begin(incomplete: Path, record: dict[str, Any]) -> None:
    """Begins the incomplete folder, or continues one that the same command began."""
    incomplete.mkdir(parents=True, exist_ok=True)
    for leftover in incomplete.rglob(f"{files.UNFINISHED}*"):  # left by a killed process
        leftover.unlink()
    record_path = incomplete / prepared.RECORD_FILE
    if record_path.is_file():
        there = _read_record(incomplete)
        if any(incomplete.glob(f"{scenes.REPORTS_DIR}/*.done.json")):
            _refuse_other(incomplete, there, record)
        elif there != record:  # the plan was made of other tables or splits
            shutil.rmtree(incomplete / scenes.PLAN_DIR, ignore_errors=True)
    files.write_json(record_path, files.sealed(record))


def _read_record(directory: Path) -> dict[str, Any]:
    what = "what the folder was made with"
    return files.read_json(directory / prepared.RECORD_FILE, what, f"Move {directory} away")


def _refuse_other(directory: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises `PrepareError` where a folder was made from another source or with other options.

    The recording of finished data may have moved, because its scenes are compared file by file.
    But it may not where a plan is stored: that holds paths.
    """
    may_move = directory.name == prepared.VERSION and not (directory / scenes.PLAN_DIR).exists()
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
    """The summary of a finished dataset, after a look whether it came from this recording.

    Missing or cut files are made again. Nothing is removed, only renamed.
    """
    there = _record_of_finished(final)
    _refuse_other(final, there, record)
    tasks = plan(final)
    reports = {task.report_path: scenes.read_report(task.report_path) for task in tasks}
    for task in tasks:
        report = reports[task.report_path]
        if report and (changed := scenes.changed_source(task, report)):
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
            scenes.make_scenes(tasks, reports, num_workers)
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

    A damaged file is reported and renamed.
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
    """The summary of a finished dataset whose recording is gone; raises if a file is missing."""
    there = _record_of_finished(final)
    _refuse_other(final, there, record)
    for name, written in prepared.read_rig(final)["files"].items():
        if problem := prepared.file_problem(final / name, written, fully=False):
            raise PrepareError(f"{problem}, and cannot be made again: {missing}")
    reports = [
        files.read_json(path, "the report of a scene", prepared.again(final), scenes.REPORT_KEYS)
        for split in record["splits"]
        for path in sorted((final / scenes.REPORTS_DIR).glob(f"{split}-*.done.json"))
    ]
    summary = _summarise(builder, final, reports, there["seconds"])
    return dataclasses.replace(summary, already_there=True)


def verify(final: Path) -> tuple[int, list[str]]:
    """Reads every file of a finished dataset; returns their number and, in words, what is wrong.

    Raises `UserError` where there is no such dataset, or its rig.json is damaged.
    """
    problems = []
    written = prepared.read_rig(final)["files"]
    for name in tqdm(written, desc="verifying", unit="file"):
        if problem := prepared.file_problem(final / name, written[name], fully=True):
            problems.append(problem)
    return len(written), problems


def _summarise(builder: Any, final: Path, reports: list[dict[str, Any]], seconds: float) -> Summary:
    """Adds up the reports; raises `PrepareError` for a split without samples."""
    points: dict[str, list[int]] = {}
    with_samples: dict[str, int] = {}
    samples: dict[str, int] = {}
    for report in reports:
        split = report["split"]
        with_samples[split] = with_samples.get(split, 0) + (report["samples"] > 0)
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
        scenes=with_samples,
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
    # TFDS writes elsewhere first, so that each of its files is whole here or not there.
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
