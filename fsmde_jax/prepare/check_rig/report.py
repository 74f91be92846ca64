"""Looks at a recording and reports, in words and pictures, what looks wrong."""

import collections
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from fsmde_jax.data.readers.recording import RecordingError
from fsmde_jax.errors import UserError
from fsmde_jax.pictures import ring
from fsmde_jax.pictures.above import draw_from_above
from fsmde_jax.prepare.check_rig import geometry, images
from fsmde_jax.prepare.check_rig.frame import Finding, Frame, evenly, project, read

SCENES = 6  # looked at, evenly spaced
_SUFFIXES = ("_above.png", "_lidar.png")


def check(reader: ModuleType, source: Path, splits: tuple[str, ...], out: Path) -> str:
    """Looks at a recording; returns the findings in words, "" if nothing looks wrong.

    Pictures go into `out`: for each scene looked at, `<scene>_above.png` and `<scene>_lidar.png`.

    Raises:
      FileNotFoundError: there is no such recording.
      UserError: `out` holds other files.
    """
    _refuse_foreign(out)
    found: dict[tuple[str, str], list[tuple[str, str]]] = collections.defaultdict(list)

    def note(scene: str, finding: Finding) -> None:
        found[finding.what, finding.fault].append((scene, finding.text))

    with tempfile.TemporaryDirectory(prefix="fsmde_jax_plan_") as folder:
        try:
            planned = reader.plan(reader.find(source), splits, Path(folder))
        except RecordingError as error:
            return f"{error.path}: {error.problem}"
        scenes = [item for of_split in planned.values() for item in of_split.items()]
        if not scenes:
            return f"{source}: the splits {', '.join(splits)} list no scenes"
        scenes = evenly(scenes, SCENES)
        for scene_id, path in scenes:
            frames, broken = read(reader, path, scene_id)
            for error in broken:
                note(scene_id, Finding(str(error.path), "unreadable", error.problem))
            if frames:
                _draw(frames[0], out)
                for finding in findings(frames):
                    note(scene_id, finding)
    lines = []
    for (what, _), places in found.items():
        in_scenes = sorted({scene for scene, _ in places})
        where = f" [{len(in_scenes)} of {len(scenes)} scenes: {', '.join(in_scenes)}]"
        lines.append(f"{what}: {places[0][1]}{where}")
    return "\n".join(lines)


def findings(frames: list[Frame]) -> list[Finding]:
    """What looks wrong in frames of one scene; only images of sound cameras are compared."""
    if height := geometry.sweep_height(frames[0]):
        return [height]
    found = geometry.camera_findings(frames[0])
    if unit := geometry.sweep_unit(frames[0]):
        return [*found, unit]
    suspects = {name for finding in found for name in finding.what.split(" and ")}
    cameras = frames[0].sample.cameras
    sound = [i for i, camera in enumerate(cameras) if camera.name not in suspects]
    return found + images.findings(frames, sound)


def _refuse_foreign(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others := [
        name for name in names if not name.startswith(".") and not name.endswith(_SUFFIXES)
    ]:
        raise UserError(
            f"{out} holds {', '.join(others[:3])}: nothing is drawn between other files. Move them "
            "away"
        )


def _draw(frame: Frame, out: Path) -> None:
    """The ring from above, and LiDAR over every image."""
    cameras, points_m = frame.sample.cameras, frame.world_points_m()
    name = frame.sample.scene_id.replace("/", "_")
    draw_from_above(
        [camera.name for camera in cameras],
        np.stack([camera.vehicle_from_camera for camera in cameras]),
        np.stack([camera.intrinsics for camera in cameras]),
        [camera.size[1] for camera in cameras],
        frame.vehicle_points_m(cameras[0]),
        out / f"{name}{_SUFFIXES[0]}",
    )
    overlays = []
    for camera, image in zip(cameras, frame.images, strict=True):
        xy, depth_m, inside = project(points_m, camera)
        scale = image.shape[1] / camera.size[1]
        overlays.append((camera, image, xy[inside] * scale, depth_m[inside]))
    ring.draw_overlays(overlays, out / f"{name}{_SUFFIXES[1]}")
