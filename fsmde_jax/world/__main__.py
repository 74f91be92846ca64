"""Writes a miniature world: streets, six cameras and a LiDAR, as a raw recording.

    python -m fsmde_jax.world --out=RAW --layout=rig
    python -m fsmde_jax.world --out=RAW --train_scenes=2 --val_scenes=1

The same command goes on after an interruption.
"""

import pathlib

from absl import flags

from fsmde_jax import cli
from fsmde_jax.errors import UserError
from fsmde_jax.world.layouts import WRITERS, write_as
from fsmde_jax.world.writer import WorldConfig, write_world


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("out", None, "The folder to make.", required=True)
    flags.DEFINE_enum("layout", "dgp", ["dgp", *WRITERS], "DDAD's, nuScenes' or an own rig's.")
    flags.DEFINE_integer("seed", 0, "Other streets.")
    flags.DEFINE_integer("train_scenes", 32, "Streets to train on.")
    flags.DEFINE_integer("val_scenes", 8, "Streets to measure on.")
    flags.DEFINE_integer("samples_per_scene", 2, "Instants of a street, 2 s apart.")


def main(_) -> None:
    """Draws the world as the flags say."""
    values, out = flags.FLAGS, pathlib.Path(flags.FLAGS.out)
    try:
        config = WorldConfig(
            seed=values.seed,
            train_scenes=values.train_scenes,
            val_scenes=values.val_scenes,
            samples_per_scene=values.samples_per_scene,
            sample_stride=20,
            height=160,
            width=256,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if values.layout == "dgp":
        write_world(config, out)
    else:
        write_as(values.layout, config, out)
    print(f"{values.layout} layout: {out}")


if __name__ == "__main__":
    cli.start(__name__)
