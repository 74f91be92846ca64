"""Reads a student back from what `export` wrote for JAX: `--format=hub` and `--format=orbax`."""

import pathlib
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from fsmde_jax.config import default_config
from fsmde_jax.errors import UserError
from fsmde_jax.export import formats, hub
from fsmde_jax.models.weights import files as weight_files
from fsmde_jax.models.weights import load as weights
from fsmde_jax.models.weights.tables import OWN_TABLE
from fsmde_jax.run import checkpoints
from fsmde_jax.tasks import build_student

# Students that come with the package, by name.
SHIPPED = {
    "student-mini-world": pathlib.Path(__file__).parents[1] / "assets" / "student-mini-world"
}
_AGAIN = "Export the run again: python -m fsmde_jax.export --checkpoint=RUN --format=hub --out=DIR"


def find(source: str) -> pathlib.Path:
    """The folder of a shipped student, a local folder, or a hub repository that is fetched."""
    path = SHIPPED.get(source, pathlib.Path(source).expanduser())
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{source} is a file; name its folder")
    if source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise UserError(
            f"{source}: there is no such folder. Name a run's folder, an export (--format=hub or "
            f"orbax), a hub id (owner/name), or a student that is shipped ({', '.join(SHIPPED)})"
        )
    return weight_files.folder_of(source, (hub.CONFIG_FILE, weight_files.WEIGHTS_FILE))


def is_export(folder: pathlib.Path) -> bool:
    """Whether a folder is what `export` writes, in whatever format."""
    if (folder / formats.ABOUT_FILE).is_file():
        return True
    file = folder / hub.CONFIG_FILE
    return file.is_file() and weight_files.read_json(file, dict).get("model_type") == hub.MODEL_TYPE


def load_export(folder: pathlib.Path) -> tuple[nnx.Module, dict[str, Any]]:
    """(student, ready to predict; what `formats.describe` said of it).

    Raises `UserError` for a format that is not for JAX, and where a file is missing, damaged or
    does not fit.
    """
    of_hub = not (folder / formats.ABOUT_FILE).is_file()
    about_file = folder / (hub.CONFIG_FILE if of_hub else formats.ABOUT_FILE)
    about = weight_files.read_json(about_file, dict)
    if about.get("format") not in ("hub", "orbax"):
        raise UserError(
            f"{folder} is for programs without fsmde_jax ({about.get('format')}; its README.md "
            f"says how to use it). {_AGAIN}"
        )
    try:
        config = _config_of(about)
        student = nnx.eval_shape(lambda: build_student(config, nnx.Rngs(0)))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{about_file} was written by another version of fsmde_jax ({error!r}). {_AGAIN}"
        ) from error
    if of_hub:
        weights_file = folder / weight_files.WEIGHTS_FILE
        file = weight_files.SafetensorsFile(weights_file)
        tensors = {name: file.read(name) for name in file.shapes}
        weights.load_state_dict_into(student, tensors, OWN_TABLE, str(weights_file))
    else:
        state = nnx.state(student, (nnx.Param, nnx.BatchStat))
        params = checkpoints.read_tree(folder / formats.FILES["orbax"], state.to_pure_dict())
        nnx.replace_by_pure_dict(state, params)
        nnx.update(student, state)
    student.eval()
    return student, about


def _config_of(about: dict[str, Any]) -> ConfigDict:
    """A config with all that the network is built of."""
    config = default_config()
    config.data.min_depth_m, config.data.max_depth_m = about["depth_range_m"]
    config.bins.update(about["bins"])
    config.student.size = about["student"]
    config.student.mean_of = about["mean_of"]
    config.student.canonical_focal_px = about["canonical_focal_px"]
    config.train.dtype = about["dtype"]
    return config
