"""Do the cameras of a ring agree? One scale over the rig, one depth where views overlap."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fsmde_jax import rig
from fsmde_jax.evaluate.metrics import masked_median
from fsmde_jax.precision import full_precision

NAMES = ("scale_spread", "overlap_disagreement")

# Depth in the overlap is compared on a grid of about this many columns.
GRID_COLUMNS = 80


def median_scale(
    depth_m: Float[Array, "b n p"], truth_m: Float[Array, "b n p"], valid: Bool[Array, "b n p"]
) -> Float[Array, "b n"]:
    """The median of prediction / truth in each image; NaN without truth."""
    ratio = jnp.where(valid, depth_m / jnp.where(valid, truth_m, 1.0), 1.0)
    median = jax.vmap(jax.vmap(masked_median))(ratio, valid)
    return jnp.where(jnp.any(valid, axis=-1), median, jnp.nan)


def scale_spread(scale: Float[Array, "b n"]) -> Float[Array, "b"]:
    """Standard deviation of log(`median_scale`) over the rig's cameras.

    It is about their relative spread: 0.05 says that cameras differ by some 5 %. NaN for fewer
    than two cameras with truth.
    """
    seen = ~jnp.isnan(scale)
    count = jnp.sum(seen, axis=1)
    log_scale = jnp.log(jnp.where(seen, scale, 1.0))
    mean = jnp.sum(log_scale, axis=1) / jnp.maximum(count, 1)
    squares = jnp.where(seen, (log_scale - mean[:, None]) ** 2, 0.0)
    spread = jnp.sqrt(jnp.sum(squares, axis=1) / jnp.maximum(count, 1))
    return jnp.where(count > 1, spread, jnp.nan)


@full_precision
def overlap_disagreement(
    depth_m: Float[Array, "b n h w"],
    intrinsics: Float[Array, "b n 3 3"],
    size: tuple[int, int],
    vehicle_from_camera: Float[Array, "b n 4 4"],
    neighbour: Int[Array, "b n"],
    neighbour_mask: Bool[Array, "b n"],
) -> Float[Array, "b"]:
    """Mean |log z_ij - log d_j| over pixels of camera i that its neighbour j sees, too.

    A pixel's predicted depth places it in space: z_ij is its depth seen from j, and d_j is the
    depth that j predicts there. Each pair counts in both directions; the mean is over pairs. No
    truth is needed. The cameras are taken to see the same instant. Surfaces that only one of
    them sees (their centres are about a metre apart) add to every method alike. Depth 0 is no
    prediction. NaN without an overlap.

    Args:
      intrinsics: in pixels of an image of `size` (height, width).
      neighbour, neighbour_mask: adjacent cameras, see `rig.ring_neighbours`.
    """
    height, width = depth_m.shape[2:]
    scale = jnp.array([width / size[1], height / size[0], 1.0])
    intrinsics = intrinsics * scale[:, None]
    step = max(1, width // GRID_COLUMNS)
    y, x = jnp.mgrid[step // 2 : height : step, step // 2 : width : step]
    centres = jnp.stack([x, y], axis=-1).reshape(-1, 2) + 0.5

    # Both ways of every pair: camera n sees its neighbour, then the neighbour sees camera n.
    def of_rig(depth, k, pose, following, mask):
        cameras = jnp.arange(len(following))
        one, other = jnp.concatenate([cameras, following]), jnp.concatenate([following, cameras])
        grid = depth[:, step // 2 :: step, step // 2 :: step].reshape(len(cameras), -1)
        xy = jnp.broadcast_to(centres, (*grid.shape, 2))
        in_vehicle = rig.transform(pose, rig.unproject(xy, grid, k))
        in_other = rig.transform_back(pose[other], in_vehicle[one])
        z = in_other[..., 2]
        ahead = z > 0.1
        seen = rig.project(jnp.where(ahead[..., None], in_other, 1.0), k[other])
        place = jnp.floor(jnp.clip(seen, -1.0, 1e6)).astype(jnp.int32)
        column, row = place[..., 0], place[..., 1]
        inside = ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = (other[:, None] * height + row) * width + column
        there = depth.reshape(-1)[jnp.where(inside, index, 0)]
        inside &= there > 0
        ratio = z / jnp.where(inside, there, 1.0)
        apart = jnp.sum(jnp.abs(jnp.log(jnp.where(inside, ratio, 1.0))), axis=-1)
        apart, count = (
            part[: len(cameras)] + part[len(cameras) :]
            for part in (apart, jnp.sum(inside, axis=-1))
        )
        used = mask & (count > 0)
        mean = jnp.sum(jnp.where(used, apart / jnp.maximum(count, 1), 0.0))
        return jnp.where(jnp.any(used), mean / jnp.maximum(jnp.sum(used), 1), jnp.nan)

    return jax.vmap(of_rig)(depth_m, intrinsics, vehicle_from_camera, neighbour, neighbour_mask)
