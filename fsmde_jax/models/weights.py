"""Weights of transformers' models into ours: the only place that knows foreign names.

A table a family says which foreign key fills which parameter and how its axes change. Every key
must be used once, every parameter filled, every shape agree; all violations are raised together,
before a tensor is read. Tensors are read one at a time, straight onto their devices.

Damage is looked for before anything is used: what this package writes and ships has its SHA-256
beside it (`model.safetensors.sha256`, as sha256sum writes it; verified wherever there is one), and
a file of the hub's cache is called by its own. Of any other file only this can be seen: that it is
cut short, values that are not finite, and 16-bit kernels labelled as the other 16-bit type. A bit
flipped in one of its weights cannot be seen while that stays finite: compare its checksum with one
from where you got it.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fsmde_jax import files
from fsmde_jax.errors import UserError
from fsmde_jax.models import hub_config
from fsmde_jax.models.encoders.mobilenet import EFFICIENTNET_LITE0, MobileNet
from fsmde_jax.models.encoders.resnet import ResNet
from fsmde_jax.models.foundation.dpt import DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing


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


def _attention(pattern: str, path: str) -> tuple[Rule, ...]:
    """Query, key, value and output, as the hub's files spell them and as transformers 5 does."""
    return (
        *_layer(rf"{pattern}\.attention\.attention\.(query|key|value)", rf"{path}.attention.\2"),
        *_layer(rf"{pattern}\.attention\.output\.dense", rf"{path}.attention.output"),
        *_layer(rf"{pattern}\.attention\.q_proj", rf"{path}.attention.query"),
        *_layer(rf"{pattern}\.attention\.k_proj", rf"{path}.attention.key"),
        *_layer(rf"{pattern}\.attention\.v_proj", rf"{path}.attention.value"),
        *_layer(rf"{pattern}\.attention\.o_proj", rf"{path}.attention.output"),
    )


def _tokens(pattern: str) -> tuple[Rule, ...]:
    """Class token and position embedding."""
    return (
        Rule(rf"{pattern}\.cls_token", "backbone.class_token"),
        Rule(rf"{pattern}\.position_embeddings", "backbone.position_embedding"),
    )


_BLOCK, _OUR_BLOCK = r"dpt\.encoder\.layer\.(\d+)", r"backbone.blocks.\1"
_FUSION, _OUR_FUSION = r"neck\.fusion_stage\.layers\.(\d+)", r"fusion_layers.\1"


def _reassemble(foreign: str, ours: str) -> tuple[Rule, ...]:
    """One reassembly, or a group of them."""
    stage, path = r"neck\.reassemble_stage", f"reassemble_layers.{ours}"
    return (
        *_layer(rf"{stage}\.readout_projects\.{foreign}\.0", f"{path}.readout"),
        *_layer(rf"{stage}\.layers\.{foreign}\.projection", f"{path}.projection", "conv"),
        *_layer(rf"{stage}\.layers\.{foreign}\.resize", f"{path}.resize", "conv"),
    )


_NECK = (
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
)

# The transformer, neck and head of DPT, plain or hybrid.
_DPT_COMMON = (
    *_tokens(r"dpt\.embeddings"),
    *_attention(_BLOCK, _OUR_BLOCK),
    *_layer(rf"{_BLOCK}\.intermediate\.dense", rf"{_OUR_BLOCK}.mlp_in"),
    *_layer(rf"{_BLOCK}\.output\.dense", rf"{_OUR_BLOCK}.mlp_out"),
    *_norm(rf"{_BLOCK}\.layernorm_before", rf"{_OUR_BLOCK}.norm1"),
    *_norm(rf"{_BLOCK}\.layernorm_after", rf"{_OUR_BLOCK}.norm2"),
    *_norm(r"dpt\.layernorm", "backbone.norm"),
    Rule(r"dpt\.pooler\.dense\.(weight|bias)", None),  # of pretraining; not in the depth model
    *_NECK,
    *_layer(r"head\.projection", "depth_head.projection", "conv"),
    *_layer(r"head\.head\.0", "depth_head.conv1", "conv"),
    *_layer(r"head\.head\.2", "depth_head.conv2", "conv"),
    *_layer(r"head\.head\.4", "depth_head.conv3", "conv"),
)

DPT_TABLE = (
    *_DPT_COMMON,
    *_layer(r"dpt\.embeddings\.patch_embeddings\.projection", "backbone.patch_embedding", "conv"),
    *_reassemble(r"(\d+)", r"\1"),
)

_BIT = r"dpt\.embeddings\.backbone\.bit"
_BIT_BLOCK = rf"{_BIT}\.encoder\.stages\.(\d+)\.layers\.(\d+)"
_SHORTCUT, _OUR_BIT_BLOCK = rf"{_BIT_BLOCK}\.downsample", r"stem.stages.\1.\2"

DPT_HYBRID_TABLE = (
    *_DPT_COMMON,
    Rule(rf"{_BIT}\.embedder\.convolution\.weight", "stem.conv.kernel", "conv"),
    *_norm(rf"{_BIT}\.embedder\.norm", "stem.norm"),
    Rule(rf"{_BIT_BLOCK}\.conv(\d)\.weight", rf"{_OUR_BIT_BLOCK}.conv\3.kernel", "conv"),
    *_norm(rf"{_BIT_BLOCK}\.norm(\d)", rf"{_OUR_BIT_BLOCK}.norm\3"),
    Rule(
        rf"{_BIT_BLOCK}\.downsample\.conv\.weight",
        rf"{_OUR_BIT_BLOCK}.shortcut_conv.kernel",
        "conv",
    ),
    *_norm(rf"{_BIT_BLOCK}\.downsample\.norm", rf"{_OUR_BIT_BLOCK}.shortcut_norm"),
    *_layer(r"dpt\.embeddings\.projection", "backbone.patch_embedding", "conv"),
    # transformers counts the stem's two maps as reassemblies 0 and 1.
    *_reassemble("2", "0"),
    *_reassemble("3", "1"),
)

_DINO_BLOCK = r"backbone\.encoder\.layer\.(\d+)"

DEPTH_ANYTHING_TABLE = (
    *_tokens(r"backbone\.embeddings"),
    Rule(r"backbone\.embeddings\.mask_token", None),  # of pretraining
    *_layer(
        r"backbone\.embeddings\.patch_embeddings\.projection", "backbone.patch_embedding", "conv"
    ),
    *_attention(_DINO_BLOCK, _OUR_BLOCK),
    *_layer(rf"{_DINO_BLOCK}\.mlp\.fc1", rf"{_OUR_BLOCK}.mlp_in"),
    *_layer(rf"{_DINO_BLOCK}\.mlp\.fc2", rf"{_OUR_BLOCK}.mlp_out"),
    *_norm(rf"{_DINO_BLOCK}\.norm(\d)", rf"{_OUR_BLOCK}.norm\2"),
    Rule(rf"{_DINO_BLOCK}\.layer_scale(\d)\.lambda1", rf"{_OUR_BLOCK}.scale\2.scale"),
    *_norm(r"backbone\.layernorm", "backbone.norm"),
    *_NECK,
    *_reassemble(r"(\d+)", r"\1"),
    *_layer(r"head\.conv(\d)", r"depth_head.conv\1", "conv"),
)


MINI_TABLE = (Rule(r"(.+)", r"\1"),)  # our own names and axes


def table_of(config: DPTConfig | MiniConfig) -> Table:
    """The table of a model's family."""
    if isinstance(config, MiniConfig):
        return MINI_TABLE
    if config.stem:
        return DPT_HYBRID_TABLE
    return DEPTH_ANYTHING_TABLE if config.normalise_layers else DPT_TABLE


def _conv_norm(conv: str, norm: str, path: str) -> tuple[Rule, ...]:
    """A convolution without bias and its batch norm."""
    return (
        Rule(rf"{conv}\.weight", f"{path}.conv.kernel", "conv"),
        *_norm(norm, f"{path}.norm"),
        Rule(rf"{norm}\.running_mean", f"{path}.norm.mean"),
        Rule(rf"{norm}\.running_var", f"{path}.norm.var"),
        Rule(rf"{norm}\.num_batches_tracked", None),
    )


def _hub_conv_norm(pattern: str, path: str) -> tuple[Rule, ...]:
    """The same as transformers names them."""
    return _conv_norm(rf"{pattern}\.convolution", rf"{pattern}\.normalization", path)


# The hub's classifiers put "resnet." before the names of the bare encoder.
_STAGE = r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)"

RESNET_TABLE = (
    *_hub_conv_norm(r"(?:resnet\.)?embedder\.embedder", "stem"),
    *_hub_conv_norm(rf"{_STAGE}\.layer\.0", r"stages.\1.\2.conv1"),
    *_hub_conv_norm(rf"{_STAGE}\.layer\.1", r"stages.\1.\2.conv2"),
    *_hub_conv_norm(rf"{_STAGE}\.shortcut", r"stages.\1.\2.shortcut"),
    Rule(r"classifier\.1\.(weight|bias)", None),
)

_MOBILENET_STEM = r"(?:mobilenet_v2\.)?conv_stem"


def _mobilenet_block(number: int) -> tuple[Rule, ...]:
    """transformers counts the blocks behind its stem, to which the first one belongs."""
    foreign, ours = rf"(?:mobilenet_v2\.)?layer\.{number}", f"blocks.{number + 1}"
    return (
        *_hub_conv_norm(rf"{foreign}\.expand_1x1", f"{ours}.expand"),
        *_hub_conv_norm(rf"{foreign}\.conv_3x3", f"{ours}.depthwise"),
        *_hub_conv_norm(rf"{foreign}\.reduce_1x1", f"{ours}.project"),
    )


MOBILENETV2_TABLE = (
    *_hub_conv_norm(rf"{_MOBILENET_STEM}\.first_conv", "stem"),
    *_hub_conv_norm(rf"{_MOBILENET_STEM}\.conv_3x3", "blocks.0.depthwise"),
    *_hub_conv_norm(rf"{_MOBILENET_STEM}\.reduce_1x1", "blocks.0.project"),
    *(rule for number in range(16) for rule in _mobilenet_block(number)),
    # Behind the features: 1280 channels for the classifier.
    Rule(r"(?:mobilenet_v2\.)?conv_1x1\..*", None),
    Rule(r"classifier\.(weight|bias)", None),
)

_LITE_BLOCK = r"_blocks\.(\d+)"

EFFICIENTNET_LITE_TABLE = (
    *_conv_norm("_conv_stem", "_bn0", "stem"),
    *_conv_norm(rf"{_LITE_BLOCK}\._expand_conv", rf"{_LITE_BLOCK}\._bn0", r"blocks.\1.expand"),
    *_conv_norm(
        rf"{_LITE_BLOCK}\._depthwise_conv", rf"{_LITE_BLOCK}\._bn1", r"blocks.\1.depthwise"
    ),
    *_conv_norm(rf"{_LITE_BLOCK}\._project_conv", rf"{_LITE_BLOCK}\._bn2", r"blocks.\1.project"),
    Rule(r"(_conv_head|_bn1|_fc)\..*", None),  # behind the features, as above
)


def encoder_table(model: ResNet | MobileNet) -> Table:
    """The table of a student's encoder."""
    if isinstance(model, ResNet):
        return RESNET_TABLE
    return EFFICIENTNET_LITE_TABLE if model.config == EFFICIENTNET_LITE0 else MOBILENETV2_TABLE


class _Target(NamedTuple):
    """Where a foreign tensor goes."""

    path: str
    axes: tuple[int, ...]


def _plan(
    foreign: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]], table: Table
) -> tuple[dict[str, _Target], list[str]]:
    """From the shapes by name: what each foreign key fills, and every violation in words."""
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
        axes = _AXES.get(rule.axes, ())
        axes = axes if len(axes) == len(shape) else tuple(range(len(shape)))
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
    """`state` (shapes will do) with arrays of its dtypes, read one by one and placed."""
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


def load_state_dict_into(
    model: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    table: Table,
    source: str = "the state dict",
):
    """Replaces all parameters and statistics of `model`; changes nothing if anything is wrong."""
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    state = _filled(state, shapes, tensors.__getitem__, table, source)
    nnx.update(model, jax.tree.map(jax.numpy.asarray, state))


class _SafetensorsFile:
    """Shapes and tensors of a .safetensors file."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        _check_bytes(file)
        self.shapes = self._opened(
            lambda opened: {k: tuple(opened.get_slice(k).get_shape()) for k in opened.keys()}  # noqa: SIM118
        )

    def read(self, key: str) -> np.ndarray:
        """One tensor. The file is opened anew, or all that was read would stay mapped."""
        tensor = self._opened(lambda opened: opened.get_tensor(key))
        if problem := _implausible(tensor):
            raise WeightsError(f"{self.file}: {key} {problem}. The file is damaged: fetch it again")
        return tensor

    def _opened(self, use: Callable[[Any], Any]) -> Any:
        try:
            with safe_open(self.file, "numpy") as opened:
                return use(opened)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{self.file}: cannot be read as safetensors ({error}); truncated? Fetch it again"
            ) from error


def _implausible(tensor: np.ndarray) -> str | None:
    """In words, what no trained weights look like."""
    if not jax.numpy.issubdtype(tensor.dtype, np.floating):
        return None
    if wrong := tensor.size - np.count_nonzero(np.isfinite(tensor)):
        return f"has {wrong} values that are not finite"
    if tensor.dtype.itemsize != 2 or tensor.ndim < 2 or tensor.size < 256:
        return None
    # bfloat16 read as float16 has its exponents squeezed around 1; float16 read as bfloat16 has
    # them below anything that float16 can hold. Kernels of networks have neither.
    some = np.abs(tensor.reshape(-1)[:: max(1, tensor.size // 4096)].astype(np.float32))
    some = some[some > 0]
    if some.size and np.median(some) < 2.0**-30:
        return f"has values around {np.median(some):.0e}, as if float16 were labelled bfloat16"
    if some.size and np.mean((some >= 0.25) & (some < 2.0)) > 0.98:
        return "has hardly a value below 0.25, as if bfloat16 were labelled float16"
    return None


def _check_bytes(file: pathlib.Path) -> None:
    """Refuses a file whose bytes are not those of the checksum beside it, or of its blob's name."""
    blob = file.resolve()
    if not blob.is_file():
        return
    if (beside := _checksum(file)) is not None:
        if files.sha256(file) != beside:
            raise WeightsError(
                f"{file} is damaged: its SHA-256 is not that of {_checksum_file(file).name}. Fetch "
                "or make it again; if you changed it yourself, delete the .sha256"
            )
    elif blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        found = files.sha256(blob) if len(blob.name) == 64 else _git_sha1(blob)
        if found != blob.name:
            raise WeightsError(
                f"{file} is damaged: its checksum is {found}, its name in the hub's cache {blob}. "
                "Delete both and fetch it again"
            )


def _checksum_file(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"{file.name}.sha256")


def _checksum(file: pathlib.Path) -> str | None:
    """The SHA-256 that is written beside a file; "" if that says none, None if there is no such."""
    beside = _checksum_file(file)
    if not beside.is_file():
        return None
    found = re.search(r"\b[0-9a-f]{64}\b", beside.read_text(errors="replace").lower())
    return found[0] if found else ""


def _git_sha1(file: pathlib.Path) -> str:
    """Git's name of a file's content, which the hub gives to small files."""
    with file.open("rb") as opened:
        begin = lambda: hashlib.sha1(b"blob %d\0" % file.stat().st_size)  # noqa: E731
        return hashlib.file_digest(opened, begin).hexdigest()


_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")  # large files (LFS) have a SHA-256
_JSON_FILES = ("config.json", "preprocessor_config.json")
_WEIGHTS_FILE = "model.safetensors"

# Checkpoints that come with the package, by name.
_ASSETS = pathlib.Path(__file__).parents[1] / "assets"
SHIPPED = {name: _ASSETS / name for name in ("mini-world", "dpt-mini-world")}


def _folder(source: str | pathlib.Path, names: Iterable[str]) -> pathlib.Path:
    """The folder of a shipped or local checkpoint, or of a hub repository with these files."""
    path = SHIPPED.get(str(source), pathlib.Path(source).expanduser())
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise WeightsError(
            f"{source}: no such file or folder, no hub id (owner/name), and not shipped with "
            f"fsmde_jax ({', '.join(SHIPPED)})"
        )
    try:
        return pathlib.Path(snapshot_download(str(source), allow_patterns=list(names)))
    except (OSError, ValueError, hub_errors.HfHubHTTPError) as error:
        raise WeightsError(
            f"{source}: neither a local folder nor to be had from the Hugging Face hub: {error} "
            f"Fetch {_JSON_FILES[0]} and {_WEIGHTS_FILE} where there is a network "
            f"(hf download {source}) and name that folder, or copy its cache here (HF_HOME) and "
            "set HF_HUB_OFFLINE=1."
        ) from error


def _weights_file(source: str | pathlib.Path) -> pathlib.Path:
    """The .safetensors file of a file, a folder or a hub id."""
    path = pathlib.Path(source).expanduser()
    file = (
        path if path.is_file() else _folder(source, [*_JSON_FILES, _WEIGHTS_FILE]) / _WEIGHTS_FILE
    )
    if not file.is_file():
        raise WeightsError(
            f"{file}: missing; convert the checkpoint to one safetensors file, for example with "
            "transformers' save_pretrained"
        )
    return file


def read_foundation_config(
    source: str | pathlib.Path,
) -> tuple[DPTConfig | MiniConfig, Preprocessing]:
    """Architecture and image processor of a checkpoint, from its JSON files alone.

    Args:
        source: a folder with config.json and model.safetensors, such a file with config.json
            beside it, a name in `SHIPPED`, or a hub id ("Intel/dpt-large"; HF_HUB_OFFLINE and
            HF_HOME are honoured).
    """
    folder = _folder(source, _JSON_FILES)
    config = _read_json(folder / _JSON_FILES[0], hub_config.foundation_config)
    if not (folder / _JSON_FILES[1]).is_file():
        return config, hub_config.default_preprocessing(config)
    return config, _read_json(folder / _JSON_FILES[1], Preprocessing.from_hf)


def _read_json(file: pathlib.Path, read: Callable[[Any], Any]) -> Any:
    _check_bytes(file)
    try:
        return read(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise WeightsError(f"{file}: {error}") from error


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
    file = _SafetensorsFile(_weights_file(source))
    table = table_of(config)
    return _filled(state, file.shapes, file.read, table, str(file.file), shardings)


def save_foundation(
    folder: pathlib.Path,
    config: DPTConfig | MiniConfig,
    preprocessing: Preprocessing,
    state: nnx.State,
    dtype: np.typing.DTypeLike = np.float32,
) -> None:
    """Writes a checkpoint that `load_foundation` can read, and transformers one of a DPT.

    One that is there is replaced; weights that were changed since are renamed.
    """
    contents = (hub_config.to_json(config), preprocessing.to_hf())
    for name, content in zip(_JSON_FILES, contents, strict=True):
        files.write_json(folder / name, content, indent=2)
    tensors = {}
    for path, leaf in nnx.to_flat_state(state):
        key, axes = _foreign_key(".".join(map(str, path)), leaf[...].ndim, table_of(config))
        tensor = np.asarray(jax.device_get(leaf[...])).transpose(np.argsort(axes))
        tensors[key] = np.array(tensor, dtype, order="C")
    file = folder / _WEIGHTS_FILE
    with files.replacing(file) as partial:
        save_file(tensors, partial)
        digest = files.sha256(partial)
        if file.is_file() and files.sha256(file) not in (digest, _checksum(file)):
            files.set_aside(file, "before")
    files.write_text(_checksum_file(file), f"{digest}  {file.name}\n")


def _foreign_key(path: str, ndim: int, table: Table) -> tuple[str, tuple[int, ...]]:
    """The foreign key that fills our `path`, by the first rule that does, and its axes."""
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
            axes = _AXES.get(rule.axes, ())
            return key, axes if len(axes) == ndim else tuple(range(ndim))
    raise KeyError(path)


def load_encoder(source: str | pathlib.Path, model: ResNet | MobileNet):
    """Fills a student's encoder from a checkpoint of its architecture; `source` as above.

    A classifier's is one: what lies behind the features is left out.
    """
    file = _SafetensorsFile(_weights_file(source))
    table = encoder_table(model)
    ours = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in ours}
    _, faults = _plan(file.shapes, shapes, table)
    if len(faults) > len(shapes) / 4:  # a list of them would hide what is wrong
        raise WeightsError(
            f"{file.file} is of another architecture than the student's encoder ({len(faults)} "
            f"faults, the first: {faults[0]}). config.student.encoder_weights must fit "
            "config.student.size; the README's table of students has both"
        )
    tensors = {key: file.read(key) for key in file.shapes}
    load_state_dict_into(model, tensors, table, str(file.file))
