"""Names of foreign checkpoints: which key fills which parameter of ours.

Each family of models has a table. A rule of it says which foreign keys (a regular expression) fill
which of our parameters, and how their axes change. This is the only module that knows those names.
"""

import dataclasses

from fsmde_jax.models.encoders.mobilenet import EFFICIENTNET_LITE0, MobileNet
from fsmde_jax.models.encoders.resnet import ResNet
from fsmde_jax.models.foundation.dpt import DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig

# The axes of our arrays, as positions in torch's layout.
_AXES = {
    "linear": (1, 0),  # out in -> in out
    "conv": (2, 3, 1, 0),  # out in h w -> h w in out; transposed: in out h w -> h w out in
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Foreign keys that match all of `pattern` fill our parameter `path`.

    Args:
        pattern: regular expression.
        path: our dotted path, with the pattern's groups as \\1, \\2; None ignores the key.
        axes: "as_is" or a key of `_AXES`.
    """

    pattern: str
    path: str | None
    axes: str = "as_is"

    def order(self, ndim: int) -> tuple[int, ...]:
        """Positions of our axes in a foreign tensor of `ndim` axes."""
        axes = _AXES.get(self.axes, ())
        return axes if len(axes) == ndim else tuple(range(ndim))


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
    # The coarsest fusion layer has no second input, so its first unit is never run.
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
    Rule(r"dpt\.pooler\.dense\.(weight|bias)", None),  # used in pretraining only
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
    Rule(r"backbone\.embeddings\.mask_token", None),  # used in pretraining
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


OWN_TABLE = (Rule(r"(.+)", r"\1"),)  # our own names and axes


def table_of(config: DPTConfig | MiniConfig) -> Table:
    """The table of a model's family."""
    if isinstance(config, MiniConfig):
        return OWN_TABLE
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
    """A convolution and its batch norm by transformers' names."""
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
    """One block; transformers counts our first block as part of its stem, so it is one behind."""
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
    # What comes after the features: 1280 channels for the classifier.
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
    Rule(r"(_conv_head|_bn1|_fc)\..*", None),  # after the features, as above
)


def encoder_table(model: ResNet | MobileNet) -> Table:
    """The table of a student's encoder."""
    if isinstance(model, ResNet):
        return RESNET_TABLE
    return EFFICIENTNET_LITE_TABLE if model.config == EFFICIENTNET_LITE0 else MOBILENETV2_TABLE
