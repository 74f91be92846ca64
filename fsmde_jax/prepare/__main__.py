"""Turns a raw recording into the prepared dataset, scene by scene, with several processes.

    python -m fsmde_jax.prepare --dataset=ddad --source=RAW --data_dir=data
    python -m fsmde_jax.prepare --dataset=rig --source=RAW --data_dir=data --check

Every finished scene is a shard with a report beside it in <version>.incomplete/; the
same command goes on where an interrupted one stopped. Only when all scenes and the
metadata are there is the folder renamed to <version>/, so what has that name is whole.

On finished data the same command looks whether the recording is still the one that it
was made from (a report has size, time and SHA-256 of every file that was read) and
makes again what is missing or cut.
"""

import re
from pathlib import Path

from absl import flags

from fsmde_jax import cli
from fsmde_jax.data import prepared
from fsmde_jax.errors import UserError
from fsmde_jax.prepare import folder, scenes


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_enum(
        "dataset", None, list(scenes.READERS), "Which kind of recording.", required=True
    )
    flags.DEFINE_string("source", None, "The raw recording's folder.", required=True)
    flags.DEFINE_string("data_dir", None, "Where prepared datasets go.", required=True)
    flags.DEFINE_string("image_size", None, "Height x width of the stored images, like 384x640.")
    flags.DEFINE_enum("image_format", "jpeg", ("jpeg", "png"), "JPEG has quality 95.")
    flags.DEFINE_bool("dense_depth", False, "Store dense truth, too (world only).")
    flags.DEFINE_enum("on_error", "stop", ("stop", "skip"), "What a bad file leads to.")
    flags.DEFINE_integer("num_workers", cli.num_cores(), "Processes; 0 or 1: this one.")
    flags.DEFINE_list("splits", ["train", "val"], "Of train, val, test.")
    flags.DEFINE_bool("check", False, "Only look for faults of calibration; draws pictures.")
    flags.DEFINE_bool("verify", False, "Only read what is prepared and compare its checksums.")
    flags.DEFINE_string("config_name", None, "Folder name, made from the options by default.")


def main(_) -> int:
    """Prepares as the flags say; 1 on bad input, 130 on Ctrl-C."""
    values = flags.FLAGS
    image_size = scenes.default_image_size(values.dataset)
    if values.image_size:
        if not re.fullmatch(r"\d+x\d+", values.image_size):
            raise UserError(f"--image_size={values.image_size} is not like 384x640")
        image_size = tuple(map(int, values.image_size.split("x")))
    return _run(values, image_size)


def _run(values: flags.FlagValues, image_size: tuple[int, int]) -> int:
    source, data_dir = Path(values.source), Path(values.data_dir)
    if values.check:
        from fsmde_jax.prepare import check  # slow to import

        return check.check(values.dataset, source, data_dir, tuple(values.splits))
    name = values.config_name or folder.default_config_name(
        image_size, values.image_format, values.dense_depth
    )
    if values.verify:
        final = prepared.version_dir(data_dir, values.dataset, name)
        num_files, problems = folder.verify(final)
        print("\n".join(problems) or f"{final}: all {num_files} files are whole")
        return 1 if problems else 0
    summary = folder.prepare(
        dataset=values.dataset,
        source=source,
        data_dir=data_dir,
        image_size=image_size,
        image_format=values.image_format,
        dense_depth=values.dense_depth,
        on_error=values.on_error,
        num_workers=values.num_workers,
        splits=tuple(values.splits),
        config_name=name,
    )
    print(summary.table())
    return 0


if __name__ == "__main__":
    cli.start(__name__)
