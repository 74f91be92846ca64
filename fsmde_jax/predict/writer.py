"""Predicts items and writes of each what was asked: maps, pictures, clouds, a recording, a film."""

import importlib.util
import pathlib
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from fsmde_jax import config as config_lib
from fsmde_jax import files, rig
from fsmde_jax.data.readers import rig_folder
from fsmde_jax.errors import UserError
from fsmde_jax.export import load as exported
from fsmde_jax.pictures import above, film, point_cloud, ring
from fsmde_jax.pictures.colours import COLOUR_MAP, MIN_DEPTH_M, depth_colours
from fsmde_jax.predict import forward, inputs, photos
from fsmde_jax.predict.inputs import Item
from fsmde_jax.run.load import load_student

UNIT_M = 1 / 256  # of the depth PNG; beyond 255.99 m it stays there
DEFAULT_SAVES = {
    "ring": ("depth", "npz", "confidence", "pictures", "panel", "cloud", "birds_eye", "rerun"),
    "photos": ("depth", "npz", "confidence", "pictures", "panel", "cloud"),
    "video": ("video",),
}
FIRST_SAVES = ("panel", "birds_eye", "cloud", "depth", "confidence", "pictures")
FIRST_MAX_DEPTH_M = 80.0
STREET = pathlib.Path(__file__).parents[1] / "assets" / "street-mini-world"
SAVES = (*DEFAULT_SAVES["ring"], "video")
RING_FPS = 4.0
# Keeps all: how high it gets differs from student to student.
MIN_CONFIDENCE = 0.0
PROBLEMS_FILE = "problems.txt"


def predict(
    workdir: pathlib.Path,
    out: pathlib.Path,
    what: pathlib.Path | None = None,
    *,
    split: str | None = None,
    focal_px: float | None = None,
    max_samples: int | None = None,
    saves: Sequence[str] | None = None,
    min_confidence: float = MIN_CONFIDENCE,
    max_depth_m: float | None = None,
) -> list[str]:
    """Predicts with the student of a run and writes `out`; what had to be left out, in words.

    The folder has its name once it is whole: after a kill the same command makes it anew. Raises
    `UserError` where nothing can be done, and on a disk that cannot be written.

    Args:
      what: `--input`; None is the data the run was trained on.
      saves: of `SAVES`; None is what suits the kind of input.
      max_depth_m: end of the colours' range and of clouds; None is the run's.
    """
    if focal_px is not None and focal_px <= 0:
        raise UserError(f"--focal_px={focal_px:g} must be positive")
    files.refuse_occupied(out)
    config = config_lib.load_config(workdir)
    student = load_student(config, workdir)
    return write(
        forward.compiled(student),
        inputs.open_inputs(what, config, workdir, split, focal_px),
        out,
        config.name,
        max_samples=max_samples,
        saves=saves,
        min_confidence=min_confidence,
        max_depth_m=max_depth_m or config.evaluation.picture_max_depth_m,
    )


def first_look(
    out: pathlib.Path,
    *,
    max_samples: int | None = None,
    saves: Sequence[str] | None = None,
    min_confidence: float = MIN_CONFIDENCE,
    max_depth_m: float | None = None,
) -> list[str]:
    """`predict` with the shipped student, on the shipped street of the miniature world."""
    files.refuse_occupied(out)
    student, about = exported.load_export(exported.SHIPPED["student-mini-world"])
    size = tuple(about["image_size"])
    return write(
        forward.compiled(student),
        inputs.of_recording("rig", rig_folder.find(STREET), "val", size),
        out,
        about["run"],
        max_samples=max_samples,
        saves=saves or FIRST_SAVES,
        min_confidence=min_confidence,
        max_depth_m=max_depth_m or FIRST_MAX_DEPTH_M,
    )


def write(
    run: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    source: inputs.Inputs,
    out: pathlib.Path,
    name: str,
    *,
    max_samples: int | None,
    saves: Sequence[str] | None,
    min_confidence: float,
    max_depth_m: float,
) -> list[str]:
    """`predict` with a student (`forward.compiled`) of that name and inputs that are open."""
    saves = _choose(saves, source.kind)
    count = min(source.count, max_samples or source.count)
    problems, remarks = [], {}
    with files.new_folder(out) as folder:
        writer = _Writer(folder, saves, source.fps or RING_FPS, min_confidence, max_depth_m)
        try:
            unit = {"ring": "ring", "photos": "photo", "video": "frame"}[source.kind]
            for item in tqdm(islice(source.items, max_samples), total=count, unit=f" {unit}"):
                if isinstance(item, UserError):
                    problems.append(str(item))
                    continue
                problems += item.problems
                if item.remarks:
                    remarks[item.name] = list(item.remarks)
                    tqdm.write(f"{item.name}: {'; '.join(item.remarks)}", file=sys.stderr)
                writer.add(item, *run(item.sample["image"], item.sample["intrinsics"]))
        finally:
            writer.close()
        if not writer.count:
            raise UserError("nothing could be predicted: " + "; ".join(problems[:3]))
        if problems:
            files.write_text(folder / PROBLEMS_FILE, "\n".join(problems) + "\n")
        about = _about(name, saves, min_confidence, max_depth_m) | {"remarks": remarks}
        files.write_json(folder / "about.json", about)
    return problems


def _choose(saves: Sequence[str] | None, kind: str) -> tuple[str, ...]:
    """What is written; packages that are missing are named before any work."""
    chosen = tuple(saves or DEFAULT_SAVES[kind])
    if unknown := sorted(set(chosen) - set(SAVES)):
        raise UserError(f"--save={','.join(unknown)}: use some of {', '.join(SAVES)}")
    if kind == "photos" and "video" in chosen:
        raise UserError("--save=video: photos are no film; use a video or a recording")
    if "rerun" in chosen and importlib.util.find_spec("rerun") is None:
        need = 'the package rerun-sdk: pip install -e ".[predict]"'
        if saves:
            raise UserError(f"--save=rerun needs {need}")
        print(f"no recording.rrd is written; it needs {need}", file=sys.stderr)
        chosen = tuple(name for name in chosen if name != "rerun")
    if "video" in chosen:
        photos.ffmpeg()
    return chosen


def _about(
    name: str, saves: Sequence[str], min_confidence: float, max_depth_m: float
) -> dict[str, Any]:
    """What the files mean, for about.json."""
    return {
        "run": name,
        "saved": list(saves),
        "depth": "z-depth along the optical axis, in metres; at the network's resolution",
        "depth_png_unit_m": UNIT_M,
        "confidence": "exp(-s), s the standard deviation of log depth; PNG: 255 is 1",
        "colours": f"{COLOUR_MAP}, logarithmic from {MIN_DEPTH_M:g} to {max_depth_m:g} m",
        "cloud": {"min_confidence": min_confidence, "max_depth_m": max_depth_m},
    }


class _Writer:
    """Writes items into a folder."""

    def __init__(
        self,
        out: pathlib.Path,
        saves: Sequence[str],
        fps: float,
        min_confidence: float,
        max_depth_m: float,
    ):
        self.out, self.saves, self.count = out, saves, 0
        self.min_confidence, self.max_depth_m = min_confidence, max_depth_m
        if "video" in saves:
            self.video = photos.VideoWriter(out / "video.mp4", fps)
        if "rerun" in saves:
            from fsmde_jax.predict.rerun_log import RerunLog  # only here: it is an extra

            self.rerun = RerunLog(out / "recording.rrd", max_depth_m)

    def add(
        self,
        item: Item,
        depth_m: Float[np.ndarray, "n h w"],
        confidence: Float[np.ndarray, "n h w"],
    ) -> None:
        """All that is asked for of one item."""
        for i, name in enumerate(item.file_names):
            self._write_camera(name, item.sample, i, depth_m[i], confidence[i])
        titles = tuple(camera or item.name for camera in item.cameras)
        if "panel" in self.saves:
            path = self._path("panel", item.name, ".png")
            ring.draw_ring(
                item.sample, {"depth": depth_m}, titles, self.max_depth_m, path, confidence
            )
        if {"cloud", "birds_eye", "rerun"} & set(self.saves):
            cloud = point_cloud.fuse_reliable(
                item.sample, depth_m, confidence, self.min_confidence, self.max_depth_m
            )
            lidar_m = point_cloud.of_lidar(item.sample)
        if "cloud" in self.saves:
            point_cloud.write_ply(self._path("cloud", item.name, ".ply"), cloud)
        if "birds_eye" in self.saves:
            path = self._path("birds_eye", item.name, ".png")
            above.draw_birds_eye(cloud, item.sample, titles, path, lidar_m)
        if "rerun" in self.saves:
            self.rerun.add(item, depth_m, cloud, lidar_m)
        if "video" in self.saves:
            left_first = np.argsort(-rig.yaw_rad(item.sample["vehicle_from_camera"]))
            images, depths = item.sample["image"][left_first], depth_m[left_first]
            self.video.add(film.stack_views(images, depths, self.max_depth_m))
        self.count += 1

    def _write_camera(
        self,
        name: str,
        sample: dict[str, np.ndarray],
        i: int,
        depth_m: Float[np.ndarray, "h w"],
        confidence: Float[np.ndarray, "h w"],
    ) -> None:
        pictures = {
            "depth": np.clip(np.rint(depth_m / UNIT_M), 0, 65535).astype(np.uint16),
            "confidence": np.rint(confidence * 255).astype(np.uint8),
            "pictures": np.rint(
                depth_colours(depth_m, self.max_depth_m) * 255
            ).astype(np.uint8),
        }  # fmt: skip
        for kind, array in pictures.items():
            if kind in self.saves:
                Image.fromarray(array).save(self._path(kind, name, ".png"))
        if "npz" in self.saves:
            np.savez_compressed(
                self._path("npz", name, ".npz"),
                depth_m=depth_m,
                confidence=confidence,
                intrinsics=sample["intrinsics"][i],
                vehicle_from_camera=sample["vehicle_from_camera"][i],
            )

    def _path(self, kind: str, name: str, suffix: str) -> pathlib.Path:
        path = self.out / kind / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        """Finishes the files that hold all items."""
        for name in {"rerun", "video"} & set(self.saves):
            getattr(self, name).close()
