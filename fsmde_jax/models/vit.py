"""Plain pre-norm vision transformer, the backbone of DPT."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fsmde_jax.models.resize import resize_bilinear

_init = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Sizes of a ViT; the defaults are those of the Hugging Face hub's ViT configurations.

    Args:
        image_size: (height, width) in pixels that the position embedding was made for.
        patch_size: edge of a square patch in pixels.
    """

    image_size: tuple[int, int] = (384, 384)
    patch_size: int = 16
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True

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
        return self.output(jax.nn.dot_product_attention(query, key, value).reshape(b, t, d))


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

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Attention, then the MLP, each added to its input."""
        x = x + self.attention(self.norm1(x))
        hidden = jax.nn.gelu(self.mlp_in(self.norm2(x)), approximate=False)
        return x + self.mlp_out(hidden)


class ViT(nnx.Module):
    """Patch embedding, class token, learned position embedding, transformer layers."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        d, patch = config.hidden_size, (config.patch_size,) * 2
        rows, columns = config.grid(*config.image_size)
        kwargs = dict(dtype=dtype, rngs=rngs)
        self.config = config
        self.dtype = dtype
        self.patch_embedding = nnx.Conv(
            3, d, patch, strides=patch, padding="VALID", kernel_init=_init, **kwargs
        )
        self.class_token = nnx.Param(_init(rngs.params(), (1, 1, d)))
        self.position_embedding = nnx.Param(_init(rngs.params(), (1, 1 + rows * columns, d)))
        self.blocks = nnx.List([Block(config, **kwargs) for _ in range(config.num_layers)])
        self.norm = nnx.LayerNorm(
            d, epsilon=config.layer_norm_eps, use_fast_variance=False, **kwargs
        )

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "1 t d"]:
        """The position embedding for a grid of patches, resized as DPT does: bilinearly."""
        embedding = self.position_embedding[...]
        native = self.config.grid(*self.config.image_size)
        patches = embedding[:, 1:].reshape(1, *native, -1)
        patches = resize_bilinear(patches, grid).reshape(1, grid[0] * grid[1], -1)
        return jnp.concatenate([embedding[:, :1], patches], axis=1)

    def embed(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Tokens of a normalised image: the class token, then the patches row by row."""
        b, height, width, _ = image.shape
        grid = self.config.grid(height, width)
        patches = self.patch_embedding(image).reshape(b, grid[0] * grid[1], -1)
        class_token = jnp.broadcast_to(self.class_token[...], (b, 1, patches.shape[-1]))
        tokens = jnp.concatenate([class_token.astype(patches.dtype), patches], axis=1)
        return tokens + self._positions(grid).astype(patches.dtype)

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
