"""The recording car: its cameras, its spinning LiDAR and how it drives."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from fsmde_jax.world import render
from fsmde_jax.world.meshes import Material, rotation
from fsmde_jax.world.street import Street

LIDAR = "LIDAR"
_REAL_WIDTH_PX = 1936.0
_COLUMNS = 900
_LIDAR_AT_M = (0.85, 0.0, 1.72)
_RANGE_NOISE_M = 0.02
_OPTICAL_FROM_LEVEL = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


@dataclasses.dataclass(frozen=True)
class Mount:
    """Where a camera sits on the car before a scene's small errors.

    Args:
        focal_px: for images 1936 px wide.
        at_m: in the vehicle frame.
        yaw_deg: left of straight ahead.
        delay_s: when it fires after the LiDAR's instant.
    """

    name: str
    focal_px: float
    at_m: tuple[float, float, float]
    yaw_deg: float
    delay_s: float


MOUNTS = (
    Mount("CAMERA_01", 2170.0, (1.65, 0.06, 1.43), 0.0, 0.021),
    Mount("CAMERA_05", 1060.0, (1.62, 0.42, 1.43), 52.0, 0.013),
    Mount("CAMERA_07", 1058.0, (0.55, 0.32, 1.42), 117.0, 0.006),
    Mount("CAMERA_09", 1062.0, (0.22, 0.0, 1.42), 180.0, 0.047),
    Mount("CAMERA_08", 1056.0, (0.55, -0.32, 1.42), -117.0, 0.035),
    Mount("CAMERA_06", 1057.0, (1.62, -0.42, 1.43), -52.0, 0.028),
)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A calibrated pinhole; pixel i covers [i, i + 1)."""

    name: str
    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    vehicle_from_camera: Float[np.ndarray, "4 4"]
    delay_s: float
    gain: float

    def rays(self, height: int, width: int) -> Float[np.ndarray, "p 3"]:
        """Directions through the pixels' middles, one metre of depth long, row by row."""
        y, x = np.mgrid[:height, :width] + 0.5
        x = (x - self.centre_px[0]) / self.focal_px[0]
        y = (y - self.centre_px[1]) / self.focal_px[1]
        return np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)


def pose(turn: Float[np.ndarray, "3 3"], shift_m: Float[np.ndarray, "3"]) -> np.ndarray:
    """A rigid motion as a 4 x 4 matrix."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, shift_m
    return matrix


def draw_rig(rng: np.random.Generator, height: int, width: int, varied: bool) -> tuple[Camera, ...]:
    """The ring with one scene's mounting errors; another ring altogether when varied."""
    zoom = float(rng.uniform(0.75, 1.5)) if varied else 1.0
    lift_m = float(rng.uniform(-0.05, 0.9) if varied else rng.uniform(-0.03, 0.12))
    spread_deg = 6.0 if varied else 0.8
    tilt_deg = float(rng.normal(0.0, 4.0)) if varied else 0.0
    cameras = []
    for mount in MOUNTS:
        own_zoom = zoom * float(rng.uniform(0.85, 1.2) if varied else rng.uniform(0.995, 1.005))
        focal = mount.focal_px * own_zoom * width / _REAL_WIDTH_PX
        yaw, pitch, roll = np.radians(
            [mount.yaw_deg, tilt_deg, 0.0] + rng.normal(0.0, 1.0, 3) * [spread_deg, 0.8, 0.6]
        )
        at = np.array(mount.at_m) + rng.normal(0.0, 0.012, 3) + np.array([0.0, 0.0, lift_m])
        turn = rotation(yaw, pitch, roll) @ _OPTICAL_FROM_LEVEL.T
        centre = np.array([0.5 * width, 0.5 * height]) + rng.normal(0.0, 0.006, 2) * width
        cameras.append(Camera(
            mount.name, (focal, focal * float(rng.uniform(0.994, 1.001))),
            (float(centre[0]), float(centre[1])), pose(turn, at), mount.delay_s,
            float(rng.uniform(0.92, 1.08)),
        ))  # fmt: skip
    return tuple(cameras)


class Drive:
    """How the ego car moves along a street."""

    def __init__(self, street: Street, rng: np.random.Generator):
        self.street = street
        self._sway_m = float(rng.uniform(0.0, 0.25))
        self._phase = float(rng.uniform(0.0, 2 * np.pi))
        self._bounce = rng.normal(0.0, 0.004, (2, 3))

    def scene_from_vehicle(self, time_s: float) -> Float[np.ndarray, "4 4"]:
        """Pose of the car (rear axle, on the ground), with its sway, nod and roll."""
        street, terrain = self.street, self.street.terrain
        s_m = street.ego_speed_m_s * time_s
        t_m = street.ego_t_m + self._sway_m * np.sin(0.4 * time_s + self._phase)
        drift = self._sway_m * 0.4 * np.cos(0.4 * time_s + self._phase)
        turn = float(np.arctan2(drift, max(street.ego_speed_m_s, 3.0)))
        waves = np.sin(np.array([3.1, 7.3, 11.9]) * time_s + self._phase)
        nod, roll = (self._bounce * waves).sum(-1) * min(street.ego_speed_m_s / 8.0, 1.0)
        pitch = terrain.pitch(s_m + 1.4, t_m, turn) + nod
        yaw = float(terrain.heading(s_m)) + turn
        return pose(rotation(yaw, pitch, roll), terrain.point_m(s_m, t_m))


def _rays_in_scene(
    scene_from_sensor: np.ndarray, towards: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions as Embree wants them (float32, one row a ray)."""
    turn = scene_from_sensor[:3, :3]
    # einsum, as everywhere rays are many: BLAS threads of several workers fight for the cores
    turned = np.einsum("pc,dc->pd", towards, turn).astype(np.float32)
    origin = scene_from_sensor[:3, 3].astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(origin, turned.shape)), turned


def take_picture(
    world: render.World,
    drive: Drive,
    camera: Camera,
    time_s: float,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
    """An image and its true z-depth in metres (0 on the sky and on the own car).

    Args:
        world: the street.
        drive: where the car is when.
        camera: which camera.
        time_s: its instant.
        size: height and width in pixels.
        rng: noise of the sensor and softness of shadows.
    """
    scene_from_vehicle = drive.scene_from_vehicle(time_s)
    instant = world.at(time_s, scene_from_vehicle)
    scene_from_camera = scene_from_vehicle @ camera.vehicle_from_camera
    origins, towards = _rays_in_scene(scene_from_camera, camera.rays(*size))
    hits = instant.cast(origins, towards)
    colour = render.shade(
        instant, hits, scene_from_camera[:3, 3], towards, 1.0 / camera.focal_px[0], rng
    )
    image = _develop(colour, world.street.light.exposure * camera.gain, rng)
    valid = (hits.triangle >= 0) & ~instant.is_ego(hits.triangle)
    depth_m = np.where(valid, hits.distance, 0.0).astype(np.float16)
    return image.reshape(*size, 3), depth_m.reshape(size)


def _develop(
    colour: Float[np.ndarray, "3 p"], gain: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "p 3"]:
    """Film curve, gamma and noise."""
    tone = 1.0 - np.exp(np.float32(-1.6 * gain) * np.maximum(colour, 0.0))
    tone = np.sqrt(tone) * (0.55 + 0.45 * np.sqrt(tone))
    noise = rng.standard_normal(tone.shape[1], np.float32) * np.float32(0.007)
    return np.ascontiguousarray(np.clip(tone + noise, 0.0, 1.0).T * 255 + 0.5).astype(np.uint8)


def _beam_directions(beams: int) -> Float[np.ndarray, "p 3"]:
    """One turn of the LiDAR; beams are densest a little below the horizon."""
    spread = np.linspace(-1.0, 1.0, beams)
    elevation = np.radians(np.where(spread < 0, -28.0, 11.0) * np.abs(spread) ** 1.35 - 1.0)
    azimuth = np.linspace(np.pi, -np.pi, _COLUMNS, endpoint=False)
    azimuth, elevation = (grid.ravel() for grid in np.meshgrid(azimuth, elevation, indexing="ij"))
    flat = np.cos(elevation)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], -1)


def sweep_lidar(
    world: render.World,
    drive: Drive,
    time_s: float,
    reach_m: float,
    beams: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "p 4"]:
    """One turn of the LiDAR, motion-compensated to `time_s`: x y z (vehicle frame), intensity.

    Args:
        world: the street.
        drive: where the car is when.
        time_s: the sweep's instant.
        reach_m: range at which a bright surface still answers.
        beams: rows of the LiDAR.
        rng: range noise and drop-outs.
    """
    scene_from_vehicle = drive.scene_from_vehicle(time_s)
    instant = world.at(time_s, scene_from_vehicle)
    directions = _beam_directions(beams)
    scene_from_lidar = scene_from_vehicle @ pose(np.eye(3), np.array(_LIDAR_AT_M))
    origins, towards = _rays_in_scene(scene_from_lidar, directions)
    hits = instant.cast(origins, towards)
    seen = np.flatnonzero((hits.triangle >= 0) & ~instant.is_ego(hits.triangle))
    triangle, range_m = hits.triangle[seen], hits.distance[seen].astype(np.float64)
    intensity, kept = _answers(instant, triangle, range_m, towards[seen], reach_m, rng)
    range_m = range_m + rng.normal(0.0, _RANGE_NOISE_M, len(range_m))
    points = directions[seen] * range_m[:, None] + np.array(_LIDAR_AT_M)
    return np.concatenate([points, intensity[:, None]], 1).round(4)[kept]


def _answers(
    instant: render.Instant, triangle: Int[np.ndarray, "p"], range_m: np.ndarray,
    towards: np.ndarray, reach_m: float, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Intensity of every return and which ones come back at all."""
    normal = instant.look_up("normals", triangle)[:3]
    cosine = np.abs((normal * towards.T).sum(0))
    material = instant.look_up("material", triangle)
    bright = instant.look_up("rgb", triangle).mean(0)
    intensity = np.clip(bright * (0.3 + 0.7 * cosine), 0.004, 1.0).astype(np.float64)
    strength = (0.25 + intensity) * np.sqrt(cosine + 0.02) * (reach_m / range_m) ** 2
    glossy = np.isin(material, (Material.GLASS, Material.PAINT))
    lost = np.where(material == Material.GLASS, 0.75, np.where(glossy, 0.2, 0.02))
    kept = (rng.random(len(range_m)) > lost) & (range_m < reach_m) & (range_m > 1.0)
    return intensity, kept & (strength * rng.uniform(0.6, 1.6, len(range_m)) > 0.6)
