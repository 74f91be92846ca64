"""Pre-norm vision transformers: the plain ViT of DPT and DINOv2's (arXiv 2304.07193)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fsmde_jax.models.layers.resize import resize_bicubic, resize_bilinear

_init = nnx.initializers.truncated_normal(0.02)
_STRIP_SCORES = 1_250_000  # of queries times keys, 5 MB, that stay in a CPU's caches


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT; the defaults are those of the Hugging Face hub's ViT configurations.

    Args:
        image_size: (height, width) in pixels that the position embedding was made for.
        patch_size: edge of a square patch in pixels.
        layer_scale: DINOv2's learned factor on what attention and MLP add.
        position_resize: how the position embedding meets other image sizes: "bilinear" (DPT) or
            "bicubic" (DINOv2).
        position_offset: 0.1 resizes as the official DINOv2 and Depth Anything code does, by the
            factor (patches + 0.1) / native patches; 0 as transformers does, to the size.
    """

    image_size: tuple[int, int] = (384, 384)
    patch_size: int = 16
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    layer_scale: bool = False
    position_resize: str = "bilinear"
    position_offset: float = 0.0

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}"
            )
        self.grid(*self.image_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"image size {height}x{width} is no multiple of patch_size {self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size


class Attention(nnx.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        d, bias = config.hidden_size, config.qkv_bias
        kwargs = dict(kernel_init=_init, dtype=dtype, rngs=rngs)
        self.num_heads = config.num_heads
        self.query = nnx.Linear(d, d, use_bias=bias, **kwargs)
        self.key = nnx.Linear(d, d, use_bias=bias, **kwargs)
        self.value = nnx.Linear(d, d, use_bias=bias, **kwargs)
        self.output = nnx.Linear(d, d, **kwargs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Attends; softmax in float32."""
        b, t, d = x.shape
        heads = (b, t, self.num_heads, d // self.num_heads)
        query, key, value = (
            layer(x).reshape(heads) for layer in (self.query, self.key, self.value)
        )
        return self.output(attend(query, key, value).reshape(b, t, d))


def attend(
    query: Float[Array, "b t h c"], key: Float[Array, "b t h c"], value: Float[Array, "b t h c"]
) -> Float[Array, "b t h c"]:
    """Softmax attention of every head.

    A CPU goes head by head, and through the queries in strips, where the scores of all heads would
    not fit its cache: at 1,814 tokens and six heads in a quarter of the time.
    """
    tokens = query.shape[1]
    if tokens * tokens < 2**18:
        return jax.nn.dot_product_attention(query, key, value)
    return jax.lax.platform_dependent(
        query, key, value, cpu=_attend_by_head, default=jax.nn.dot_product_attention
    )


def _attend_by_head(
    query: Float[Array, "b t h c"], key: Float[Array, "b t h c"], value: Float[Array, "b t h c"]
) -> Float[Array, "b t h c"]:
    b, t, h, c = query.shape
    by_head = [x.transpose(0, 2, 1, 3).reshape(b * h, t, c) for x in (query, key, value)]
    strips = -(-t * t // _STRIP_SCORES)

    def one_head(qkv):
        q, k, v = qkv
        return jnp.concatenate([_attend_strip(part, k, v) for part in jnp.array_split(q, strips)])

    return jax.lax.map(one_head, by_head).reshape(b, h, t, c).transpose(0, 2, 1, 3)


def _attend_strip(
    query: Float[Array, "s c"], key: Float[Array, "t c"], value: Float[Array, "t c"]
) -> Float[Array, "s c"]:
    """One head for some of the queries. The sum of odds divides the output, which is smaller."""
    scale = query.shape[-1] ** -0.5
    scores = jnp.matmul(query * scale, key.T, preferred_element_type=jnp.float32)
    odds = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    attended = jnp.matmul(odds.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (attended / jnp.sum(odds, axis=-1, keepdims=True)).astype(value.dtype)


class LayerScale(nnx.Module):
    """A learned factor for each channel."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Scales the channels."""
        return x * self.scale[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        d, hidden = config.hidden_size, config.intermediate_size
        kwargs = dict(dtype=dtype, rngs=rngs)
        # Fast variance (E[x^2] - E[x]^2) loses digits on the large residual streams of real ViTs.
        norm = dict(epsilon=config.layer_norm_eps, use_fast_variance=False, **kwargs)
        self.norm1 = nnx.LayerNorm(d, **norm)
        self.attention = Attention(config, **kwargs)
        self.norm2 = nnx.LayerNorm(d, **norm)
        self.mlp_in = nnx.Linear(d, hidden, kernel_init=_init, **kwargs)
        self.mlp_out = nnx.Linear(hidden, d, kernel_init=_init, **kwargs)
        self.scale1 = LayerScale(d) if config.layer_scale else None
        self.scale2 = LayerScale(d) if config.layer_scale else None

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Attention, then the MLP, each added to its input."""
        attended = self.attention(self.norm1(x))
        x = x + (attended if self.scale1 is None else self.scale1(attended))
        hidden = self.mlp_out(jax.nn.gelu(self.mlp_in(self.norm2(x)), approximate=False))
        return x + (hidden if self.scale2 is None else self.scale2(hidden))


class ViT(nnx.Module):
    """Patch embedding, class token, learned position embedding, transformer layers.

    Args:
        config: sizes.
        stem_channels: for a hybrid, channels of the feature map that takes the image's place;
            its pixels are the patches.
    """

    def __init__(
        self,
        config: ViTConfig,
        stem_channels: int | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        d, patch = config.hidden_size, (1 if stem_channels else config.patch_size,) * 2
        rows, columns = config.grid(*config.image_size)
        kwargs = dict(dtype=dtype, rngs=rngs)
        self.config = config
        self.dtype = dtype
        self.patch_embedding = nnx.Conv(
            stem_channels or 3, d, patch, patch, padding="VALID", kernel_init=_init, **kwargs
        )
        self.class_token = nnx.Param(_init(rngs.params(), (1, 1, d)))
        self.position_embedding = nnx.Param(_init(rngs.params(), (1, 1 + rows * columns, d)))
        self.blocks = nnx.List([Block(config, **kwargs) for _ in range(config.num_layers)])
        self.norm = nnx.LayerNorm(
            d, epsilon=config.layer_norm_eps, use_fast_variance=False, **kwargs
        )

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "1 t d"]:
        """The position embedding for a grid of patches."""
        embedding = self.position_embedding[...]
        native = self.config.grid(*self.config.image_size)
        patches = embedding[:, 1:].reshape(1, *native, -1)
        if self.config.position_resize == "bicubic":
            patches = resize_bicubic(patches, grid, offset=self.config.position_offset)
        else:
            patches = resize_bilinear(patches, grid)
        patches = patches.reshape(1, grid[0] * grid[1], -1)
        return jnp.concatenate([embedding[:, :1], patches], axis=1)

    def embed(self, image: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        """Tokens of a normalised image or a stem's map: class token, then patches row by row."""
        patches = self.patch_embedding(image)
        b, rows, columns, d = patches.shape
        class_token = jnp.broadcast_to(self.class_token[...], (b, 1, d)).astype(patches.dtype)
        tokens = jnp.concatenate([class_token, patches.reshape(b, rows * columns, d)], axis=1)
        return tokens + self._positions((rows, columns)).astype(patches.dtype)

    def encode(
        self, tokens: Float[Array, "b t d"], out_indices: tuple[int, ...]
    ) -> tuple[list[Float[Array, "b t d"]], Float[Array, "b t d"]]:
        """Runs the layers.

        Args:
            tokens: from `embed`.
            out_indices: layers, counted from 0, whose outputs are returned, in layer order.

        Returns:
            The chosen layers' outputs (not normalised) and the last layer's, layer-normalised.
        """
        hidden_states = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in out_indices:
                hidden_states.append(tokens)
        return hidden_states, self.norm(tokens)
