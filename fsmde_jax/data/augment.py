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


def zoom_rig(
    sample: dict[str, np.ndarray], largest: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Every camera zooms in on a random window, by a factor of 1 to `largest` on both sides.

    Images are interpolated, depth is not; points outside of the window are dropped.
    """
    n, height, width, _ = sample["image"].shape
    factors = np.exp(rng.uniform(0.0, np.log(largest), n))
    size = np.array([width, height]) / factors[:, None]  # of the windows, in pixels
    corner = rng.uniform(size=(n, 2)) * ([width, height] - size)
    zoomed = dict(sample)
    for name in {"image", "teacher_image"} & sample.keys():
        images = sample[name]
        scale = images.shape[2] / width
        boxes = scale * np.concatenate([corner, corner + size], axis=1)
        zoomed[name] = np.stack(
            [
                Image.fromarray(image).resize(
                    images.shape[2:0:-1], Image.Resampling.BILINEAR, box=tuple(box)
                )
                for image, box in zip(images, boxes, strict=True)
            ]
        )
    if "dense_depth_m" in sample:
        column = corner[:, :1] + (np.arange(width) + 0.5) / factors[:, None]
        row = corner[:, 1:] + (np.arange(height) + 0.5) / factors[:, None]
        zoomed["dense_depth_m"] = sample["dense_depth_m"][
            np.arange(n)[:, None, None], row.astype(int)[:, :, None], column.astype(int)[:, None]
        ]
    matrix = sample["intrinsics"].copy()
    matrix[:, :2, 2] -= corner
    matrix[:, :2] *= factors[:, None, None]
    zoomed["intrinsics"] = matrix
    xy = (sample["lidar_xy"] - corner[:, None]) * factors[:, None, None]
    inside = ((xy >= 0) & (xy < [width, height])).all(axis=-1)
    zoomed["lidar_xy"] = np.where(inside[..., None], xy, 0.0).astype(np.float32)
    zoomed["lidar_depth_m"] = np.where(inside, sample["lidar_depth_m"], np.float32(0))
    return zoomed


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
