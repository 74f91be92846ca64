"""Writes a foundation model's weights as a checkpoint under foreign names."""

import pathlib
import re

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from fsmde_jax import files
from fsmde_jax.models.foundation.dpt import DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing
from fsmde_jax.models.weights import hub_config
from fsmde_jax.models.weights.files import JSON_FILES, WEIGHTS_FILE, checksum, checksum_file
from fsmde_jax.models.weights.tables import Table, table_of


def save_foundation(
    folder: pathlib.Path,
    config: DPTConfig | MiniConfig,
    preprocessing: Preprocessing,
    state: nnx.State,
    dtype: np.typing.DTypeLike = np.float32,
) -> None:
    """Writes a checkpoint that `load.load_foundation` reads; transformers reads those of a DPT.

    A checkpoint that is there already is replaced. If its weights were changed since they were
    written, they are renamed, not lost.
    """
    contents = (hub_config.to_json(config), preprocessing.to_hf())
    for name, content in zip(JSON_FILES, contents, strict=True):
        files.write_json(folder / name, content, indent=2)
    tensors = {}
    for path, leaf in nnx.to_flat_state(state):
        key, axes = _foreign_key(".".join(map(str, path)), leaf[...].ndim, table_of(config))
        tensor = np.asarray(jax.device_get(leaf[...])).transpose(np.argsort(axes))
        tensors[key] = np.array(tensor, dtype, order="C")
    file = folder / WEIGHTS_FILE
    with files.replacing(file) as partial:
        save_file(tensors, partial)
        digest = files.sha256(partial)
        if file.is_file() and files.sha256(file) not in (digest, checksum(file)):
            files.set_aside(file, "before")
    files.write_text(checksum_file(file), f"{digest}  {file.name}\n")


def _foreign_key(path: str, ndim: int, table: Table) -> tuple[str, tuple[int, ...]]:
    """The foreign key that fills our `path` (of the first rule that does), and its axes' order."""
    for rule in table:
        groups = re.findall(r"\(.*?\)", rule.pattern)
        by_number = lambda found, groups=groups: groups[int(found[1]) - 1]  # noqa: E731
        ours = re.sub(r"\\(\d)", by_number, (rule.path or "").replace(".", r"\."))
        if match := re.fullmatch(ours, path):
            # The groups of our path may come in any order or not at all.
            order = [int(number) for number in re.findall(r"\\(\d)", rule.path)]
            values = dict(zip(order, match.groups(), strict=True))
            key = rule.pattern.replace(r"\.", ".")
            for number, group in enumerate(groups, start=1):
                key = key.replace(group.replace(r"\.", "."), values[number], 1)
            return key, rule.order(ndim)
    raise KeyError(path)
