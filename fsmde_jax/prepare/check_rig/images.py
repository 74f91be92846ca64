"""Evidence of images: brightness of LiDAR points that cameras share, and jumps of brightness."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from fsmde_jax.data.readers.recording import Camera
from fsmde_jax.prepare.check_rig.frame import MIN_POINTS, Finding, Frame, project

MIN_AGREEMENT = 0.3
SWAP_GAIN, TURN_GAIN = 0.25, 0.06
LIDAR_TURNS = {
    "90° to the left about z": np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "90° to the right about z": np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
    "180° about z": np.diag([-1.0, -1, 1]),
    "180° about x": np.diag([1.0, -1, -1]),
    "180° about y": np.diag([-1.0, 1, -1]),
}


def findings(frames: list[Frame], sound: list[int]) -> list[Finding]:
    """What the images tell about the LiDAR and about cameras that geometry found sound.

    Args:
      sound: indices of those cameras.
    """
    with_points = [frame for frame in frames if len(frame.points_m)]
    if not with_points or not sound:
        return []
    names = [frames[0].sample.cameras[i].name for i in sound]
    edges = _mean([_edges(frame, sound) for frame in with_points])
    if np.isnan(edges).all():
        reached = f"fewer than {MIN_POINTS} points fall into any image"
        text = f"{reached}. Are the poses of LiDAR and cameras in the same frame?"
        return [Finding("LiDAR", "elsewhere", text)]
    shared = _mean([_shared(frame, sound) for frame in with_points])
    found = _swaps(edges, shared, names)
    # A few cameras are no evidence about the LiDAR.
    if not found and 2 * len(sound) >= len(frames[0].images):
        found = _lidar_turn(with_points, sound)
    return found or _misplaced(_agreement(shared, range(len(sound))), names)


def _brightness(
    image: UInt8[np.ndarray, "h w 3"], xy: Float[np.ndarray, "q 2"], size: tuple[int, int]
) -> Float[np.ndarray, "q"]:
    """Brightness of a shrunk image at places of the native one (`xy`, `size`)."""
    column, row = (xy * [image.shape[1] / size[1], image.shape[0] / size[0]]).astype(int).T
    inside = np.minimum(row, image.shape[0] - 1), np.minimum(column, image.shape[1] - 1)
    return image[inside].mean(axis=-1)


def _jumps(values: Float[np.ndarray, "q"], near: np.ndarray) -> Float[np.ndarray, "q"]:
    """Largest difference to the neighbours of each point."""
    return np.abs(values[near] - values[:, None]).max(axis=1)


def _edge_agreement(
    points_m: Float[np.ndarray, "p 3"], camera: Camera, images: list[UInt8[np.ndarray, "_ _ 3"]]
) -> Float[np.ndarray, "i"]:
    """For each image: do brightness and depth jump at the same points? NaN with few points."""
    xy, depth_m, inside = project(points_m, camera)
    if inside.sum() < MIN_POINTS:
        return np.full(len(images), np.nan)
    xy = xy[inside]
    _, near = cKDTree(xy).query(xy, k=6)
    depth_jumps = _jumps(np.log(depth_m[inside]), near)
    return np.array([
        spearmanr(depth_jumps, _jumps(_brightness(image, xy, camera.size), near)).statistic
        for image in images
    ])  # fmt: skip


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    """The mean over frames without NaN; NaN where all are."""
    stacked = np.stack(arrays)
    count = np.isfinite(stacked).sum(axis=0)
    return np.where(count, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


def _edges(frame: Frame, sound: list[int]) -> Float[np.ndarray, "i n"]:
    """[image, calibration]: how well the image of one camera fits the calibration of another."""
    points_m, images = frame.world_points_m(), [frame.images[i] for i in sound]
    cameras = [frame.sample.cameras[i] for i in sound]
    return np.stack([_edge_agreement(points_m, camera, images) for camera in cameras], axis=1)


def _shared(frame: Frame, sound: list[int]) -> Float[np.ndarray, "n n i j"]:
    """[calibration a, calibration b, image i, image j]: how well brightness agrees.

    That is the correlation over the points that a and b both see, if a had taken image i and b
    image j; NaN where few points are shared.
    """
    n, points_m = len(sound), frame.world_points_m()
    cameras = [frame.sample.cameras[i] for i in sound]
    projected = [project(points_m, camera) for camera in cameras]
    shared = np.full((n, n, n, n), np.nan)
    for a, b in itertools.combinations(range(n), 2):
        both = projected[a][2] & projected[b][2]
        if both.sum() < MIN_POINTS:
            continue
        seen_a, seen_b = (
            [_brightness(frame.images[i], projected[c][0][both], cameras[c].size) for i in sound]
            for c in (a, b)
        )
        for i, j in itertools.product(range(n), repeat=2):
            value = spearmanr(seen_a[i], seen_b[j]).statistic
            shared[a, b, i, j] = shared[b, a, j, i] = value
    return shared


def _agreement(shared: Float[np.ndarray, "n n i j"], order: Sequence[int]) -> np.ndarray:
    """[n n]: correlation of each pair's shared points if camera a took the image `order[a]`."""
    n = len(order)
    return np.array([[shared[a, b, order[a], order[b]] for b in range(n)] for a in range(n)])


def _swaps(
    edges: Float[np.ndarray, "i n"], shared: Float[np.ndarray, "n n i j"], names: list[str]
) -> list[Finding]:
    """Pairs of cameras whose images fit better when exchanged, best first."""
    order, found = list(range(len(names))), []
    while len(found) < len(names) // 2:
        gains = {}
        for i, j in itertools.combinations(range(len(names)), 2):
            changed = list(order)
            changed[i], changed[j] = order[j], order[i]
            before, after = (_agreement(shared, o)[[i, j]] for o in (order, changed))
            if np.isfinite(after - before).any():
                edge_gain = np.mean([edges[changed[c], c] - edges[order[c], c] for c in (i, j)])
                gains[i, j] = np.nanmean(after - before) + np.nan_to_num(edge_gain)
        if not gains or max(gains.values()) < SWAP_GAIN:
            break
        i, j = max(gains, key=gains.get)
        found.append(Finding(f"{names[i]} and {names[j]}", "swapped", (
            "look swapped: with their images exchanged, brightness agrees better with the LiDAR "
            f"and with their neighbours (correlation up by {gains[i, j]:.2f}). Exchange their "
            "calibrations, or their images"
        )))  # fmt: skip
        order[i], order[j] = order[j], order[i]
    return found


def _misplaced(agreement: Float[np.ndarray, "n n"], names: list[str]) -> list[Finding]:
    """Cameras that agree with no neighbour; the one with the most disagreements is blamed.

    If two cameras have only each other, both are named, because either may be wrong.
    """
    found, agreement = [], np.where(np.isnan(agreement), np.inf, agreement)
    while True:
        best = np.where(np.isinf(agreement), -np.inf, agreement).max(axis=1)
        blamed = np.flatnonzero(np.isfinite(best) & (best < MIN_AGREEMENT))
        if not len(blamed):
            return found
        disagreements = (agreement < MIN_AGREEMENT).sum(axis=1)
        first = blamed[np.argmax(disagreements[blamed])]
        other = int(np.argmin(agreement[first]))
        equal = other in blamed and disagreements[other] == disagreements[first]
        suspects = sorted([first, other]) if equal else [first]
        what = " and ".join(names[i] for i in suspects)
        found.append(Finding(what, "misplaced", (
            f"{'do' if equal else 'does'} not fit the neighbours: the brightness of LiDAR points "
            f"that both see correlates by {best[first]:.2f} at most; in a sound rig by 0.6 or "
            "more. Look at the LiDAR overlay: is the rotation, or the focal length, another "
            "camera's?"
        )))  # fmt: skip
        agreement[suspects, :] = agreement[:, suspects] = np.inf


def _lidar_turn(frames: list[Frame], sound: list[int]) -> list[Finding]:
    """Whether the sweeps fit the images better after a turn of the LiDAR."""

    def score(turn: Float[np.ndarray, "3 3"] | None) -> Float[np.ndarray, "n"]:
        return _mean([
            np.concatenate([
                _edge_agreement(frame.world_points_m(turn), frame.sample.cameras[i],
                                [frame.images[i]])
                for i in sound
            ]) for frame in frames
        ])  # fmt: skip

    given = score(None)
    gains = {}
    for name, turn in LIDAR_TURNS.items():
        gain = score(turn) - given
        if np.isfinite(gain).sum() * 2 >= len(sound):
            gains[name] = float(np.nanmean(gain))
    if not gains or max(gains.values()) < TURN_GAIN:
        return []
    turn = max(gains, key=gains.get)
    return [Finding("LiDAR", "turned", (
        f"its points fit the images better after a turn by {turn}: depth and brightness jump "
        f"together with correlation {np.nanmean(given):.2f} now, {gains[turn]:+.2f} then. Check "
        "the rotation of vehicle_from_lidar, and which way the sweeps' x axis points"
    ))]  # fmt: skip
