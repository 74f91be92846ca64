"""Loads a checkpoint's weights into our models.

Every key must be used once, every parameter filled, every shape must agree. All violations are
raised together, before a tensor is read. Tensors are read one at a time, straight onto their
devices.
"""

import collections
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from fsmde_jax.models.encoders.mobilenet import MobileNet
from fsmde_jax.models.encoders.resnet import ResNet
from fsmde_jax.models.foundation.dpt import DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing
from fsmde_jax.models.weights import files, hub_config
from fsmde_jax.models.weights.files import WeightsError
from fsmde_jax.models.weights.tables import Table, encoder_table, table_of


def read_foundation_config(
    source: str | pathlib.Path,
) -> tuple[DPTConfig | MiniConfig, Preprocessing]:
    """Architecture and image processor of a checkpoint, from its JSON files alone.

    Args:
        source: a folder with config.json and model.safetensors, such a file with config.json
            beside it, a name in `files.SHIPPED`, or a hub id ("Intel/dpt-large"; HF_HUB_OFFLINE and
            HF_HOME are honoured).
    """
    folder = files.folder_of(source, files.JSON_FILES)
    config = files.read_json(folder / files.JSON_FILES[0], hub_config.foundation_config)
    if not (folder / files.JSON_FILES[1]).is_file():
        return config, hub_config.default_preprocessing(config)
    return config, files.read_json(folder / files.JSON_FILES[1], Preprocessing.from_hf)


def load_foundation(
    source: str | pathlib.Path,
    config: DPTConfig | MiniConfig,
    state: nnx.State,
    shardings: nnx.State,
) -> nnx.State:
    """Parameters of a foundation model's checkpoint, on their devices.

    Args:
        source: as in `read_foundation_config`.
        config: the architecture, from `read_foundation_config`.
        state: the model's parameters; shapes will do.
        shardings: where each goes.
    """
    file = files.SafetensorsFile(files.weights_file(source))
    table = table_of(config)
    return _filled(state, file.shapes, file.read, table, str(file.file), shardings)


def load_encoder(source: str | pathlib.Path, model: ResNet | MobileNet):
    """Fills a student's encoder from a checkpoint of its architecture.

    The checkpoint of a classifier will do: what comes after the features is left out.

    Args:
        source: as in `read_foundation_config`.
        model: the encoder; changed in place.
    """
    file = files.SafetensorsFile(files.weights_file(source))
    table = encoder_table(model)
    ours = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in ours}
    _, faults = _plan(file.shapes, shapes, table)
    if len(faults) > len(shapes) / 4:  # a list of them would hide what is wrong
        raise WeightsError(
            f"{file.file} is of another architecture than the student's encoder ({len(faults)} "
            f"faults, the first: {faults[0]}). config.student.encoder_weights must fit "
            "config.student.size; fsmde_jax/models/README.md has a table of both"
        )
    tensors = {key: file.read(key) for key in file.shapes}
    load_state_dict_into(model, tensors, table, str(file.file))


def load_state_dict_into(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    table: Table,
    source: str = "the state dict",
):
    """Replaces all parameters and statistics of `model`, or none if anything is wrong."""
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    state = _filled(state, shapes, tensors.__getitem__, table, source)
    nnx.update(model, jax.tree.map(jax.numpy.asarray, state))


class _Target(NamedTuple):
    """Where a foreign tensor goes."""

    path: str
    axes: tuple[int, ...]


def _plan(
    foreign: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]], table: Table
) -> tuple[dict[str, _Target], list[str]]:
    """What each foreign key fills, and every violation in words; takes shapes by name."""
    targets, sources, errors = {}, collections.defaultdict(list), []
    for key, shape in foreign.items():
        found = [(rule, re.fullmatch(rule.pattern, key)) for rule in table]
        found = [(rule, match) for rule, match in found if match]
        if len(found) != 1:
            errors.append(f"{key}: matches {len(found)} patterns of the table, not one")
            continue
        rule, match = found[0]
        if rule.path is None:
            continue
        path = match.expand(rule.path)
        sources[path].append(key)
        axes = rule.order(len(shape))
        becomes = tuple(shape[axis] for axis in axes)
        if path not in ours:
            errors.append(f"{key}: the model has no parameter {path}")
        elif becomes != ours[path]:
            errors.append(f"{key}: shape {shape} becomes {becomes}, but {path} is {ours[path]}")
        targets[key] = _Target(path, axes)
    errors += [
        f"{path}: filled {len(k)} times, by {k}" for path, k in sources.items() if len(k) > 1
    ]
    errors += [f"{path}: no key fills it" for path in ours if path not in sources]
    return targets, errors


def _filled(
    state: nnx.State,
    foreign: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    table: Table,
    source: str,
    shardings: nnx.State | None = None,
) -> nnx.State:
    """`state` (shapes will do) filled with arrays of its dtypes, read and placed one by one."""
    flat = nnx.to_flat_state(state)
    names = [".".join(map(str, path)) for path in flat.paths]
    leaves = dict(zip(names, flat.leaves, strict=True))
    targets, errors = _plan(foreign, {name: leaf.shape for name, leaf in leaves.items()}, table)
    if errors:
        listed = "\n  ".join(errors)
        raise WeightsError(f"{source} does not fit the model, {len(errors)} faults:\n  {listed}")
    places = dict(zip(names, jax.tree.leaves(shardings), strict=True)) if shardings else {}
    for key, target in targets.items():
        leaf = leaves[target.path]
        array = np.array(read(key).transpose(target.axes), leaf.dtype, order="C")
        array = jax.device_put(array, places[target.path]) if places else array
        leaves[target.path] = leaf.replace(array)
    return nnx.from_flat_state(zip(flat.paths, leaves.values(), strict=True))
