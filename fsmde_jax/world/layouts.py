"""Writes a miniature world in another layout than DGP's: nuScenes' tables, an own rig's folder."""

import dataclasses
import pathlib
from typing import Any

from fsmde_jax import files
from fsmde_jax.world.nuscenes_layout import write_nuscenes
from fsmde_jax.world.rig_layout import write_rig
from fsmde_jax.world.writer import CONFIG_FILE, WorldConfig, write_world

# How a world in the DGP layout is written again in another one.
WRITERS = {"nuscenes": write_nuscenes, "rig": write_rig}


def write_as(layout: str, config: WorldConfig, out: pathlib.Path) -> None:
    """Draws beside `out` in the DGP layout, goes on there after a kill, and then writes `out`.

    world_config.json in `out` says what it holds, so that the same call finds it done.

    Raises `UserError` where `out` holds anything else, or something is in the way beside it.
    """
    wanted = {"layout": layout, **dataclasses.asdict(config)}
    beside = files.unfinished(out.with_name(f"{out.name}.world"))
    with files.locked(beside.with_name(f"{beside.name}.lock"), f"writing {out}", remove=True):
        if not _holds(out, wanted):
            files.refuse_occupied(out)
            files.claim(beside)
            write_world(config, beside / "dgp")
            with files.new_folder(out) as partial:
                WRITERS[layout](beside / "dgp", partial)
                files.write_json(partial / CONFIG_FILE, wanted)
        if files.is_claimed(beside):
            files.remove_claimed(beside)


def _holds(out: pathlib.Path, wanted: dict[str, Any]) -> bool:
    path = out / CONFIG_FILE
    return path.is_file() and wanted == files.read_json(path, "what the folder holds", "")
