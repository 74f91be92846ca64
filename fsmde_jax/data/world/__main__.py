"""Writes a miniature world: `python -m fsmde_jax.data.world --out=RAW --layout=rig`.

Run again after an interruption, it goes on where it stopped.
"""

import pathlib
import shutil
import sys

from absl import app, flags

from fsmde_jax.data.world.nuscenes_layout import write_nuscenes
from fsmde_jax.data.world.rig_layout import write_rig
from fsmde_jax.data.world.writer import WorldConfig, write_world
from fsmde_jax.errors import UserError

OUT = flags.DEFINE_string("out", None, "The folder to make.", required=True)
# How a world in the DGP layout is written again in another one.
WRITERS = {"nuscenes": write_nuscenes, "rig": write_rig}
LAYOUT = flags.DEFINE_enum(
    "layout",
    "dgp",
    ["dgp", *WRITERS],
    "On disk: DDAD's layout (DGP), nuScenes' tables, or the folder of an own rig.",
)
SEED = flags.DEFINE_integer("seed", 0, "Other streets.")
TRAIN_SCENES = flags.DEFINE_integer("train_scenes", 32, "Streets to train on.")
VAL_SCENES = flags.DEFINE_integer("val_scenes", 8, "Streets to measure on.")
SAMPLES = flags.DEFINE_integer("samples_per_scene", 2, "Instants of a street, 2 s apart.")


def main(_) -> None:
    """Draws the world as the flags say."""
    out = pathlib.Path(OUT.value)
    try:
        config = WorldConfig(
            seed=SEED.value,
            train_scenes=TRAIN_SCENES.value,
            val_scenes=VAL_SCENES.value,
            samples_per_scene=SAMPLES.value,
            sample_stride=20,
            height=160,
            width=256,
        )
        if LAYOUT.value == "dgp":
            write_world(config, out)
        else:
            _write_as(LAYOUT.value, config, out)
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{LAYOUT.value} layout: {out}")


def _write_as(layout: str, config: WorldConfig, out: pathlib.Path) -> None:
    """Draws beside `out` in the DGP layout and puts the other one in place when it is whole."""
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or choose another --out")
    world, unfinished = (out.with_name(f"{out.name}.{part}") for part in ("dgp", "unfinished"))
    write_world(config, world)
    shutil.rmtree(unfinished, ignore_errors=True)
    WRITERS[layout](world, unfinished)
    unfinished.rename(out)
    shutil.rmtree(world)


if __name__ == "__main__":
    app.run(main)
