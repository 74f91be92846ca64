"""Architectures in JSON: config.json of the Hugging Face hub to our configs, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fsmde_jax.models.foundation.bit import BiTConfig
from fsmde_jax.models.foundation.dpt import DPTConfig
from fsmde_jax.models.foundation.mini import MiniConfig
from fsmde_jax.models.foundation.preprocess import Preprocessing

SUPPORTED = (
    "DPT with a plain ViT (Intel/dpt-large), DPT-Hybrid (Intel/dpt-hybrid-midas), and Depth "
    "Anything V1 or V2 with DINOv2 (LiheYoung/depth-anything-small-hf, "
    "depth-anything/Depth-Anything-V2-Small-hf, their Base and Large, V2's metric variants), and "
    "what configs/demo_teacher.py trains"
)

# Published checkpoints, whose sizes `--dry_run` knows without a network.
PUBLISHED = {
    "Intel/dpt-large": DPTConfig.dpt_large(),
    "Intel/dpt-hybrid-midas": DPTConfig.dpt_hybrid(),
    **{
        f"LiheYoung/depth-anything-{size}-hf": DPTConfig.depth_anything(size, version=1)
        for size in ("small", "base", "large")
    },
    **{
        f"depth-anything/Depth-Anything-V2-{size}-hf": DPTConfig.depth_anything(size.lower())
        for size in ("Small", "Base", "Large")
    },
    **{
        f"depth-anything/Depth-Anything-V2-Metric-{place}-{size}-hf": dataclasses.replace(
            DPTConfig.depth_anything(size.lower()), max_depth_m=max_depth_m
        )
        for place, max_depth_m in (("Indoor", 20.0), ("Outdoor", 80.0))
        for size in ("Small", "Base", "Large")
    },
}

# A model_type of our own; transformers does not know it.
_MINI = "fsmde_jax_mini"

# Hugging Face's field names -> ours, where they differ.
_RENAMED = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
# The fields of config.json that a transformer's sizes are read from.
_VIT_FIELDS = ("hidden_size", "layer_norm_eps", "qkv_bias", "image_size", "patch_size", *_RENAMED)
_NECK_FIELDS = ("neck_hidden_sizes", "reassemble_factors", "fusion_hidden_size", "head_in_index")
_DPT_FIELDS = (
    *_VIT_FIELDS,
    *_NECK_FIELDS,
    *("intermediate_size", "backbone_out_indices", "readout_type", "add_projection"),
    "use_bias_in_fusion_residual",
    "head_hidden_size",  # ours: transformers builds 32 and has no such field
)

# transformers' defaults where they are not `DPTConfig`'s; config.json leaves out what is default.
_DINOV2_DEFAULTS = {
    "image_size": 224,
    "patch_size": 14,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
}
_DEPTH_ANYTHING_DEFAULTS = {
    "reassemble_hidden_size": 384,
    "neck_hidden_sizes": (48, 96, 192, 384),
    "reassemble_factors": (4, 2, 1, 0.5),
    "fusion_hidden_size": 64,
    "head_in_index": -1,
}


def foundation_config(values: Mapping[str, Any]) -> DPTConfig | MiniConfig:
    """The architecture that a config.json describes; ValueError names what is not built here."""
    if not isinstance(values, Mapping):
        raise ValueError(f"holds {type(values).__name__}, not an object")
    readers = {"dpt": _dpt, "depth_anything": _depth_anything, _MINI: _mini}
    family = values.get("model_type")
    if family not in readers:
        named = (values.get("architectures") or ["?"])[0]
        raise ValueError(
            f"model_type is {family!r} (architecture {named}), which is not supported. "
            f"Supported: {SUPPORTED}"
        )
    return readers[family](values)


def default_preprocessing(config: DPTConfig | MiniConfig) -> Preprocessing:
    """The image processor of this family, for checkpoints that come without its file."""
    if isinstance(config, MiniConfig) or not config.normalise_layers:
        return Preprocessing(size=config.image_size)
    return Preprocessing(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=config.image_size,
        keep_aspect_ratio=True,
        multiple_of=config.patch_size,
    )


def _dpt(values: Mapping[str, Any]) -> DPTConfig:
    hybrid = bool(values.get("is_hybrid"))
    _refuse(
        values,
        {
            "hidden_act": ("gelu",),
            "num_channels": (3, None),
            "use_batch_norm_in_fusion_residual": (False, None),
            "backbone": (None,),
            "neck_ignore_stages": ([0, 1],) if hybrid else ([], [0, 1], None),
            **({} if hybrid else {"backbone_config": (None,)}),
        },
    )
    fields = _fields(values, _DPT_FIELDS)
    if hybrid:
        # The stem's two maps take the place of the first two layers.
        fields["stem"] = _bit(values.get("backbone_config") or {})
        for name, default in (
            ("backbone_out_indices", DPTConfig.backbone_out_indices),
            ("reassemble_factors", DPTConfig.reassemble_factors),
        ):
            fields[name] = fields.get(name, default)[2:]
    return DPTConfig(**fields)


def _mini(values: Mapping[str, Any]) -> MiniConfig:
    return MiniConfig(**_fields(values, [field.name for field in dataclasses.fields(MiniConfig)]))


def to_json(config: DPTConfig | MiniConfig) -> dict[str, Any]:
    """The config.json of an architecture; `foundation_config` reads it back.

    transformers reads it, too, if it has the architecture.
    """
    if isinstance(config, MiniConfig):
        return {"model_type": _MINI, **dataclasses.asdict(config)}
    value_of = lambda name: getattr(config, _RENAMED.get(name, name))  # noqa: E731
    vit, neck = ({n: value_of(n) for n in names} for names in (_VIT_FIELDS, _NECK_FIELDS))
    # torch uses a factor as a kernel's size, so whole ones must be int.
    factors = [int(factor) if factor >= 1 else factor for factor in config.reassemble_factors]
    if config.normalise_layers:
        layers = [index + 1 for index in config.backbone_out_indices]
        metric = {"depth_estimation_type": "metric", "max_depth": int(config.max_depth_m or 1)}
        return {
            "model_type": "depth_anything",
            "backbone_config": vit
            | {
                "model_type": "dinov2",
                "image_size": config.image_size[0],
                "mlp_ratio": config.intermediate_size // config.hidden_size,
                "out_indices": layers,
                "reshape_hidden_states": False,
            },
            **neck,
            "patch_size": config.patch_size,
            "reassemble_factors": factors,
            "reassemble_hidden_size": config.hidden_size,
            "head_hidden_size": config.head_hidden_size,
            **(metric if config.predicts_metres else {}),
        }
    values = {"model_type": "dpt", **{name: value_of(name) for name in _DPT_FIELDS}}
    if config.stem is None:
        return values | {"reassemble_factors": factors}
    stem = dataclasses.asdict(config.stem)
    stem["hidden_sizes"] = [*stem["hidden_sizes"], 2 * stem["hidden_sizes"][-1]]
    return values | {
        "is_hybrid": True,
        "reassemble_factors": [1, 1, *factors],
        "backbone_out_indices": [
            0,
            0,
            *config.backbone_out_indices,
        ],  # the stem's two: never read
        "backbone_featmap_shape": [
            1,
            config.stem.hidden_sizes[-1],
            *config.grid(*config.image_size),
        ],
        "neck_ignore_stages": [0, 1],
        "backbone_config": stem
        | {
            "model_type": "bit",
            "layer_type": "bottleneck",
            "global_padding": "same",
            "embedding_dynamic_padding": True,
            "out_features": ["stage1", "stage2", "stage3"],
        },
    }


def _bit(values: Mapping[str, Any]) -> BiTConfig:
    """DPT-Hybrid's convolutional stem."""
    _refuse(
        values,
        {
            "model_type": ("bit",),
            "layer_type": ("bottleneck",),
            "global_padding": ("same", "SAME"),
            "embedding_dynamic_padding": (True,),
            "hidden_act": ("relu",),
            "width_factor": (1,),
            "output_stride": (32,),
            "out_features": (["stage1", "stage2", "stage3"],),
        },
    )
    fields = _fields(values, [field.name for field in dataclasses.fields(BiTConfig)])
    if "depths" in fields:
        # transformers always lists four stages; only as many as `depths` has are built.
        sizes = fields.get("hidden_sizes", (256, 512, 1024, 2048))
        fields["hidden_sizes"] = sizes[: len(fields["depths"])]
    return BiTConfig(**fields)


def _depth_anything(values: Mapping[str, Any]) -> DPTConfig:
    backbone = {**_DINOV2_DEFAULTS, **(values.get("backbone_config") or {})}
    _refuse(
        backbone,
        {
            "model_type": ("dinov2",),
            "hidden_act": ("gelu",),
            "num_channels": (3,),
            "use_swiglu_ffn": (False,),
            "apply_layernorm": (True,),
            "reshape_hidden_states": (False,),
        },
    )
    _refuse(values, {"backbone": (None,), "depth_estimation_type": ("relative", "metric")})
    values = {**_DEPTH_ANYTHING_DEFAULTS, **values}
    fields = _fields(backbone, _VIT_FIELDS) | _fields(values, _NECK_FIELDS)
    if values["reassemble_hidden_size"] != fields["hidden_size"]:
        raise ValueError(
            f"reassemble_hidden_size is {values['reassemble_hidden_size']}, but the backbone's "
            f"hidden_size is {fields['hidden_size']}"
        )
    metric = values.get("depth_estimation_type", "relative") == "metric"
    return DPTConfig(
        **fields,
        intermediate_size=int(fields["hidden_size"] * backbone.get("mlp_ratio", 4)),
        layer_scale=True,
        position_resize="bicubic",
        backbone_out_indices=_layers(backbone, fields["num_layers"]),
        normalise_layers=True,
        readout_type="ignore",
        exact_sizes=True,
        head_hidden_size=values.get("head_hidden_size", 32),
        max_depth_m=float(values.get("max_depth") or 1) if metric else None,
    )


def _layers(backbone: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Indices of layers. In transformers 0 is the stem; here it is the first layer."""
    if backbone.get("out_indices"):
        return tuple(index - 1 for index in backbone["out_indices"])
    if backbone.get("out_features"):
        return tuple(int(name.removeprefix("stage")) - 1 for name in backbone["out_features"])
    return tuple(range(num_layers - 4, num_layers))


def _fields(values: Mapping[str, Any], names: Any) -> dict[str, Any]:
    """Those of the named fields that are set, under our names; lists become tuples."""
    found = {n: values[n] for n in names if values.get(n) is not None}
    for name, value in found.items():
        if isinstance(value, list | tuple):
            found[name] = tuple(value)
    if isinstance(found.get("image_size"), int):
        found["image_size"] = (found["image_size"],) * 2
    if "reassemble_factors" in found:
        found["reassemble_factors"] = tuple(map(float, found["reassemble_factors"]))
    return {_RENAMED.get(name, name): value for name, value in found.items()}


def _refuse(values: Mapping[str, Any], supported: Mapping[str, tuple]) -> None:
    """Raises ValueError naming each field with an unsupported value; an absent field is fine."""
    wrong = [
        f"{name} is {values[name]!r}, supported: {', '.join(map(repr, allowed))}"
        for name, allowed in supported.items()
        if name in values and values[name] not in allowed
    ]
    if wrong:
        raise ValueError("describes an architecture not built here: " + "; ".join(wrong))
