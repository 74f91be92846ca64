"""Evidence of calibration alone: where cameras are and look, intrinsics, the LiDAR's range."""

import itertools
import re

import numpy as np
from jaxtyping import Float

from fsmde_jax import rig
from fsmde_jax.data.readers.recording import Camera
from fsmde_jax.prepare.check_rig.frame import MIN_POINTS, Finding, Frame, project

MAX_DISTANCE_M, CENTIMETRES_TO = 30.0, 500.0
MAX_RANGE_M, RANGE_CENTIMETRES_TO = 300.0, 3000.0
HEIGHT_M = (0.3, 8.0)
MIN_DOWN, MAX_ROLL = 0.5, 0.35
CENTRE = (0.3, 0.7)

BODY_FROM_CAMERA = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
Y_UP_FROM_CAMERA = np.diag([1.0, -1, -1, 1])


def sweep_height(frame: Frame) -> Finding | None:
    """A wrong pose of the LiDAR, if sound cameras are all at an impossible height over its road."""
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


def sweep_unit(frame: Frame) -> Finding | None:
    """A sweep that reaches impossibly far, as if not in metres."""
    if not len(frame.points_m):
        return None
    range_m = float(np.median(np.linalg.norm(frame.points_m, axis=1)))
    if range_m < MAX_RANGE_M:
        return None
    unit, factor = ("centimetres", 100) if range_m < RANGE_CENTIMETRES_TO else ("millimetres", 1000)
    return Finding("LiDAR", "unit", (
        f"half of the points are farther than {range_m:.0f} m; {range_m / factor:.1f} m if the "
        f"sweeps are in {unit}: divide them by {factor}"
    ))  # fmt: skip


def camera_findings(frame: Frame) -> list[Finding]:
    """Faults of the cameras: each one's calibration, contradicting names, equal cameras."""
    cameras = frame.sample.cameras
    found = [finding for camera in cameras for finding in _camera(camera, frame)]
    found += _names(cameras, {finding.what for finding in found})
    return found + _twins(frame)


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
    inside = project(frame.world_points_m(), camera)[2].sum()
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
    """Height of the road in the vehicle's frame; None with too few LiDAR points."""
    near = points_m[np.hypot(points_m[:, 0], points_m[:, 1]) < 15.0]
    return float(np.percentile(near[:, 2], 10)) if len(near) >= MIN_POINTS else None


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
    """Cameras whose name and axes say different directions."""
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
    """Whether a name denies the direction of a yaw; a few degrees are no contradiction."""
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
