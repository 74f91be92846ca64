"""Casts rays into a street with Embree and shades what they hit."""

import dataclasses
import functools

import numpy as np
from embreex import rtcore, rtcore_scene
from embreex.mesh_construction import TriangleMesh
from jaxtyping import Bool, Float, Int, Shaped

from fsmde_jax.world import shading
from fsmde_jax.world.meshes import Material, Mesh, merge
from fsmde_jax.world.street import Light, Mover, Street

_MOVERS_SEEN_M = 130.0


@functools.cache
def _device() -> rtcore.EmbreeDevice:
    """One Embree device a process."""
    return rtcore.EmbreeDevice()


class Caster:
    """An Embree scene over one soup of triangles."""

    def __init__(self, corners_m: Float[np.ndarray, "t 3 3"]):
        self._scene = rtcore_scene.EmbreeScene(_device())
        self._mesh = TriangleMesh(self._scene, np.ascontiguousarray(corners_m, np.float32))

    def closest(
        self, origins_m: Float[np.ndarray, "p 3"], towards: Float[np.ndarray, "p 3"]
    ) -> dict[str, Shaped[np.ndarray, "p *rest"]]:
        """Embree's answer: primID (-1: nothing), tfar in lengths of `towards`, u, v, Ng."""
        return self._scene.run(origins_m, towards, output=1)

    def blocked(
        self, origins_m: Float[np.ndarray, "p 3"], towards: Float[np.ndarray, "p 3"]
    ) -> Bool[np.ndarray, "p"]:
        """Whether anything lies in the way."""
        return self._scene.run(origins_m, towards, query="OCCLUDED") >= 0


@dataclasses.dataclass(frozen=True)
class Hits:
    """First hits of rays; triangles are numbered through the static soup, then the moving one.

    Args:
        triangle: -1 where a ray saw the sky.
        distance: in lengths of the ray's direction.
        bary: weights of the triangle's second and third corner.
    """

    triangle: Int[np.ndarray, "p"]
    distance: Float[np.ndarray, "p"]
    bary: Float[np.ndarray, "2 p"]


class Table:
    """Per-triangle values of a soup, one row a quantity, for quick look-up by hit."""

    def __init__(self, mesh: Mesh):
        self.uv = np.ascontiguousarray(mesh.uv_m.reshape(-1, 6).T)
        self.rgb = np.ascontiguousarray(mesh.rgb.T)
        self.normals = np.ascontiguousarray(mesh.normals.reshape(-1, 9).T)
        self.material = mesh.material
        self.style = mesh.style


class World:
    """A street with its moving things and the ego car, ready for rays.

    Args:
        street: what stands and what moves.
        ego: the own car in its vehicle frame.
    """

    def __init__(self, street: Street, ego: Mesh):
        self.street = street
        self._ego = ego
        self._static = Caster(street.static.corners_m)
        self._static_table = Table(street.static)
        self._count = len(street.static)

    def at(self, time_s: float, scene_from_vehicle: Float[np.ndarray, "4 4"]) -> "Instant":
        """Everything in its place at that time, the own car where `scene_from_vehicle` says."""
        terrain = self.street.terrain
        meshes, poses = [self._ego], [scene_from_vehicle]
        for mover in self.street.movers:
            if self._matters(mover, time_s, scene_from_vehicle[:3, 3]):
                meshes.append(mover.mesh)
                poses.append(mover.scene_from_mover(terrain, time_s))
        moving = [
            mesh.transformed(matrix[:3, :3], matrix[:3, 3])
            for mesh, matrix in zip(meshes, poses, strict=True)
        ]
        moved = merge(moving)
        return Instant(self, Caster(moved.corners_m), Table(moved), len(self._ego))

    def _matters(self, mover: Mover, time_s: float, ego_m: np.ndarray) -> bool:
        """Whether a mover is on the built stretch and near enough to be more than a dot."""
        plan, s_m = self.street.terrain.plan, mover.s_m(time_s)
        place = self.street.terrain.point_m(s_m, mover.lane_t_m)
        near = float(np.hypot(*(place - ego_m)[:2])) < _MOVERS_SEEN_M
        return plan.start_m < s_m < plan.end_m and near

    def cast_static(self, origins: np.ndarray, towards: np.ndarray) -> dict[str, np.ndarray]:
        """Closest hits among what stands."""
        return self._static.closest(origins, towards)

    def blocked_static(self, origins: np.ndarray, towards: np.ndarray) -> np.ndarray:
        """Whether what stands is in the way."""
        return self._static.blocked(origins, towards)

    @property
    def static_table(self) -> Table:
        """Look-up table of what stands."""
        return self._static_table

    @property
    def static_count(self) -> int:
        """How many triangles stand."""
        return self._count


@dataclasses.dataclass(frozen=True)
class Instant:
    """A `World` with its moving things in place; the ego car is the first `ego_count` of them."""

    world: World
    moving: Caster
    moving_table: Table
    ego_count: int

    def cast(self, origins_m: Float[np.ndarray, "p 3"], towards: Float[np.ndarray, "p 3"]) -> Hits:
        """First hits among all there is."""
        still = self.world.cast_static(origins_m, towards)
        moved = self.moving.closest(origins_m, towards)
        nearer = (moved["primID"] >= 0) & (moved["tfar"] < still["tfar"])
        triangle = np.where(nearer, moved["primID"] + self.world.static_count, still["primID"])
        distance = np.where(nearer, moved["tfar"], still["tfar"])
        bary = [np.where(nearer, moved[name], still[name]) for name in "uv"]
        return Hits(triangle, distance, np.stack(bary))

    def is_ego(self, triangle: Int[np.ndarray, "p"]) -> Bool[np.ndarray, "p"]:
        """Which hits are on the own car."""
        moving = triangle - self.world.static_count
        return (moving >= 0) & (moving < self.ego_count)

    def look_up(self, name: str, triangle: Int[np.ndarray, "p"]) -> Shaped[np.ndarray, "*rows p"]:
        """A `Table` quantity at the triangles that were hit."""
        still, moved = getattr(self.world.static_table, name), getattr(self.moving_table, name)
        values = still.take(np.minimum(triangle, self.world.static_count - 1), axis=-1)
        late = np.flatnonzero(triangle >= self.world.static_count)
        values[..., late] = moved.take(triangle[late] - self.world.static_count, axis=-1)
        return values

    def blocked(self, origins: np.ndarray, towards: np.ndarray) -> np.ndarray:
        """Whether anything lies in the way."""
        return self.world.blocked_static(origins, towards) | self.moving.blocked(origins, towards)


def shade(
    instant: Instant,
    hits: Hits,
    origin_m: Float[np.ndarray, "3"],
    towards: Float[np.ndarray, "p 3"],
    pixel_angle: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "3 p"]:
    """Linear colours seen along rays from one point.

    Args:
        instant: the world.
        hits: what the rays hit.
        origin_m: where the rays start.
        towards: their directions, any length; distances of `hits` count in it.
        pixel_angle: angle between neighbouring rays, for the size of detail to draw.
        rng: spreads the shadow rays over the sun's disc.
    """
    light = instant.world.street.light
    length = np.sqrt(np.einsum("pc,pc->p", towards, towards))
    unit = np.ascontiguousarray((towards / length[:, None]).T)
    colour = np.empty_like(unit)
    clear = np.flatnonzero(hits.triangle < 0)
    colour[:, clear] = shading.sky(light, unit.take(clear, axis=1))
    seen = np.flatnonzero(hits.triangle >= 0)
    if len(seen):
        range_m = (hits.distance * length)[seen]
        part = Hits(hits.triangle[seen], range_m, hits.bary.take(seen, axis=1))
        colour[:, seen] = _surface_colour(
            instant, part, origin_m, unit.take(seen, axis=1), pixel_angle, rng
        )
    return colour


def _surface_colour(
    instant: Instant, hits: Hits, origin_m: np.ndarray, unit: np.ndarray, pixel_angle: float,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Reflected sun, sky and mirror images, glow, and the haze between."""
    light = instant.world.street.light
    normal, flat = _normals(instant, hits, unit)
    facing = np.maximum(-(flat * unit).sum(0), 0.04)
    pixel_m = hits.distance * np.float32(pixel_angle) / np.sqrt(facing)
    look = _looks(instant, hits, pixel_m)
    points = origin_m[:, None].astype(np.float32) + unit * hits.distance + flat * 0.012
    sun = _sunlight(instant, light, points, normal, flat, rng)
    up = 0.5 + 0.5 * normal[2]
    ambient = 0.75 * (light.zenith_rgb + light.horizon_rgb)
    bounce = 0.16 * ambient + 0.05 * light.sun_rgb * max(float(light.sun[2]), 0.0)
    lit = light.sun_rgb[:, None] * sun + ambient[:, None] * up + bounce[:, None] * (1 - up)
    colour = look.rgb * (lit + 2.2 * look.glow)
    _add_mirror(instant, colour, look.mirror, points, normal, unit)
    air = np.exp(-hits.distance * light.haze_per_m)
    return colour * air + light.horizon_rgb[:, None] * (1 - air)


def _normals(instant: Instant, hits: Hits, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shading normals, and flat normals that face the viewer."""
    corner = instant.look_up("normals", hits.triangle)
    u, v = hits.bary
    normal = corner[:3] * (1 - u - v) + corner[3:6] * u + corner[6:] * v
    normal /= np.maximum(np.sqrt((normal * normal).sum(0)), 1e-6)
    facing = -np.sign((normal * unit).sum(0))
    leaf = instant.look_up("material", hits.triangle) == Material.FOLIAGE
    return normal * np.where(leaf, np.float32(1), facing), normal * facing


def _looks(instant: Instant, hits: Hits, pixel_m: np.ndarray) -> shading.Look:
    """Every material's painter at its pixels."""
    corner = instant.look_up("uv", hits.triangle)
    u, v = hits.bary
    uv = corner[:2] * (1 - u - v) + corner[2:4] * u + corner[4:] * v
    base = instant.look_up("rgb", hits.triangle)
    material = instant.look_up("material", hits.triangle)
    style = instant.look_up("style", hits.triangle)
    rgb, mirror, glow = np.empty_like(base), np.zeros_like(u), np.zeros_like(u)
    for kind, painter in shading.PAINTERS.items():
        index = np.flatnonzero(material == kind)
        if len(index):
            surface = shading.Surface(
                uv.take(index, axis=1), base.take(index, axis=1), pixel_m[index], style[index]
            )
            look = painter(instant.world.street, surface)
            rgb[:, index], mirror[index], glow[index] = look.rgb, look.mirror, look.glow
    return shading.Look(rgb, mirror, glow)


def _sunlight(
    instant: Instant, light: Light, points: np.ndarray, normal: np.ndarray, flat: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Cosine of the sun's angle where the sun is seen, 0 in shadow."""
    cosine = np.einsum("c,cp->p", light.sun, normal)
    index = np.flatnonzero(cosine > 0.0)
    jitter = rng.standard_normal((len(index), 3), np.float32) * np.float32(light.sun_cone)
    towards = light.sun + jitter
    towards[:, 2] = np.maximum(towards[:, 2], 0.02)
    origins = np.ascontiguousarray(points.take(index, axis=1).T)
    sun = np.zeros_like(cosine)
    sun[index] = cosine[index] * ~instant.blocked(origins, towards)
    return sun


def _add_mirror(
    instant: Instant, colour: np.ndarray, mirror: np.ndarray, points: np.ndarray,
    normal: np.ndarray, unit: np.ndarray,
) -> None:  # fmt: skip
    """Mix mirror images into glossy pixels, more at grazing angles."""
    index = np.flatnonzero(mirror > 0.02)
    if not len(index):
        return
    world, light = instant.world, instant.world.street.light
    n, d = normal.take(index, axis=1), unit.take(index, axis=1)
    cosine = np.clip(-(n * d).sum(0), 0.0, 1.0)
    strength = mirror[index] * (0.12 + 0.88 * (1 - cosine) ** 3)
    bounced = d + 2 * cosine * n
    image = shading.sky(light, bounced)
    hit = world.cast_static(
        np.ascontiguousarray(points.take(index, axis=1).T), np.ascontiguousarray(bounced.T)
    )["primID"]
    solid = np.flatnonzero(hit >= 0)
    table = world.static_table
    facing = np.abs(np.einsum("c,cp->p", light.sun, table.normals[:3].take(hit[solid], axis=1)))
    ambient = 0.4 * light.horizon_rgb[:, None] + 0.45 * light.sun_rgb[:, None] * facing
    image[:, solid] = table.rgb[:, hit[solid]] * ambient
    colour[:, index] += strength * (image - colour[:, index])
