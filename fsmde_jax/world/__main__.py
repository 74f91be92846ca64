"""Writes a miniature world: `python -m fsmde_jax.world --out=RAW --layout=rig`.

Run again after an interruption, it goes on where it stopped.
"""

import pathlib

from absl import app, flags

from fsmde_jax import cli
from fsmde_jax.errors import UserError
from fsmde_jax.world.layouts import WRITERS, write_as
from fsmde_jax.world.writer import WorldConfig, write_world

OUT = flags.DEFINE_string("out", None, "The folder to make.", required=True)
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
    with cli.errors_as_lines():
        _write(out)
    print(f"{LAYOUT.value} layout: {out}")


def _write(out: pathlib.Path) -> None:
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
    except ValueError as error:
        raise UserError(str(error)) from error
    if LAYOUT.value == "dgp":
        write_world(config, out)
    else:
        write_as(LAYOUT.value, config, out)


if __name__ == "__main__":
    app.run(main)
