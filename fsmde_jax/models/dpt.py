"""DPT: dense prediction with a ViT backbone (Ranftl et al., arXiv 2103.13413).

The architecture of transformers' `DPTForDepthEstimation` with a plain ViT, channels last.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from fsmde_jax.models.dpt_layers import DepthHead, Fusion, Reassemble
from fsmde_jax.models.vit import ViT, ViTConfig

_kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

READOUT_TYPES = ("ignore", "add", "project")

# Hugging Face's field names where they differ from ours.
_HF_NAMES = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}


@dataclasses.dataclass(frozen=True)
class DPTConfig(ViTConfig):
    """Sizes of a DPT; defaults are transformers' own, which a hub config.json leaves out.

    Args:
        backbone_out_indices: transformer layers, from 0, that feed the neck.
        neck_hidden_sizes: channels of the reassembled maps, finest first.
        reassemble_factors: size of each reassembled map over the patch grid: n or 1/n.
        readout_type: what becomes of the class token: "ignore", "add" or "project".
        fusion_hidden_size: channels of the fused feature maps.
        head_in_index: which fused map the depth head reads.
        add_projection: whether the head begins with one more convolution.
        use_bias_in_fusion_residual: biases in the fusion stage's residual units.
    """

    backbone_out_indices: tuple[int, ...] = (2, 5, 8, 11)
    neck_hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    reassemble_factors: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
    readout_type: str = "project"
    fusion_hidden_size: int = 256
    head_in_index: int = -1
    add_projection: bool = False
    use_bias_in_fusion_residual: bool = True

    def __post_init__(self):
        super().__post_init__()
        stages = len(self.neck_hidden_sizes)
        if not len(self.backbone_out_indices) == len(self.reassemble_factors) == stages:
            raise ValueError(
                "backbone_out_indices, reassemble_factors and neck_hidden_sizes differ in length: "
                f"{self.backbone_out_indices}, {self.reassemble_factors}, {self.neck_hidden_sizes}"
            )
        if not all(0 <= index < self.num_layers for index in self.backbone_out_indices):
            raise ValueError(
                f"backbone_out_indices {self.backbone_out_indices} of {self.num_layers} layers"
            )
        if not all(max(f, 1 / f) % 1 == 0 for f in self.reassemble_factors):
            raise ValueError(f"reassemble_factors {self.reassemble_factors} are not all n or 1/n")
        if self.readout_type not in READOUT_TYPES:
            raise ValueError(f"readout_type {self.readout_type!r}, not one of {READOUT_TYPES}")

    @classmethod
    def dpt_large(cls) -> "DPTConfig":
        """ViT-L/16 at 384 pixels, as in Intel/dpt-large: 342 million parameters."""
        return cls(
            hidden_size=1024,
            num_layers=24,
            num_heads=16,
            intermediate_size=4096,
            backbone_out_indices=(5, 11, 17, 23),
            neck_hidden_sizes=(256, 512, 1024, 1024),
        )

    @classmethod
    def dpt_tiny(cls) -> "DPTConfig":
        """A small one for the demo and tests: 96x160 input, features at a quarter of it."""
        return cls(
            image_size=(96, 160),
            patch_size=16,
            hidden_size=128,
            num_layers=4,
            num_heads=4,
            intermediate_size=512,
            layer_norm_eps=1e-6,
            backbone_out_indices=(1, 2, 3),
            neck_hidden_sizes=(48, 64, 96),
            reassemble_factors=(2.0, 1.0, 0.5),
            fusion_hidden_size=48,
        )

    @classmethod
    def from_hf(cls, config: dict) -> "DPTConfig":
        """Reads the fields of a checkpoint's config.json; refuses what is not built here."""
        _refuse_unsupported(config)
        named = {_HF_NAMES.get(key, key): value for key, value in config.items()}
        known = {field.name for field in dataclasses.fields(cls)}
        values = {k: v for k, v in named.items() if k in known and v is not None}
        for key, value in values.items():
            if isinstance(value, list):
                values[key] = tuple(value)
        if isinstance(values.get("image_size"), int):
            values["image_size"] = (values["image_size"],) * 2
        if "reassemble_factors" in values:
            values["reassemble_factors"] = tuple(map(float, values["reassemble_factors"]))
        return cls(**values)


def _refuse_unsupported(config: dict):
    """Raises ValueError naming every field of config.json that asks for another architecture."""
    # Field -> the values that this file implements; an absent field is the first one.
    supported = {
        "model_type": ("dpt",),
        "is_hybrid": (False, None),
        "backbone": (None,),
        "backbone_config": (None,),
        "hidden_act": ("gelu",),
        "num_channels": (3, None),
        "use_batch_norm_in_fusion_residual": (False, None),
    }
    wrong = [
        f"{name} is {config[name]!r}, supported: {values[0]!r}"
        for name, values in supported.items()
        if name in config and config[name] not in values
    ]
    if wrong:
        raise ValueError(
            "config.json describes another model than DPT with a plain ViT: " + "; ".join(wrong)
        )


class DPTOutput(NamedTuple):
    """What the rest of the program uses of a DPT.

    Args:
        inverse_depth: relative inverse depth, larger is nearer, not below zero, float32.
        features: the fused feature map that the depth head reads.
        tokens: the backbone's last patch tokens, layer-normalised.
    """

    inverse_depth: Float[Array, "b h w"]
    features: Float[Array, "b h2 w2 c"]
    tokens: Float[Array, "b rows columns d"]


def normalise(image: UInt8[Array, "*batch h w 3"]) -> Float[Array, "*batch h w 3"]:
    """Pixel values 0..255 to -1..1 (mean and standard deviation 0.5), as DPT was trained."""
    return image.astype(jnp.float32) / 127.5 - 1.0


class DPT(nnx.Module):
    """Relative inverse depth from one image; the stages are methods, called in this order."""

    def __init__(self, config: DPTConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        kwargs = dict(dtype=dtype, rngs=rngs)
        sizes, fused = config.neck_hidden_sizes, config.fusion_hidden_size
        self.config = config
        self.backbone = ViT(config, **kwargs)
        self.reassemble_layers, self.neck_convs, self.fusion_layers = (
            nnx.List(),
            nnx.List(),
            nnx.List(),
        )
        for index, (channels, factor) in enumerate(
            zip(sizes, config.reassemble_factors, strict=True)
        ):
            self.reassemble_layers.append(
                Reassemble(
                    config.hidden_size, channels, factor, readout_type=config.readout_type, **kwargs
                )
            )
            self.neck_convs.append(
                nnx.Conv(
                    channels,
                    fused,
                    (3, 3),
                    padding=((1, 1), (1, 1)),
                    use_bias=False,
                    kernel_init=_kaiming,
                    **kwargs,
                )
            )
            use_bias = config.use_bias_in_fusion_residual
            self.fusion_layers.append(
                Fusion(fused, has_finer=index > 0, use_bias=use_bias, **kwargs)
            )
        self.depth_head = DepthHead(fused, add_projection=config.add_projection, **kwargs)

    def embed(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Tokens of a normalised image."""
        return self.backbone.embed(image)

    def encode(
        self, tokens: Float[Array, "b t d"]
    ) -> tuple[list[Float[Array, "b t d"]], Float[Array, "b t d"]]:
        """Outputs of the chosen layers, and the last layer's, layer-normalised."""
        return self.backbone.encode(tokens, self.config.backbone_out_indices)

    def reassemble(
        self, hidden_states: list[Float[Array, "b t d"]], grid: tuple[int, int]
    ) -> list[Float[Array, "b _ _ _"]]:
        """Feature maps, finest first."""
        layers = zip(self.reassemble_layers, hidden_states, strict=True)
        return [layer(tokens, grid) for layer, tokens in layers]

    def fuse(self, maps: list[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ c"]]:
        """Fused feature maps, coarsest first."""
        maps = [conv(x) for conv, x in zip(self.neck_convs, maps, strict=True)][::-1]
        fused = [self.fusion_layers[0](maps[0])]
        for layer, finer in zip(self.fusion_layers[1:], maps[1:], strict=True):
            fused.append(layer(fused[-1], finer))
        return fused

    def head(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2"]:
        """Relative inverse depth."""
        return self.depth_head(features)

    def __call__(self, image: Float[Array, "b h w 3"]) -> DPTOutput:
        """Predicts from a normalised image whose sides are multiples of the patch size."""
        grid = self.config.grid(*image.shape[1:3])
        hidden_states, last = self.encode(self.embed(image))
        features = self.fuse(self.reassemble(hidden_states, grid))[self.config.head_in_index]
        tokens = last[:, 1:].reshape(last.shape[0], *grid, -1)
        return DPTOutput(self.head(features), features, tokens)
