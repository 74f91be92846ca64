"""From 8-bit images to a foundation model's input, as its image processor does; jittable.

The processors of transformers resize with Pillow, which filters when it shrinks and rounds to
8 bits after each axis; so does this.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fsmde_jax.models.layers.resize import keys_kernel
from fsmde_jax.precision import full_precision

# Pillow's numbers of its filters.
_FILTERS = {2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's preprocessor_config.json says.

    Args:
        mean, std: of red, green and blue in 0..1.
        size: (height, width) the processor resizes to; None leaves the image's.
        keep_aspect_ratio: scale both sides by the one of the two factors that is nearer to 1.
        multiple_of: the sides' common divisor.
        interpolation: "bilinear" or "bicubic".
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    size: tuple[int, int] | None = None
    keep_aspect_ratio: bool = False
    multiple_of: int = 1
    interpolation: str = "bicubic"

    def input_size(self, height: int, width: int, resize: str, patch: int) -> tuple[int, int]:
        """Size of the model's input for an image of this size, as `config.teacher.resize` says.

        Args:
            height, width: of the image.
            resize: "patch" (up to the next multiple of the patch) or "processor" (`target_size`).
            patch: pixels along a patch's side.
        """
        if resize == "processor":
            return self.target_size(height, width)
        return -(-height // patch) * patch, -(-width // patch) * patch

    @classmethod
    def from_hf(cls, values: dict) -> "Preprocessing":
        """Reads preprocessor_config.json; ValueError names what is not supported."""
        size = values.get("size", 384)
        if isinstance(size, dict):
            size = (size["height"], size["width"])
        elif isinstance(size, int):
            size = (size, size)
        resample = values.get("resample", 3)
        wrong = []
        if resample not in _FILTERS:
            wrong.append(f"resample is {resample!r}, supported: {sorted(_FILTERS)}")
        if not math.isclose(values.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
            wrong.append(f"rescale_factor is {values['rescale_factor']!r}, supported: 1/255")
        for name, default in (("do_rescale", True), ("do_normalize", True), ("do_pad", False)):
            if (values.get(name) or default) != default:
                wrong.append(f"{name} is {values[name]!r}, supported: {default}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return cls(
            mean=tuple(values.get("image_mean", cls.mean)),
            std=tuple(values.get("image_std", cls.std)),
            size=tuple(size) if values.get("do_resize", True) else None,
            keep_aspect_ratio=bool(values.get("keep_aspect_ratio", False)),
            multiple_of=values.get("ensure_multiple_of") or 1,
            interpolation=_FILTERS[resample],
        )

    def to_hf(self) -> dict:
        """The preprocessor_config.json of a checkpoint."""
        (resample,) = (code for code, name in _FILTERS.items() if name == self.interpolation)
        size = self.size or (1, 1)
        return {
            "image_processor_type": "DPTImageProcessor",
            "do_resize": self.size is not None,
            "size": {"height": size[0], "width": size[1]},
            "keep_aspect_ratio": self.keep_aspect_ratio,
            "ensure_multiple_of": self.multiple_of,
            "resample": resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.std,
        }

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """The size the checkpoint's processor would give an image of this size."""
        if self.size is None:
            return height, width
        scale_y, scale_x = self.size[0] / height, self.size[1] / width
        if self.keep_aspect_ratio:
            scale_y = scale_x = min(scale_y, scale_x, key=lambda scale: abs(1 - scale))
        step = self.multiple_of
        return round(scale_y * height / step) * step, round(scale_x * width / step) * step

    def __call__(
        self, image: UInt8[Array, "b h w 3"], size: tuple[int, int]
    ) -> Float[Array, "b h2 w2 3"]:
        """The model's input at `size` (height, width)."""
        x = resize_8bit(image.astype(jnp.float32), size, self.interpolation)
        return (x / 255 - jnp.array(self.mean)) / jnp.array(self.std)


@full_precision
def resize_8bit(
    image: Float[Array, "b h w c"], size: tuple[int, int], interpolation: str
) -> Float[Array, "b h2 w2 c"]:
    """Pillow's resizing of values 0..255: antialiased, rounded after each axis (columns first)."""
    rounded = lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255)  # noqa: E731
    if image.shape[2] != size[1]:
        columns = _pillow_matrix(image.shape[2], size[1], interpolation)
        image = rounded(jnp.einsum("pw,bhwc->bhpc", columns, image))
    if image.shape[1] != size[0]:
        rows = _pillow_matrix(image.shape[1], size[0], interpolation)
        image = rounded(jnp.einsum("oh,bhwc->bowc", rows, image))
    return image


@functools.lru_cache(maxsize=64)
def _pillow_matrix(size_in: int, size_out: int, interpolation: str) -> np.ndarray:
    """Weights [size_out, size_in] of one axis; the kernel widens when it shrinks."""
    half_width, kernel = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}[interpolation]
    scale = size_in / size_out
    widen = max(scale, 1.0)
    centre = (np.arange(size_out) + 0.5)[:, None] * scale
    first = np.maximum((centre - half_width * widen + 0.5).astype(int), 0)
    last = np.minimum((centre + half_width * widen + 0.5).astype(int), size_in)
    pixel = np.arange(size_in)[None]
    weights = kernel(np.abs((pixel + 0.5 - centre) / widen))
    weights = np.where((pixel >= first) & (pixel < last), weights, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - x, 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    return keys_kernel(x, -0.5)
