"""DPT (Ranftl et al., arXiv 2103.13413), and Depth Anything (arXiv 2401.10891, 2406.09414).

One architecture, channels last: a ViT, maps reassembled from four of its layers, fused from coarse
to fine, and a depth head. DPT-Hybrid takes two of the maps from a convolutional stem. Depth
Anything has DINOv2 for a backbone, normalises its layers, and keeps exact sizes on the way up.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fsmde_jax.models.foundation.bit import BiT, BiTConfig
from fsmde_jax.models.foundation.dpt_layers import DepthHead, Fusion, Reassemble
from fsmde_jax.models.foundation.vit import ViT, ViTConfig

_kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

READOUT_TYPES = ("ignore", "add", "project")


@dataclasses.dataclass(frozen=True)
class DPTConfig(ViTConfig):
    """Sizes of a DPT or Depth Anything.

    Args:
        stem: sizes of DPT-Hybrid's convolutional stem, whose maps but the last feed the neck.
        backbone_out_indices: transformer layers, from 0, that feed the neck.
        normalise_layers: the backbone's last layer norm on all of these layers (Depth Anything).
        neck_hidden_sizes: channels of the reassembled maps (and the stem's), finest first.
        reassemble_factors: size of each layer's reassembled map over the patch grid: n or 1/n.
        readout_type: what becomes of the class token: "ignore", "add" or "project".
        fusion_hidden_size: channels of the fused feature maps.
        exact_sizes: fusion enlarges to the next finer map's size and the head to the image's
            (Depth Anything); False doubles (DPT). They differ when a grid is odd or a patch not 16.
        head_in_index: which fused map the depth head reads.
        head_hidden_size: channels before the head's last convolution.
        add_projection: whether the head begins with one more convolution.
        use_bias_in_fusion_residual: biases in the fusion stage's residual units.
        max_depth_m: None predicts relative inverse depth; a number, depth in metres below it.
    """

    stem: BiTConfig | None = None
    backbone_out_indices: tuple[int, ...] = (2, 5, 8, 11)
    normalise_layers: bool = False
    neck_hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    reassemble_factors: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
    readout_type: str = "project"
    fusion_hidden_size: int = 256
    exact_sizes: bool = False
    head_in_index: int = -1
    head_hidden_size: int = 32
    add_projection: bool = False
    use_bias_in_fusion_residual: bool = True
    max_depth_m: float | None = None

    def __post_init__(self):
        super().__post_init__()
        stem_maps = len(self.stem.depths) - 1 if self.stem else 0
        layers = len(self.neck_hidden_sizes) - stem_maps
        if not len(self.backbone_out_indices) == len(self.reassemble_factors) == layers:
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
        if self.stem and self.stem.stride != self.patch_size:
            raise ValueError(f"patch_size {self.patch_size}, but stride {self.stem.stride} of stem")

    @property
    def predicts_metres(self) -> bool:
        """Whether the prediction is depth in metres, not relative inverse depth."""
        return self.max_depth_m is not None

    @property
    def feature_channels(self) -> int:
        """Channels of `DPTOutput.features`."""
        return self.fusion_hidden_size

    def build(self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> "DPT":
        """A fresh model."""
        return DPT(self, rngs=rngs, dtype=dtype)

    @classmethod
    def dpt_large(cls) -> "DPTConfig":
        """ViT-L/16 at 384 pixels, as Intel/dpt-large: 342 million parameters."""
        return cls(
            hidden_size=1024,
            num_layers=24,
            num_heads=16,
            intermediate_size=4096,
            backbone_out_indices=(5, 11, 17, 23),
            neck_hidden_sizes=(256, 512, 1024, 1024),
        )

    @classmethod
    def dpt_hybrid(cls) -> "DPTConfig":
        """BiT and ViT-B at 384 pixels, as Intel/dpt-hybrid-midas: 121 million parameters."""
        return cls(
            stem=BiTConfig(),
            backbone_out_indices=(8, 11),
            neck_hidden_sizes=(256, 512, 768, 768),
            reassemble_factors=(1.0, 0.5),
        )

    @classmethod
    def depth_anything(cls, size: str, version: int = 2) -> "DPTConfig":
        """Depth Anything "small", "base" or "large" (DINOv2 ViT-S, B or L, patches of 14)."""
        hidden, heads, fused, neck, num_layers = {
            "small": (384, 6, 64, (48, 96, 192, 384), 12),
            "base": (768, 12, 128, (96, 192, 384, 768), 12),
            "large": (1024, 16, 256, (256, 512, 1024, 1024), 24),
        }[size]
        last = num_layers - 1
        spread = (4, 11, 17, 23) if size == "large" else (2, 5, 8, 11)
        return cls(
            image_size=(518, 518),
            patch_size=14,
            hidden_size=hidden,
            num_layers=num_layers,
            num_heads=heads,
            intermediate_size=4 * hidden,
            layer_norm_eps=1e-6,
            layer_scale=True,
            position_resize="bicubic",
            backbone_out_indices=(last - 3, last - 2, last - 1, last) if version == 1 else spread,
            normalise_layers=True,
            neck_hidden_sizes=neck,
            readout_type="ignore",
            fusion_hidden_size=fused,
            exact_sizes=True,
        )

    @classmethod
    def dpt_mini(cls) -> "DPTConfig":
        """DPT-Hybrid's shape at 3.4 million parameters: that of the shipped `dpt-mini-world`."""
        return cls(
            image_size=(160, 160),
            stem=BiTConfig(
                embedding_size=16, hidden_sizes=(64, 128, 192), depths=(2, 2, 2), num_groups=8
            ),
            hidden_size=192,
            num_layers=6,
            num_heads=6,
            intermediate_size=768,
            backbone_out_indices=(2, 5),
            neck_hidden_sizes=(64, 128, 64, 96),
            reassemble_factors=(1.0, 0.5),
            fusion_hidden_size=32,
            head_hidden_size=8,
        )

    @classmethod
    def dpt_tiny(cls) -> "DPTConfig":
        """The smallest, for tests: 96x160 input, features at a quarter of it."""
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


class DPTOutput(NamedTuple):
    """What the rest of the program uses of a foundation model.

    Args:
        prediction: float32, by the config's `predicts_metres` depth in metres or relative inverse
            depth, larger nearer and not below zero.
        features: the fused feature map that the depth head reads.
        tokens: the backbone's last patch tokens, layer-normalised, or its coarsest map.
    """

    prediction: Float[Array, "b h w"]
    features: Float[Array, "b h2 w2 c"]
    tokens: Float[Array, "b rows columns d"]


class DPT(nnx.Module):
    """Depth, relative or metric, from one image; the stages are methods, called in this order."""

    def __init__(self, config: DPTConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        kwargs = dict(dtype=dtype, rngs=rngs)
        sizes, fused = config.neck_hidden_sizes, config.fusion_hidden_size
        self.config = config
        self.stem = BiT(config.stem, **kwargs) if config.stem else None
        stem_channels = config.stem.hidden_sizes[-1] if config.stem else None
        self.backbone = ViT(config, stem_channels, **kwargs)
        self.reassemble_layers = nnx.List()
        first = len(sizes) - len(config.reassemble_factors)
        for channels, factor in zip(sizes[first:], config.reassemble_factors, strict=True):
            self.reassemble_layers.append(
                Reassemble(
                    config.hidden_size, channels, factor, readout_type=config.readout_type, **kwargs
                )
            )
        self.neck_convs, self.fusion_layers = nnx.List(), nnx.List()
        for index, channels in enumerate(sizes):
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
        self.depth_head = DepthHead(
            fused,
            config.head_hidden_size,
            add_projection=config.add_projection,
            max_depth_m=config.max_depth_m,
            **kwargs,
        )

    def embed(
        self, image: Float[Array, "b h w 3"]
    ) -> tuple[list[Float[Array, "b _ _ _"]], Float[Array, "b t d"]]:
        """The stem's maps for the neck (none without a stem), and the transformer's tokens."""
        if self.stem is None:
            return [], self.backbone.embed(image)
        *maps, last = self.stem(image)
        return maps, self.backbone.embed(last)

    def encode(
        self, tokens: Float[Array, "b t d"]
    ) -> tuple[list[Float[Array, "b t d"]], Float[Array, "b t d"]]:
        """Outputs of the chosen layers, and the last layer's, layer-normalised."""
        hidden_states, last = self.backbone.encode(tokens, self.config.backbone_out_indices)
        if self.config.normalise_layers:
            hidden_states = [self.backbone.norm(tokens) for tokens in hidden_states]
        return hidden_states, last

    def reassemble(
        self,
        stem_maps: list[Float[Array, "b _ _ _"]],
        hidden_states: list[Float[Array, "b t d"]],
        grid: tuple[int, int],
    ) -> list[Float[Array, "b _ _ _"]]:
        """Feature maps, finest first."""
        layers = zip(self.reassemble_layers, hidden_states, strict=True)
        return stem_maps + [layer(tokens, grid) for layer, tokens in layers]

    def fuse(self, maps: list[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ c"]]:
        """Fused feature maps, coarsest first."""
        maps = [conv(x) for conv, x in zip(self.neck_convs, maps, strict=True)][::-1]
        fused = []
        for i, (layer, finer) in enumerate(zip(self.fusion_layers, maps, strict=True)):
            size = None
            if self.config.exact_sizes and i + 1 < len(maps):
                size = maps[i + 1].shape[1:3]
            fused.append(layer(fused[-1], finer, size) if fused else layer(finer, None, size))
        return fused

    def head(
        self, features: Float[Array, "b h w c"], image_size: tuple[int, int]
    ) -> Float[Array, "b h2 w2"]:
        """The prediction."""
        doubled = (2 * features.shape[1], 2 * features.shape[2])
        return self.depth_head(features, image_size if self.config.exact_sizes else doubled)

    def __call__(self, image: Float[Array, "b h w 3"]) -> DPTOutput:
        """Predicts from a normalised image whose sides are multiples of the patch size."""
        grid = self.config.grid(*image.shape[1:3])
        stem_maps, tokens = self.embed(image)
        hidden_states, last = self.encode(tokens)
        maps = self.fuse(self.reassemble(stem_maps, hidden_states, grid))
        features = maps[self.config.head_in_index]
        prediction = self.head(features, image.shape[1:3])
        return DPTOutput(prediction, features, last[:, 1:].reshape(last.shape[0], *grid, -1))
