"""A new run that starts from the weights of another: `fsmde_jax.main --workdir=OLD --fork=NEW`.

NEW/forked_from/ is a copy of OLD's config.json and newest checkpoint, so NEW needs OLD no more. The
new run takes its weights (the moving averages, if OLD kept some), and begins at step 0 with a fresh
optimizer and schedule.
"""

import pathlib
import shutil

from fsmde_jax import config, files
from fsmde_jax.run import checkpoints

FOLDER = "forked_from"
_ABOUT = "about.json"


def fork(old: pathlib.Path, new: pathlib.Path) -> None:
    """Makes `new` a fork of the run `old`; one that is there already goes on.

    The teacher's head that `old` trained is taken along. Raises `UserError` where `old` has no
    checkpoint, or `new` holds anything else.
    """
    about = new / FOLDER / _ABOUT
    if about.is_file():
        what, do = "where the run was forked from", "Choose another --fork"
        found = files.read_json(about, what, do, ("run",))
        if found["run"] != str(old.resolve()):
            raise checkpoints.CheckpointError(
                f"{new} is a fork of {found['run']}, not of {old}: choose another --fork"
            )
        return
    if new.exists() and not (new.is_dir() and not any(new.iterdir())):
        raise checkpoints.CheckpointError(f"--fork={new} is there already: name a new folder")
    made_with = config.load_config(old)
    with files.new_folder(new) as partial:
        start = partial / FOLDER
        start.mkdir()
        step = checkpoints.copy_newest(old, start)
        config.save_config(made_with, start)
        files.write_json(start / _ABOUT, {"run": str(old.resolve()), "step": step})
        if (old / config.HEAD_FOLDER).is_dir():
            shutil.copytree(old / config.HEAD_FOLDER, partial / config.HEAD_FOLDER)
