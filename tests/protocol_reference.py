"""The evaluation protocols in plain numpy on full-resolution maps, written from their descriptions.

Nothing here knows the package: clouds and maps in, figures out, in float64. Slow on purpose.
"""

import numpy as np


def dense_truth(uv, depth_m, size):
    """A native map with 0 where there is no LiDAR."""
    truth = np.zeros(size)
    truth[uv[:, 1], uv[:, 0]] = depth_m
    return truth


def project(points_m, world_from_lidar, world_from_camera, intrinsics, size, rule):
    """A native map from a cloud in the LiDAR's frame; "dgp", "surrounddepth" or "vfdepth"."""
    to_camera = np.linalg.inv(world_from_camera) @ world_from_lidar
    truth = np.zeros(size)
    for x, y, z in points_m.astype(np.float64) @ to_camera[:3, :3].T + to_camera[:3, 3]:
        if z <= 0:
            continue
        place = np.array([intrinsics[0][0] * x / z, intrinsics[1][1] * y / z])
        place += intrinsics[0][2], intrinsics[1][2]
        last = np.array(size)[::-1] - 1
        if rule == "vfdepth" and ((place < 0) | (place > last)).any():
            continue
        place = np.trunc(place) if rule == "dgp" else np.rint(place)
        if ((place >= 0) & (place <= last)).all():
            truth[int(place[1]), int(place[0])] = z
    return truth


def resize(values, size, align_corners):
    """Bilinear, as torch's `interpolate`: rows, then columns."""
    for axis in (0, 1):
        small, large = values.shape[axis], size[axis]
        place = np.arange(large, dtype=np.float64)
        if align_corners:
            place = place * (small - 1) / max(large - 1, 1)
        else:
            place = np.clip((place + 0.5) * small / large - 0.5, 0, small - 1)
        low = np.minimum(place.astype(int), small - 1)
        high = np.minimum(low + 1, small - 1)
        part = np.expand_dims(place - low, 1 - axis)
        values = values.take(low, axis) * (1 - part) + values.take(high, axis) * part
    return values


def shrink_truth(truth, size):
    """Every native point goes to the pixel `int(place * small / large)`; the last one stays."""
    small = np.zeros(size)
    for row, column in np.argwhere(truth > 0):
        place = (int(row * size[0] / truth.shape[0]), int(column * size[1] / truth.shape[1]))
        small[place] = truth[row, column]
    return small


def errors(predicted, truth):
    """The seven figures of one set of pixels."""
    ratio = np.maximum(predicted / truth, truth / predicted)
    return [
        np.mean(np.abs(predicted - truth) / truth),
        np.mean((predicted - truth) ** 2 / truth),
        np.sqrt(np.mean((predicted - truth) ** 2)),
        np.sqrt(np.mean((np.log(predicted) - np.log(truth)) ** 2)),
        *(np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
    ]


def lower_median(values):
    """torch's: the lower of two middle values."""
    return np.sort(values)[(len(values) - 1) // 2]


def affine(predicted, truth):
    """Scale and shift of inverse depth by least squares."""
    design = np.stack([1 / predicted, np.ones_like(predicted)], axis=1)
    scale, shift = np.linalg.lstsq(design, 1 / truth, rcond=None)[0]
    return 1 / np.maximum(scale / predicted + shift, 1e-6)


def surrounddepth(samples, scaling, low, high):
    """Native pixels; per image, per camera, mean of cameras."""
    pixels = {
        key: _native(prediction, truth, False, low, high) for key, prediction, truth in samples
    }
    pixels = _scaled(pixels, scaling, np.median, lambda scene, sample: scene)
    by_camera = {}
    for (_, _, camera), (p, t) in pixels.items():
        by_camera.setdefault(camera, []).append(errors(np.clip(p, low, high), t))
    return np.mean([np.mean(rows, axis=0) for rows in by_camera.values()], axis=0)


def packnet(samples, scaling, low, high):
    """Native pixels by aligned corners; the mean of all images."""
    pixels = {
        key: _native(prediction, truth, True, 0.0, high) for key, prediction, truth in samples
    }
    pixels = _scaled(pixels, scaling, lower_median, lambda scene, sample: scene)
    return np.mean([errors(np.clip(p, 1e-6, high), t) for p, t in pixels.values()], axis=0)


ssdepth = surrounddepth  # the predictions are mirrored already, or not


def vfdepth(samples, scaling, low, high, network_size):
    """Network pixels; pooled over batches of four per camera, mean of cameras, mean of batches.

    `samples` are in order; the last ones that make no batch of four are left out.
    """
    pixels = {}
    whole = (max(sample for (_, sample, _), _, _ in samples) + 1) // 4 * 4
    for key, prediction, truth in samples:
        if key[1] >= whole:
            continue
        truth = shrink_truth(truth, network_size)
        valid = (truth > 0) & (truth < high)
        predicted = np.clip(resize(prediction, network_size, False), 0.0, high)
        if valid.any():
            pixels[key] = predicted[valid], truth[valid]
    pixels = _scaled(pixels, scaling, lower_median, lambda scene, sample: sample // 4)
    batches = {}
    for (_, sample, camera), (p, t) in pixels.items():
        batch = batches.setdefault(sample // 4, {}).setdefault(camera, ([], []))
        batch[0].append(np.clip(p, 1e-6, high))
        batch[1].append(t)
    return np.mean(
        [
            np.mean([errors(*map(np.concatenate, pair)) for pair in batch.values()], axis=0)
            for batch in batches.values()
        ],
        axis=0,
    )


def _native(prediction, truth, align_corners, low, high):
    valid = (truth > low) & (truth < high)
    return resize(prediction, truth.shape, align_corners)[valid], truth[valid]


def _scaled(pixels, scaling, median, group_of):
    """`pixels`: {(scene, sample, camera): (predicted, truth)}, brought to metres."""
    pixels = {key: pair for key, pair in pixels.items() if len(pair[1])}
    if scaling == "metric":
        return pixels
    if scaling == "affine":
        return {key: (affine(p, t), t) for key, (p, t) in pixels.items()}
    if scaling == "median_image":
        return {key: (p * median(t) / median(p), t) for key, (p, t) in pixels.items()}
    groups = {}
    for (scene, sample, camera), pair in pixels.items():
        groups.setdefault((group_of(scene, sample), camera), []).append(pair)
    ratios = {
        group: median(np.concatenate([t for _, t in pairs]))
        / median(np.concatenate([p for p, _ in pairs]))
        for group, pairs in groups.items()
    }
    return {
        (scene, sample, camera): (p * ratios[group_of(scene, sample), camera], t)
        for (scene, sample, camera), (p, t) in pixels.items()
    }
