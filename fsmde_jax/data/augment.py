"""Augmentation that keeps geometry true; numpy, on one sample of the rig (batch fields, no `b`)."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fsmde_jax import rig

# Luma of ITU-R BT.601, as image libraries use it for saturation.
LUMA = np.array([0.299, 0.587, 0.114])


def colour_jitter(
    image: UInt8[np.ndarray, "n h w 3"],
    strength: float,
    per_camera: bool,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Random brightness, contrast and saturation, factors in 1 +- strength.

    Args:
      per_camera: draw for each camera; otherwise the rig shares one draw.
    """
    draws = len(image) if per_camera else 1
    factors = rng.uniform(1 - strength, 1 + strength, (3, draws))
    out = np.empty_like(image)
    for index, (brightness, contrast, saturation) in enumerate(
        np.broadcast_to(factors, (3, len(image))).T
    ):
        # All three are linear in a pixel's colours: Pillow's loop is four times as fast as numpy's.
        colours = saturation * np.eye(3) + (1 - saturation) * LUMA
        offset = brightness * (1 - contrast) * image[index].mean()
        matrix = np.column_stack([brightness * contrast * colours, np.full(3, offset)])
        out[index] = Image.fromarray(image[index]).convert("RGB", tuple(matrix.ravel()))
    return out


def flip_rig(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sample in a mirror: images, LiDAR, intrinsics and poses; left and right cameras swap."""
    order = rig.mirror_order(sample["vehicle_from_camera"], sample["camera_mask"])
    width = sample["image"].shape[2]
    flipped = dict(sample)
    for name in ("image", "teacher_image", "dense_depth_m"):
        if name in sample:
            flipped[name] = np.ascontiguousarray(np.flip(sample[name], axis=2)[order])
    flipped["intrinsics"] = rig.flip_intrinsics(sample["intrinsics"], width)[order]
    flipped["vehicle_from_camera"] = rig.flip_extrinsics(sample["vehicle_from_camera"])[order]
    flipped["camera_mask"] = sample["camera_mask"][order]
    flipped["lidar_xy"] = _flip_points(sample["lidar_xy"], width)[order]
    flipped["lidar_depth_m"] = sample["lidar_depth_m"][order]
    return flipped


def _flip_points(xy: Float[np.ndarray, "n p 2"], width: int) -> Float[np.ndarray, "n p 2"]:
    return np.stack([width - xy[..., 0], xy[..., 1]], axis=-1)
