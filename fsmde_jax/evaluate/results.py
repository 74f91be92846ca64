"""The results file: results.json, which programs read, and results.md, which people read."""

import json
import pathlib
import re
from typing import Any

from fsmde_jax import files
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import tables

FILE = "results.json"


def write(folder: pathlib.Path, about: dict[str, Any], methods: dict[str, dict]) -> None:
    """Writes both files into `folder`, each whole or not at all.

    Args:
      about: as `report.about` makes it, and `measured`, which `refuse_foreign` compares.
      methods: figures by method, as `averages.Scores.compute` makes them.
    """
    files.write_json(folder / FILE, {"about": about, "methods": methods})
    files.write_text(folder / "results.md", tables.describe(about, methods) + "\n")


def refuse_foreign(folder: pathlib.Path, measured: str | None) -> None:
    """Raises `UserError` where `folder` holds other files, or the report of another run.

    Args:
      measured: the run or predictions that the new report is about, as `about` names them. A
        report of an older version does not name them and passes. None accepts every report: the
        folder belongs to the run.
    """
    is_report = lambda found: found["about"]["settings"] and found["methods"]  # noqa: E731
    files.refuse_foreign(folder, FILE, is_report)
    if measured and (folder / FILE).is_file():
        found = read(folder)["about"].get("measured", measured)
        if found != measured:
            raise UserError(
                f"{folder} holds the report of {found!r}, and this is one of {measured!r}: choose "
                "another --out"
            )


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a results.json.

    Args:
      path: the file, the folder of a report, or that of a run.

    Raises `UserError` where there is none, or it cannot be read.
    """
    candidates = [path, path / "results.json", path / "report" / "results.json"]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise UserError(f"{path}: there is no results.json; `fsmde_jax.evaluate` writes one")
    try:
        content = json.loads(found.read_text())
        methods = list(content["methods"].values())
        if not methods or any(
            not {"mean", "scenes", "images"} <= found.keys() for found in methods
        ):
            raise ValueError("it has no figures")
        content["about"]["settings"] = _with_all_settings(content["about"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{found} is no results file of this version ({error!r})") from error
    return content


def _with_all_settings(about: dict[str, Any]) -> dict[str, Any]:
    """A result's settings; those that an older version did not record are filled in.

    That version's "surrounddepth" is today's "ssdepth": it mirrored nothing, except where
    `flip_average` asked for it, and then without ramps.
    """
    settings, text = about["settings"], about.get("text", "")
    if "mirroring" in settings:
        return settings
    name, masks = settings.get("protocol"), settings.get("masks", "")
    lidar_rule = "nuscenes-devkit" if settings.get("dataset") == "nuscenes" else "dgp"
    limits = re.search(r", ([\d.e+-]+) to [\d.e+-]+ m,", text)
    low_m = 0.0 if name in ("vfdepth", "packnet") else 0.1
    return settings | {
        "protocol": "ssdepth" if name == "surrounddepth" else name,
        "lidar_rule": "none" if settings.get("truth") == "dense" else lidar_rule,
        "mirroring": "mean" if "averaged with the mirror image" in text else "none",
        "min_depth_m": float(limits[1]) if limits else low_m,
        "mask_rule": "none" if masks in ("", "estimate") else "own size, above 127",
        "short_batch": "counted" if name == "vfdepth" else "none",
    }
