"""Says in words what looks wrong with a rig's calibration: `fsmde_jax.prepare --check`.

Two kinds of evidence. Geometry: a ring's cameras are a few metres from the origin, above the road,
upright, with the principal point near the middle of the image; a sweep reaches tens of metres.
Images: a LiDAR point that two cameras see has the same brightness rank in both, and where depth
jumps between neighbouring points brightness tends to jump too. Both are rank correlations, so
exposure and contrast do not matter.

The thresholds lie between what was measured on sound rigs, scene by scene (29 scenes of the
miniature world at 96x160 and 160x256, three or two frames each, half of them with varied rigs; one
scene of the DDAD rig; one nuScenes key frame), and the same scenes with a fault planted:

    measure                                      sound            threshold     faulty
    distance of a camera from the origin         1.4 to 2.9 m     30 m          100 times as much
    median range of a sweep                      6.7 to 21 m      300 m         1000 times as much
    height of a camera over the road             1.4 to 2.3 m     0.3 to 8 m    0.1 or less
    y axis down / x axis level (1 / 0 is best)   0.99 / 0.03      0.5 / 0.35    0 / 0.45, inverted
    principal point, share of the image          0.47 to 0.56     0.3 to 0.7    a factor 2 away
    brightness of shared points, best neighbour  0.56 or more     0.3           0.30 or less in 95 %
    gain by exchanging two cameras' images       -0.46 or less    0.25          0.46 or more
    gain by turning the LiDAR                    -0.10 or less    0.06          0.10 or more

The fault of the third row from below is a camera turned by 90°; where it then shares its view with
none or with what happens to look alike, it goes unseen, so look at the pictures too. Not found at
all: errors of a few degrees or centimetres, wrong instants, a focal length off by a few per cent.
"""

import collections
import dataclasses
import itertools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.spatial import cKDTree
from scipy.stats import spearmanr

from fsmde_jax import rig
from fsmde_jax.data.readers import recording
from fsmde_jax.data.readers.recording import Camera, RecordingError, Sample
from fsmde_jax.errors import UserError
from fsmde_jax.pictures import ring
from fsmde_jax.pictures.above import draw_from_above

SCENES, FRAMES = 6, 3  # looked at, evenly spaced; frames of each scene
WIDTH_PX = 320  # images are shrunk to this width before they are compared
MAX_DISTANCE_M, CENTIMETRES_TO = 30.0, 500.0
MAX_RANGE_M, RANGE_CENTIMETRES_TO = 300.0, 3000.0
HEIGHT_M = (0.3, 8.0)
MIN_DOWN, MAX_ROLL = 0.5, 0.35
CENTRE = (0.3, 0.7)
MIN_SHARED_POINTS = 100
MIN_AGREEMENT = 0.3
SWAP_GAIN, TURN_GAIN = 0.25, 0.06

BODY_FROM_CAMERA = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
Y_UP_FROM_CAMERA = np.diag([1.0, -1, -1, 1])
LIDAR_TURNS = {
    "90° to the left about z": np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "90° to the right about z": np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
    "180° about z": np.diag([-1.0, -1, 1]),
    "180° about x": np.diag([1.0, -1, -1]),
    "180° about y": np.diag([-1.0, 1, -1]),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that looks wrong.

    Args:
      what: a camera's name, "A and B", "LiDAR", or the path of a file.
      fault: a word for it, the same in all scenes.
      text: the evidence in figures, and what to try.
    """

    what: str
    fault: str
    text: str


@dataclasses.dataclass(frozen=True)
class Frame:
    """A sample in memory; `points_m` are in the LiDAR's frame, none without LiDAR."""

    sample: Sample
    points_m: Float[np.ndarray, "p 3"]
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...]  # shrunk

    def world_points_m(
        self, turn: Float[np.ndarray, "3 3"] | None = None
    ) -> Float[np.ndarray, "p 3"]:
        """The points in the world, after a turn of the LiDAR on its spot."""
        if self.sample.lidar is None:
            return self.points_m
        pose = self.sample.lidar.world_from_lidar
        points_m = self.points_m if turn is None else self.points_m @ turn.T
        return points_m @ pose[:3, :3].T + pose[:3, 3]

    def vehicle_points_m(self, camera: Camera) -> Float[np.ndarray, "p 3"]:
        """The points in the vehicle's frame at a camera's instant."""
        pose = camera.vehicle_from_camera @ np.linalg.inv(camera.world_from_camera)
        return self.world_points_m() @ pose[:3, :3].T + pose[:3, 3]


def check(reader: ModuleType, source: Path, splits: tuple[str, ...], out: Path) -> str:
    """Looks at a recording; returns the findings in words, "" where there are none.

    Pictures go into `out`: for each scene looked at, `<scene>_above.png` and `<scene>_lidar.png`.

    Raises:
      FileNotFoundError: there is no such recording.
      UserError: `out` holds other files.
    """
    _refuse_foreign(out)
    found: dict[tuple[str, str], list[tuple[str, str]]] = collections.defaultdict(list)

    def note(scene: str, finding: Finding) -> None:
        found[finding.what, finding.fault].append((scene, finding.text))

    with tempfile.TemporaryDirectory(prefix="fsmde_jax_plan_") as folder:
        try:
            planned = reader.plan(reader.find(source), splits, Path(folder))
        except RecordingError as error:
            return f"{error.path}: {error.problem}"
        scenes = [item for of_split in planned.values() for item in of_split.items()]
        if not scenes:
            return f"{source}: the splits {', '.join(splits)} list no scenes"
        scenes = _evenly(scenes, SCENES)
        for scene_id, path in scenes:
            frames, broken = _read(reader, path, scene_id)
            for error in broken:
                note(scene_id, Finding(str(error.path), "unreadable", error.problem))
            if frames:
                _draw(frames[0], out)
                for finding in findings(frames):
                    note(scene_id, finding)
    lines = []
    for (what, _), places in found.items():
        in_scenes = sorted({scene for scene, _ in places})
        where = f" [{len(in_scenes)} of {len(scenes)} scenes: {', '.join(in_scenes)}]"
        lines.append(f"{what}: {places[0][1]}{where}")
    return "\n".join(lines)


def _read(
    reader: ModuleType, path: Path, scene_id: str
) -> tuple[list[Frame], list[RecordingError]]:
    """Some frames of a scene, and what could not be read."""
    frames, broken = [], []
    try:
        scene = reader.Scene(path, scene_id)
    except RecordingError as error:
        return [], [error]
    for index in _evenly(range(len(scene)), FRAMES):
        try:
            sample = scene.sample(index)
            points_m = reader.read_points(sample.lidar) if sample.lidar else np.zeros((0, 3))
            images = tuple(_small_image(camera) for camera in sample.cameras)
        except RecordingError as error:
            broken.append(error)
        else:
            frames.append(Frame(sample, points_m, images))
    return frames, broken


def _evenly(items, count: int) -> list:
    """At most `count` of them, the first and the last included."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def _small_image(camera: Camera) -> UInt8[np.ndarray, "_ _ 3"]:
    image = recording.read_image(camera)
    if image.width > WIDTH_PX:
        size = (WIDTH_PX, round(image.height * WIDTH_PX / image.width))
        image = image.resize(size, Image.Resampling.BOX)
    return np.asarray(image)


def findings(frames: list[Frame]) -> list[Finding]:
    """What looks wrong in frames of one scene; images are compared only of sound cameras."""
    cameras = frames[0].sample.cameras
    if height := _sweep_height(frames[0]):
        return [height]
    found = [finding for camera in cameras for finding in _camera(camera, frames[0])]
    found += _names(cameras, {finding.what for finding in found})
    found += _twins(frames[0])
    if len(frames[0].points_m) and (unit := _sweep_unit(frames[0])):
        return [*found, unit]
    suspects = {name for finding in found for name in finding.what.split(" and ")}
    sound = [i for i, camera in enumerate(cameras) if camera.name not in suspects]
    return found + _images(frames, sound)


# Geometry


def _camera(camera: Camera, frame: Frame) -> list[Finding]:
    """Faults of one camera's calibration."""
    faults = [_pose_fault(camera, frame), _intrinsics_fault(camera)]
    return [Finding(camera.name, *fault) for fault in faults if fault]


def _pose_fault(camera: Camera, frame: Frame) -> tuple[str, str] | None:
    pose = camera.vehicle_from_camera
    distance = float(np.linalg.norm(pose[:3, 3]))
    if distance > MAX_DISTANCE_M:
        unit, factor = ("centimetres", 100) if distance < CENTIMETRES_TO else ("millimetres", 1000)
        return "unit", (
            f"sits {distance:.0f} m from the vehicle's origin; {distance / factor:.2f} m if the "
            f"translation is in {unit}: divide it by {factor}"
        )
    road_m = _road_height_m(frame.vehicle_points_m(camera))
    if _is_plausible(pose, road_m):
        return None
    inside = _count_inside(camera, frame)
    seen = f"; {inside} LiDAR points fall into its image" if len(frame.points_m) else ""
    if _is_plausible(np.linalg.inv(pose), road_m):
        return "inverted", (
            f"its extrinsics look the wrong way round: {_attitude(pose, road_m)}, but its inverse "
            f"is upright and above the road{seen}. Invert the matrix: vehicle_from_camera takes "
            "points from the camera to the vehicle"
        )
    if _is_plausible(pose @ BODY_FROM_CAMERA, road_m):
        return "axes", (
            f"its frame looks like x forward, y left, z up: {_attitude(pose, road_m)}{seen}. "
            "Cameras are x right, y down, z forward: multiply the matrix from the right by "
            "[[0,0,1,0],[-1,0,0,0],[0,-1,0,0],[0,0,0,1]]"
        )
    if _is_plausible(pose @ Y_UP_FROM_CAMERA, road_m):
        return "upside down", (
            f"its y axis points up: {_attitude(pose, road_m)}{seen}. Either its frame is x right, "
            "y up, z backward (multiply the matrix from the right by diag(1, -1, -1, 1)), or it is "
            "mounted upside down and its images and intrinsics were not turned"
        )
    return "pose", (
        f"is not where a camera of a ring can be: {_attitude(pose, road_m)}{seen}. Cameras are x "
        "right, y down, z forward, the vehicle x forward, y left, z up"
    )


def _road_height_m(points_m: Float[np.ndarray, "p 3"]) -> float | None:
    """Height of the road in the vehicle's frame; None where no LiDAR tells."""
    near = points_m[np.hypot(points_m[:, 0], points_m[:, 1]) < 15.0]
    return float(np.percentile(near[:, 2], 10)) if len(near) >= MIN_SHARED_POINTS else None


def _is_upright(pose: Float[np.ndarray, "4 4"]) -> bool:
    return bool(pose[2, 1] < -MIN_DOWN and abs(pose[2, 0]) < MAX_ROLL)


def _is_plausible(pose: Float[np.ndarray, "4 4"], road_m: float | None) -> bool:
    """Upright, and a little above the road."""
    above = road_m is None or HEIGHT_M[0] < pose[2, 3] - road_m < HEIGHT_M[1]
    return _is_upright(pose) and bool(above)


def _attitude(pose: Float[np.ndarray, "4 4"], road_m: float | None) -> str:
    """Where a camera's axes point and how high it is, in words."""
    words = ("forward", "backward", "left", "right", "up", "down")
    axes = []
    for axis, column in zip("xyz", pose[:3, :3].T, strict=True):
        largest = int(np.argmax(np.abs(column)))
        axes.append(f"{axis} {words[2 * largest + int(column[largest] < 0)]}")
    height = "" if road_m is None else f", {pose[2, 3] - road_m:.1f} m above the LiDAR's road"
    return f"its axes point {', '.join(axes)}{height}"


def _intrinsics_fault(camera: Camera) -> tuple[str, str] | None:
    height, width = camera.size
    (fx, _, cx), (_, fy, cy) = camera.intrinsics[:2]
    middle = [CENTRE[0] < place < CENTRE[1] for place in (cx / width, cy / height)]
    stated = f"the principal point is ({cx:.0f}, {cy:.0f}), the image {width}x{height}"
    if all(middle):
        if 0.8 < fx / fy < 1.25:
            return None
        return "aspect", (
            f"fx={fx:.0f} and fy={fy:.0f} differ by a factor {max(fx / fy, fy / fx):.2f}: pixels "
            "are square unless the image was resized unevenly; was only one of them scaled?"
        )
    factor_x, factor_y = 2 * cx / width, 2 * cy / height
    if 0.75 < factor_x / factor_y < 1.33:
        return "resolution", (
            f"its intrinsics belong to another resolution: {stated}; they fit images of about "
            f"{2 * cx:.0f}x{2 * cy:.0f}. Divide fx and cx by {factor_x:.3g}, fy and cy by "
            f"{factor_y:.3g}"
        )
    if all(CENTRE[0] < place < CENTRE[1] for place in (cy / width, cx / height)):
        return "centre", f"cx and cy look swapped: {stated}. cx counts columns, cy rows"
    return "centre", (
        f"{stated}, far from its middle. Are cx and cy of this image, in pixels, from its top "
        "left corner?"
    )


def _names(cameras: tuple[Camera, ...], suspects: set[str]) -> list[Finding]:
    """Cameras whose names say another direction than their axes."""
    yaws_deg = np.rad2deg(rig.yaw_rad(np.stack([c.vehicle_from_camera for c in cameras])))
    yaws = {
        camera.name: float(yaw)
        for camera, yaw in zip(cameras, yaws_deg, strict=True)
        if camera.name not in suspects
    }
    wrong = [name for name, yaw in yaws.items() if _contradicts(name, yaw)]
    found, told = [], set()
    for name in wrong:
        other = next((o for o in wrong if _mirrored(o) == name.lower()), None)
        if name in told:
            continue
        if other:
            told |= {name, other}
            first, second = sorted((name, other))
            found.append(Finding(f"{first} and {second}", "swapped", (
                f"look swapped: {first} looks {_direction(yaws[first])}, {second} "
                f"{_direction(yaws[second])}. Exchange their calibrations, or their images"
            )))  # fmt: skip
        else:
            found.append(Finding(name, "name", (
                f"looks {_direction(yaws[name])}, which its name denies. The vehicle's frame is x "
                "forward, y left, z up; is it another one's calibration, or are angles in degrees "
                "where radians were meant?"
            )))  # fmt: skip
    return found


def _contradicts(name: str, yaw_deg: float) -> bool:
    """Whether a name says another side than a yaw; a few degrees off are no contradiction."""
    words, name = {}, name.lower()
    words["left"], words["right"] = -165 < yaw_deg < -15, 15 < yaw_deg < 165
    words["front"], words["back"] = abs(yaw_deg) > 120, abs(yaw_deg) < 60
    words["rear"] = words["back"]
    return any(word in name and denied for word, denied in words.items())


def _mirrored(name: str) -> str:
    """The name with left and right exchanged, in lower case."""
    sides = {"left": "right", "right": "left"}
    return re.sub("left|right", lambda match: sides[match[0]], name.lower())


def _direction(yaw_deg: float) -> str:
    side = "to the left" if yaw_deg > 0 else "to the right"
    return f"{abs(yaw_deg):.0f}° {side} of forward"


def _twins(frame: Frame) -> list[Finding]:
    """Cameras with the same calibration, or the same picture."""
    found = []
    for i, j in itertools.combinations(range(len(frame.images)), 2):
        a, b = frame.sample.cameras[i], frame.sample.cameras[j]
        what = f"{a.name} and {b.name}"
        if np.allclose(a.vehicle_from_camera, b.vehicle_from_camera, atol=1e-3):
            text = "have the same pose on the vehicle: was one copied from the other?"
            found.append(Finding(what, "same pose", text))
        if np.array_equal(frame.images[i], frame.images[j]):
            text = "have the same picture: was a folder copied under another name?"
            found.append(Finding(what, "same picture", text))
    return found


def _sweep_height(frame: Frame) -> Finding | None:
    """Sound cameras, all at an impossible height over the road: then the LiDAR's pose is wrong."""
    heights_m = []
    for camera in frame.sample.cameras:
        pose, road_m = camera.vehicle_from_camera, _road_height_m(frame.vehicle_points_m(camera))
        near = np.linalg.norm(pose[:3, 3]) < MAX_DISTANCE_M
        if road_m is None or not near or not _is_upright(pose) or _is_plausible(pose, road_m):
            return None
        heights_m.append(pose[2, 3] - road_m)
    return Finding("LiDAR", "height", (
        f"all cameras would be {min(heights_m):.1f} to {max(heights_m):.1f} m above its road. Is "
        "it upside down in vehicle_from_lidar, or its height there wrong?"
    ))  # fmt: skip


def _sweep_unit(frame: Frame) -> Finding | None:
    range_m = float(np.median(np.linalg.norm(frame.points_m, axis=1)))
    if range_m < MAX_RANGE_M:
        return None
    unit, factor = ("centimetres", 100) if range_m < RANGE_CENTIMETRES_TO else ("millimetres", 1000)
    return Finding("LiDAR", "unit", (
        f"half of the points are farther than {range_m:.0f} m; {range_m / factor:.1f} m if the "
        f"sweeps are in {unit}: divide them by {factor}"
    ))  # fmt: skip


# Images


def _project(
    points_m: Float[np.ndarray, "p 3"], camera: Camera
) -> tuple[Float[np.ndarray, "p 2"], Float[np.ndarray, "p"], np.ndarray]:
    """Pixels and z-depths of points in the world, and which are in the image, 1 m away or more."""
    pose = camera.world_from_camera
    in_camera_m = (points_m - pose[:3, 3]) @ pose[:3, :3]
    depth_m = in_camera_m[:, 2]
    inside = depth_m > 1.0
    xy = np.zeros((len(points_m), 2))
    xy[inside] = (in_camera_m[inside] @ camera.intrinsics.T)[:, :2] / depth_m[inside, None]
    height, width = camera.size
    inside &= ((xy >= 0) & (xy < (width, height))).all(axis=1)
    return xy, depth_m, inside


def _count_inside(camera: Camera, frame: Frame) -> int:
    return int(_project(frame.world_points_m(), camera)[2].sum())


def _brightness(
    image: UInt8[np.ndarray, "h w 3"], xy: Float[np.ndarray, "q 2"], size: tuple[int, int]
) -> Float[np.ndarray, "q"]:
    """Of the pixels of a shrunk image; `xy` and `size` are native."""
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
    xy, depth_m, inside = _project(points_m, camera)
    if inside.sum() < MIN_SHARED_POINTS:
        return np.full(len(images), np.nan)
    xy = xy[inside]
    _, near = cKDTree(xy).query(xy, k=6)
    depth_jumps = _jumps(np.log(depth_m[inside]), near)
    return np.array([
        spearmanr(depth_jumps, _jumps(_brightness(image, xy, camera.size), near)).statistic
        for image in images
    ])  # fmt: skip


def _images(frames: list[Frame], sound: list[int]) -> list[Finding]:
    """What the images say about the cameras `sound`, and about the LiDAR."""
    with_points = [frame for frame in frames if len(frame.points_m)]
    if not with_points or not sound:
        return []
    names = [frames[0].sample.cameras[i].name for i in sound]
    edges = _mean([_edges(frame, sound) for frame in with_points])
    if np.isnan(edges).all():
        reached = f"fewer than {MIN_SHARED_POINTS} points fall into any image"
        text = f"{reached}. Are the poses of LiDAR and cameras in the same frame?"
        return [Finding("LiDAR", "elsewhere", text)]
    shared = _mean([_shared(frame, sound) for frame in with_points])
    found = _swaps(edges, shared, names)
    # Few cameras cannot speak for the LiDAR.
    if not found and 2 * len(sound) >= len(frames[0].images):
        found = _lidar_turn(with_points, sound)
    return found or _misplaced(_agreement(shared, range(len(sound))), names)


def _mean(arrays: list[np.ndarray]) -> np.ndarray:
    """Over frames, leaving out NaN; NaN where there is nothing else."""
    stacked = np.stack(arrays)
    count = np.isfinite(stacked).sum(axis=0)
    return np.where(count, np.nansum(stacked, axis=0) / np.maximum(count, 1), np.nan)


def _edges(frame: Frame, sound: list[int]) -> Float[np.ndarray, "i n"]:
    """[image, calibration]: how well the image of one camera fits the calibration of another."""
    points_m, images = frame.world_points_m(), [frame.images[i] for i in sound]
    cameras = [frame.sample.cameras[i] for i in sound]
    return np.stack([_edge_agreement(points_m, camera, images) for camera in cameras], axis=1)


def _shared(frame: Frame, sound: list[int]) -> Float[np.ndarray, "n n i j"]:
    """[calibration a, calibration b, image i, image j]: correlation of the brightness of points
    that a and b see, if they had taken the images i and j; NaN where few points are shared.
    """
    n, points_m = len(sound), frame.world_points_m()
    cameras = [frame.sample.cameras[i] for i in sound]
    projected = [_project(points_m, camera) for camera in cameras]
    shared = np.full((n, n, n, n), np.nan)
    for a, b in itertools.combinations(range(n), 2):
        both = projected[a][2] & projected[b][2]
        if both.sum() < MIN_SHARED_POINTS:
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
    """Cameras that agree with no neighbour; the one in most disagreements is to blame for them.

    Where two have only each other, nothing tells which it is, and both are named.
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


# Pictures

_SUFFIXES = ("_above.png", "_lidar.png")


def _refuse_foreign(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others := [
        name for name in names if not name.startswith(".") and not name.endswith(_SUFFIXES)
    ]:
        raise UserError(
            f"{out} holds {', '.join(others[:3])}: nothing is drawn between other files. Move them "
            "away"
        )


def _draw(frame: Frame, out: Path) -> None:
    """The ring from above, and LiDAR over every image."""
    cameras, points_m = frame.sample.cameras, frame.world_points_m()
    name = frame.sample.scene_id.replace("/", "_")
    draw_from_above(
        [camera.name for camera in cameras],
        np.stack([camera.vehicle_from_camera for camera in cameras]),
        np.stack([camera.intrinsics for camera in cameras]),
        [camera.size[1] for camera in cameras],
        frame.vehicle_points_m(cameras[0]),
        out / f"{name}{_SUFFIXES[0]}",
    )
    overlays = []
    for camera, image in zip(cameras, frame.images, strict=True):
        xy, depth_m, inside = _project(points_m, camera)
        scale = image.shape[1] / camera.size[1]
        overlays.append((camera, image, xy[inside] * scale, depth_m[inside]))
    ring.draw_overlays(overlays, out / f"{name}{_SUFFIXES[1]}")
