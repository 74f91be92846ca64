"""Weights of transformers' models into ours: the only place that knows foreign names.

A table a family says which foreign key fills which parameter and how its axes change. Every key
must be used once, every parameter filled, every shape agree; all violations are raised together.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from fsmde_jax.errors import UserError
from fsmde_jax.models.dpt import DPT, DPTConfig
from fsmde_jax.models.resnet import ResNet


class WeightsError(UserError):
    """Weights that are absent, unreadable or do not fit the model; says which and what to do."""


# Axes of ours, as positions in torch's layout.
_AXES = {
    "linear": (1, 0),  # out in -> in out
    "conv": (2, 3, 1, 0),  # out in h w -> h w in out; transposed: in out h w -> h w out in
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Foreign keys that fully match `pattern` fill our parameter `path`.

    Args:
        pattern: regular expression.
        path: our dotted path, with the pattern's groups as \\1, \\2; None ignores the key.
        axes: "as_is" or a key of `_AXES`.
    """

    pattern: str
    path: str | None
    axes: str = "as_is"


Table = tuple[Rule, ...]


def _layer(pattern: str, path: str, axes: str = "linear") -> tuple[Rule, Rule]:
    """Kernel and bias of a layer."""
    weight = Rule(rf"{pattern}\.weight", rf"{path}.kernel", axes)
    return weight, Rule(rf"{pattern}\.bias", rf"{path}.bias")


def _norm(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Scale and bias of a normalisation."""
    return Rule(rf"{pattern}\.weight", rf"{path}.scale"), Rule(rf"{pattern}\.bias", rf"{path}.bias")


_BLOCK, _OUR_BLOCK = r"dpt\.encoder\.layer\.(\d+)", r"backbone.blocks.\1"
_FUSION, _OUR_FUSION = r"neck\.fusion_stage\.layers\.(\d+)", r"fusion_layers.\1"
_REASSEMBLE = r"neck\.reassemble_stage"

DPT_TABLE = (
    Rule(r"dpt\.embeddings\.cls_token", "backbone.class_token"),
    Rule(r"dpt\.embeddings\.position_embeddings", "backbone.position_embedding"),
    *_layer(r"dpt\.embeddings\.patch_embeddings\.projection", "backbone.patch_embedding", "conv"),
    *_layer(rf"{_BLOCK}\.attention\.attention\.(query|key|value)", rf"{_OUR_BLOCK}.attention.\2"),
    *_layer(rf"{_BLOCK}\.attention\.output\.dense", rf"{_OUR_BLOCK}.attention.output"),
    *_layer(rf"{_BLOCK}\.intermediate\.dense", rf"{_OUR_BLOCK}.mlp_in"),
    *_layer(rf"{_BLOCK}\.output\.dense", rf"{_OUR_BLOCK}.mlp_out"),
    *_norm(rf"{_BLOCK}\.layernorm_before", rf"{_OUR_BLOCK}.norm1"),
    *_norm(rf"{_BLOCK}\.layernorm_after", rf"{_OUR_BLOCK}.norm2"),
    *_norm(r"dpt\.layernorm", "backbone.norm"),
    Rule(r"dpt\.pooler\.dense\.(weight|bias)", None),  # of pretraining; not in the depth model
    *_layer(rf"{_REASSEMBLE}\.readout_projects\.(\d+)\.0", r"reassemble_layers.\1.readout"),
    *_layer(
        rf"{_REASSEMBLE}\.layers\.(\d+)\.projection", r"reassemble_layers.\1.projection", "conv"
    ),
    *_layer(rf"{_REASSEMBLE}\.layers\.(\d+)\.resize", r"reassemble_layers.\1.resize", "conv"),
    Rule(r"neck\.convs\.(\d+)\.weight", r"neck_convs.\1.kernel", "conv"),
    # The coarsest fusion layer has nothing to add, so its first unit is never run.
    Rule(r"neck\.fusion_stage\.layers\.0\.residual_layer1\..*", None),
    *_layer(
        r"neck\.fusion_stage\.layers\.([1-9]\d*)\.residual_layer1\.convolution(\d)",
        rf"{_OUR_FUSION}.residual1.conv\2",
        "conv",
    ),
    *_layer(
        rf"{_FUSION}\.residual_layer2\.convolution(\d)", rf"{_OUR_FUSION}.residual2.conv\2", "conv"
    ),
    *_layer(rf"{_FUSION}\.projection", rf"{_OUR_FUSION}.projection", "conv"),
    *_layer(r"head\.projection", "depth_head.projection", "conv"),
    *_layer(r"head\.head\.0", "depth_head.conv1", "conv"),
    *_layer(r"head\.head\.2", "depth_head.conv2", "conv"),
    *_layer(r"head\.head\.4", "depth_head.conv3", "conv"),
)


def _conv_norm(pattern: str, path: str) -> tuple[Rule, ...]:
    """A convolution without bias and its batch norm."""
    return (
        Rule(rf"{pattern}\.convolution\.weight", f"{path}.conv.kernel", "conv"),
        *_norm(rf"{pattern}\.normalization", f"{path}.norm"),
        Rule(rf"{pattern}\.normalization\.running_mean", f"{path}.norm.mean"),
        Rule(rf"{pattern}\.normalization\.running_var", f"{path}.norm.var"),
        Rule(rf"{pattern}\.normalization\.num_batches_tracked", None),
    )


# The hub's classifiers put "resnet." before the names of the bare encoder.
_STAGE = r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)"

RESNET_TABLE = (
    *_conv_norm(r"(?:resnet\.)?embedder\.embedder", "stem"),
    *_conv_norm(rf"{_STAGE}\.layer\.0", r"stages.\1.\2.conv1"),
    *_conv_norm(rf"{_STAGE}\.layer\.1", r"stages.\1.\2.conv2"),
    *_conv_norm(rf"{_STAGE}\.shortcut", r"stages.\1.\2.shortcut"),
    Rule(r"classifier\.1\.(weight|bias)", None),
)


def _convert(
    tensors: Iterable[tuple[str, np.ndarray]], wanted: Mapping[str, nnx.Variable], table: Table
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Foreign tensors as {our path: array}, and every violation in words."""
    filled, sources, errors = {}, collections.defaultdict(list), []
    for key, tensor in tensors:
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
        axes = _AXES.get(rule.axes, tuple(range(tensor.ndim)))
        ours = tensor.transpose(axes) if len(axes) == tensor.ndim else tensor
        if path not in wanted:
            errors.append(f"{key}: the model has no parameter {path}")
        elif ours.shape != wanted[path].shape:
            shape = f"shape {tensor.shape} becomes {ours.shape}"
            errors.append(f"{key}: {shape}, but {path} is {wanted[path].shape}")
        else:  # copied here, so that no more than one foreign tensor is held at a time
            filled[path] = np.array(ours, wanted[path].dtype, order="C")
    errors += [
        f"{path}: filled {len(k)} times, by {k}" for path, k in sources.items() if len(k) > 1
    ]
    errors += [f"{path}: no key fills it" for path in wanted if path not in sources]
    return filled, errors


def _filled(
    state: nnx.State, tensors: Iterable[tuple[str, np.ndarray]], table: Table, source: str
) -> nnx.State:
    """`state` with numpy arrays of its dtypes taken from foreign tensors."""
    flat = nnx.to_flat_state(state)
    names = [".".join(map(str, path)) for path in flat.paths]
    arrays, errors = _convert(tensors, dict(zip(names, flat.leaves, strict=True)), table)
    if errors:
        listed = "\n  ".join(errors)
        raise WeightsError(f"{source} does not fit the model, {len(errors)} faults:\n  {listed}")
    filled = [leaf.replace(arrays[name]) for leaf, name in zip(flat.leaves, names, strict=True)]
    return nnx.from_flat_state(zip(flat.paths, filled, strict=True))


def load_state_dict_into(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    table: Table,
    source: str = "the state dict",
):
    """Replaces all parameters and statistics of `model`; changes nothing if anything is wrong."""
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    state = _filled(state, tensors.items(), table, source)
    nnx.update(model, jax.tree.map(jnp.asarray, state))


def _read_tensors(file: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a .safetensors file, one at a time."""
    try:
        with safe_open(file, "numpy") as opened:
            for key in opened.keys():  # noqa: SIM118 - no mapping
                yield key, opened.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file}: cannot be read as safetensors ({error}); truncated? Fetch it again"
        ) from error


def _download(repo: str) -> pathlib.Path:
    """The local folder of a hub repository, from the cache or the network."""
    names = ["config.json", "model.safetensors"]
    try:
        return pathlib.Path(snapshot_download(repo, allow_patterns=names))
    except (OSError, ValueError, hub_errors.HfHubHTTPError) as error:
        raise WeightsError(
            f"{repo}: neither a local folder nor to be had from the Hugging Face hub: {error} "
            f"Fetch {' and '.join(names)} where there is a network (hf download {repo}) and "
            "name that folder, or copy its cache here (HF_HOME) and set HF_HUB_OFFLINE=1."
        ) from error


def _locate(source: str | pathlib.Path) -> pathlib.Path:
    """The .safetensors file of a file, a folder or a hub id; config.json lies beside it."""
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
            raise WeightsError(f"{source}: no such file or folder, and no hub id (owner/name)")
        path = _download(str(source))
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(
            f"{file}: missing; convert the checkpoint to one safetensors file, for example with "
            "transformers' save_pretrained"
        )
    return file


def load_dpt(source: str | pathlib.Path) -> tuple[DPTConfig, nnx.State]:
    """Configuration and parameters (numpy, on the host) of a DPT checkpoint.

    Args:
        source: a folder with config.json and model.safetensors, such a file with config.json
            beside it, or a hub id ("Intel/dpt-large"; HF_HUB_OFFLINE and HF_HOME are honoured).
    """
    file = _locate(source)
    config_file = file.with_name("config.json")
    try:
        config = DPTConfig.from_hf(json.loads(config_file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{config_file}: {error}") from error
    abstract = nnx.eval_shape(lambda: DPT(config, rngs=nnx.Rngs(0)))
    state = nnx.state(abstract, nnx.Param)
    return config, _filled(state, _read_tensors(file), DPT_TABLE, str(file))


def load_resnet(source: str | pathlib.Path, model: ResNet):
    """Fills `model` from a transformers ResNet of basic blocks; `source` as in `load_dpt`."""
    file = _locate(source)
    load_state_dict_into(model, dict(_read_tensors(file)), RESNET_TABLE, str(file))
