"""Bilinear reading of a map at points, with torch's conventions of where pixels are."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def read_at_pixels(
    values: Float[Array, "h w"],
    uv: Int[Array, "p 2"],
    size: Int[Array, "2"],
    align_corners: bool = False,
) -> Float[Array, "p"]:
    """What a bilinear resize of a map to `size` (height, width) has at pixels (column, row).

    Equal to torch's `interpolate` without computing the pixels in between. Places are ratios of
    integers, so they do not lose digits however large the image is.
    """
    corners = []
    for axis, pixels in ((0, uv[:, 1]), (1, uv[:, 0])):
        small, large = values.shape[axis], size[axis]
        if align_corners:
            numerator, denominator = pixels * (small - 1), jnp.maximum(large - 1, 1)
        else:
            numerator, denominator = (2 * pixels + 1) * small - large, 2 * large
        numerator = jnp.clip(numerator, 0, denominator * (small - 1))
        low = numerator // denominator
        part = (numerator - low * denominator) / denominator
        corners.append((low, jnp.minimum(low + 1, small - 1), part.astype(values.dtype)))
    return _interpolate(values, *corners)


def sample_bilinear(
    depth_map: Float[Array, "h w"], xy: Float[Array, "p 2"], size: tuple[int, int]
) -> Float[Array, "p"]:
    """Values at positions given in pixels of an image of `size` (height, width).

    Equal to a bilinear resize of the map with half-pixel centres (torch's align_corners=False)
    read at those pixels; only the pixels that carry LiDAR are computed.
    """
    height, width = depth_map.shape
    x = jnp.clip(xy[:, 0] * (width / size[1]) - 0.5, 0.0, width - 1.0)
    y = jnp.clip(xy[:, 1] * (height / size[0]) - 0.5, 0.0, height - 1.0)
    corners = []
    for position, length in ((y, height), (x, width)):
        low = jnp.floor(position).astype(jnp.int32)
        corners.append((low, jnp.minimum(low + 1, length - 1), position - low))
    return _interpolate(depth_map, *corners)


_Corners = tuple[Int[Array, "p"], Int[Array, "p"], Float[Array, "p"]]


def _interpolate(values: Float[Array, "h w"], rows: _Corners, columns: _Corners):  # -> [p]
    """Between the pixels around each point, given per axis as (low, high, share of high)."""
    (top, bottom, down), (left, right, along) = rows, columns
    upper = values[top, left] * (1 - along) + values[top, right] * along
    lower = values[bottom, left] * (1 - along) + values[bottom, right] * along
    return upper * (1 - down) + lower * down
