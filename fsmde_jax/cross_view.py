"""Do the cameras of a ring agree? Measures of one scale over the rig, and of overlaps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fsmde_jax.metrics import masked_median

NAMES = ("scale_spread", "overlap_disagreement")

# Depth in the overlap is compared on a grid of about this many columns.
GRID_COLUMNS = 160


def median_scale(
    depth_m: Float[Array, "b n p"], truth_m: Float[Array, "b n p"], valid: Bool[Array, "b n p"]
) -> Float[Array, "b n"]:
    """Each image's median of prediction / truth; NaN without truth."""
    ratio = jnp.where(valid, depth_m / jnp.where(valid, truth_m, 1.0), 1.0)
    median = jax.vmap(jax.vmap(masked_median))(ratio, valid)
    return jnp.where(jnp.any(valid, axis=-1), median, jnp.nan)


def scale_spread(scale: Float[Array, "b n"]) -> Float[Array, "b"]:
    """Standard deviation over the rig's cameras of the logarithm of `median_scale`.

    About the relative spread: 0.05 says that cameras differ by some 5 %. NaN for fewer than two.
    """
    seen = ~jnp.isnan(scale)
    count = jnp.sum(seen, axis=1)
    log_scale = jnp.log(jnp.where(seen, scale, 1.0))
    mean = jnp.sum(log_scale, axis=1) / jnp.maximum(count, 1)
    squares = jnp.where(seen, (log_scale - mean[:, None]) ** 2, 0.0)
    spread = jnp.sqrt(jnp.sum(squares, axis=1) / jnp.maximum(count, 1))
    return jnp.where(count > 1, spread, jnp.nan)


def overlap_disagreement(
    depth_m: Float[Array, "b n h w"],
    intrinsics: Float[Array, "b n 3 3"],
    size: tuple[int, int],
    vehicle_from_camera: Float[Array, "b n 4 4"],
    neighbour: Int[Array, "b n"],
    neighbour_mask: Bool[Array, "b n"],
) -> Float[Array, "b"]:
    """Mean |log z_ij - log d_j| where a camera's pixels, placed by their depth, land in the next.

    z_ij is the depth of camera i's pixel seen from its neighbour j, d_j what j itself predicts
    there; pairs both ways, averaged over pairs. No truth is needed. The cameras are taken to see
    one instant; what only one of them sees (parallax of a metre) adds to every method alike.
    NaN without an overlap.

    Args:
      intrinsics: in pixels of an image of `size` (height, width).
      neighbour, neighbour_mask: adjacent cameras, see `rig.ring_neighbours`.
    """
    height, width = depth_m.shape[2:]
    scale = jnp.array([width / size[1], height / size[0], 1.0])
    intrinsics = intrinsics * scale[:, None]
    step = max(1, width // GRID_COLUMNS)
    y, x = jnp.mgrid[step // 2 : height : step, step // 2 : width : step]
    pixels = jnp.stack([x + 0.5, y + 0.5, jnp.ones_like(x, jnp.float32)], axis=-1).reshape(-1, 3)

    def one_way(depth_i, depth_j, k_i, k_j, vehicle_from_i, vehicle_from_j):
        at = depth_i[y, x].reshape(-1, 1) * (pixels @ jnp.linalg.inv(k_i).T)
        in_vehicle = at @ vehicle_from_i[:3, :3].T + vehicle_from_i[:3, 3]
        in_j = (in_vehicle - vehicle_from_j[:3, 3]) @ vehicle_from_j[:3, :3]
        z = in_j[:, 2]
        seen = (in_j @ k_j.T)[:, :2] / jnp.where(z > 0.1, z, 1.0)[:, None]
        column, row = jnp.floor(jnp.clip(seen, -1.0, 1e6)).astype(jnp.int32).T
        inside = (z > 0.1) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        there = depth_j[jnp.where(inside, row, 0), jnp.where(inside, column, 0)]
        apart = jnp.abs(jnp.log(jnp.where(inside, z / there, 1.0)))
        return jnp.sum(apart), jnp.sum(inside)

    def of_rig(depth, k, pose, following, mask):
        first = (depth, k, pose)
        second = tuple(array[following] for array in first)
        pairs = jax.vmap(one_way)
        forth = pairs(first[0], second[0], first[1], second[1], first[2], second[2])
        back = pairs(second[0], first[0], second[1], first[1], second[2], first[2])
        total, count = forth[0] + back[0], forth[1] + back[1]
        used = mask & (count > 0)
        mean = jnp.sum(jnp.where(used, total / jnp.maximum(count, 1), 0.0))
        return jnp.where(jnp.any(used), mean / jnp.maximum(jnp.sum(used), 1), jnp.nan)

    return jax.vmap(of_rig)(depth_m, intrinsics, vehicle_from_camera, neighbour, neighbour_mask)
