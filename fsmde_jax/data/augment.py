"""Augmentation that keeps geometry true; numpy, on one sample of the rig (batch fields, no `b`)."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int, Real, UInt8
from PIL import Image

from fsmde_jax import rig

# Luma of ITU-R BT.601, as image libraries use it for saturation.
LUMA = np.array([0.299, 0.587, 0.114])

# Fields of `pipeline.place_on_rig` by what a mirror does to them: maps [n h w ...] are mirrored,
# what is of a camera (or of its points) goes with it, what is of the sample stays.
MAPS = ("image", "teacher_image", "dense_depth_m", "prediction")
OF_CAMERA = ("camera_mask", "lidar_depth_m", "native_size", "covered")
OF_SAMPLE = ("sample_index",)


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

    Images are interpolated, depth is not; points outside of the window are dropped. Raises
    ValueError for a field that it does not know.
    """
    known = {"image", "teacher_image", "dense_depth_m", "camera_mask", "intrinsics"}
    known |= {"vehicle_from_camera", "lidar_xy", "lidar_depth_m", "sample_index"}
    _refuse_unknown(sample, known, "zoom_rig")
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
    """The sample in a mirror: images, LiDAR, intrinsics and poses; left and right cameras swap.

    Raises ValueError for a field that it does not know, which would stay as it was.
    """
    order = rig.mirror_order(sample["vehicle_from_camera"], sample["camera_mask"])
    width = sample["image"].shape[2]
    mirror = {
        **dict.fromkeys(MAPS, lambda maps: np.flip(maps, axis=2)),
        **dict.fromkeys(OF_CAMERA, lambda values: values),
        "intrinsics": lambda matrices: rig.flip_intrinsics(matrices, width),
        "vehicle_from_camera": rig.flip_extrinsics,
        "lidar_xy": lambda xy: _flip_points(xy, width),
        # Pixels, not places: the last one becomes the first.
        "lidar_uv": lambda uv: _flip_points(uv, sample["native_size"][:, None, 1] - 1),
    }
    _refuse_unknown(sample, (*mirror, *OF_SAMPLE), "flip_rig")
    mirrored = {name: mirror[name](sample[name])[order] for name in mirror.keys() & sample.keys()}
    return {**sample, **{name: np.ascontiguousarray(part) for name, part in mirrored.items()}}


def _refuse_unknown(sample: dict[str, np.ndarray], known: Iterable[str], function: str) -> None:
    if unknown := sorted(sample.keys() - set(known)):
        raise ValueError(f"{function} does not know what becomes of a sample's {unknown}")


def _flip_points(
    xy: Real[np.ndarray, "n p 2"], width: int | Int[np.ndarray, "n 1"]
) -> Real[np.ndarray, "n p 2"]:
    return np.stack([width - xy[..., 0], xy[..., 1]], axis=-1)
