"""One street scene from a seed: what stands where, what moves, and how the light falls."""

import dataclasses

import numpy as np
from jaxtyping import Float

from fsmde_jax.world import objects
from fsmde_jax.world.buildings import building
from fsmde_jax.world.meshes import Material, Mesh, box, ellipsoid, merge, quads
from fsmde_jax.world.terrain import KERB_M, Plan, Terrain, draw_plan

_LEAVES = 330


@dataclasses.dataclass(frozen=True)
class Light:
    """Sun, sky and air; colours are linear.

    Args:
        sun: unit vector towards the sun.
        sun_cone: half width of the sun in radians; wide under clouds, which softens shadows.
        haze_per_m: share of light lost to the air in a metre.
        lit: how strongly lamps and rooms glow.
    """

    sun: Float[np.ndarray, "3"]
    sun_rgb: Float[np.ndarray, "3"]
    zenith_rgb: Float[np.ndarray, "3"]
    horizon_rgb: Float[np.ndarray, "3"]
    clouds: float
    cloud_seed: float
    sun_cone: float
    haze_per_m: float
    lit: float
    exposure: float


@dataclasses.dataclass(frozen=True)
class Mover:
    """A car or a person that moves along the street at a steady speed."""

    mesh: Mesh
    start_s_m: float
    lane_t_m: float
    velocity_m_s: float
    up_m: float = 0.0

    def s_m(self, time_s: float) -> float:
        """How far along the street it is at that time."""
        return self.start_s_m + self.velocity_m_s * time_s

    def scene_from_mover(self, terrain: Terrain, time_s: float) -> Float[np.ndarray, "4 4"]:
        """Its pose at that time."""
        turn = 0.0 if self.velocity_m_s >= 0 else np.pi
        return terrain.pose(self.s_m(time_s), self.lane_t_m, turn, self.up_m, self.up_m == 0)


@dataclasses.dataclass(frozen=True)
class Street:
    """A whole scene, in scene metres."""

    terrain: Terrain
    static: Mesh
    movers: tuple[Mover, ...]
    light: Light
    facades: Float[np.ndarray, "f 13"]
    ego_t_m: float
    ego_speed_m_s: float
    tint: Float[np.ndarray, "5 3"]


def build_street(rng: np.random.Generator, duration_s: float, varied: bool) -> Street:
    """Draw a street on which the ego car drives for `duration_s`.

    Args:
        rng: everything is drawn from it.
        varied: draw from wider ranges of light and weather.
    """
    speed = float(rng.uniform(1.5, 13.0) if rng.random() > 0.1 else 0.0)
    speed = min(speed, 150.0 / max(duration_s, 1e-3))
    plan = draw_plan(rng, speed * duration_s)
    terrain = Terrain(plan, rng)
    builder = _Builder(rng, terrain)
    builder.build()
    ego_lane = int(rng.integers(plan.lanes))
    ego_t_m = -plan.lane_centre_m(ego_lane) + float(rng.normal(0.0, 0.12))
    movers = _traffic(rng, plan, builder.cars, ego_lane, speed) + _walkers(
        rng, plan, builder.people
    )
    return Street(
        terrain, merge(builder.parts), tuple(movers), draw_light(rng, varied),
        np.stack(builder.facades), ego_t_m, speed, _tints(rng),
    )  # fmt: skip


def _tints(rng: np.random.Generator) -> np.ndarray:
    """Colours of asphalt, pavement, grass, gravel and paved yards."""
    base = np.array([[0.085, 0.085, 0.088], [0.33, 0.32, 0.3], [0.09, 0.13, 0.04],
                     [0.3, 0.26, 0.2], [0.26, 0.2, 0.17]])  # fmt: skip
    return (base * rng.uniform(0.75, 1.25, (5, 1)) * rng.uniform(0.93, 1.07, (5, 3))).astype(
        np.float32
    )


def draw_light(rng: np.random.Generator, varied: bool) -> Light:
    """A random hour and weather: mostly sunny, sometimes overcast; dusk only when varied."""
    overcast = float(np.clip(rng.normal(0.15, 0.3), 0.0, 1.0))
    dusk = bool(varied and rng.random() < 0.15)
    elevation = float(rng.uniform(0.06, 0.2) if dusk else rng.uniform(0.3, 1.15))
    azimuth = float(rng.uniform(0, 2 * np.pi))
    flat = np.cos(elevation)
    sun = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    warm = np.array([1.0, 0.93 - 0.3 * dusk, 0.82 - 0.5 * dusk])
    blue, grey = np.array([0.16, 0.3, 0.62]), np.array([0.55, 0.58, 0.62])
    pale = np.array([0.62, 0.72, 0.85])
    zenith = blue + overcast * (grey - blue)
    horizon = (pale + overcast * (grey * 1.15 - pale)) * np.array([1.0 + 0.25 * dusk, 1.0, 1.0])
    dim = 0.35 if dusk else 1.0
    haze_m = float(rng.uniform(250, 2500) if varied else rng.uniform(700, 3000))
    return Light(
        sun.astype(np.float32), (2.7 * dim * (1 - 0.9 * overcast) * warm).astype(np.float32),
        (zenith * dim).astype(np.float32), (horizon * dim).astype(np.float32),
        float(rng.uniform(0.0, 0.8)) * (1 - overcast) + 0.9 * overcast,
        float(rng.uniform(0, 500)), 0.005 + 0.035 * overcast, 1.0 / haze_m,
        1.0 if dusk else 0.12, (1.0 if not dusk else 2.2) * float(rng.uniform(0.85, 1.2)),
    )  # fmt: skip


class _Builder:
    """Collects the parts of a street that do not move."""

    def __init__(self, rng: np.random.Generator, terrain: Terrain):
        self.rng, self.terrain, self.plan = rng, terrain, terrain.plan
        self.parts: list[Mesh] = []
        self.facades: list[np.ndarray] = [np.ones(13, np.float32)]
        self.zone = str(rng.choice(["town", "suburb", "strip"]))
        self.cars = [objects.car(shape) for shape in objects.SHAPES] + [objects.truck()]
        self.cars.append(objects.bus())
        maker = objects.conifer if rng.random() < 0.2 else _leafy_tree
        self.trees = [maker(rng) for _ in range(5)]
        self.people = [objects.person(rng) for _ in range(8)]
        self.signs = [objects.sign(kind, float(rng.uniform(2.2, 3.0))) for kind in range(5)]
        self.clutter = [objects.clutter(kind) for kind in range(6)]

    def build(self) -> None:
        """Everything, from the ground up."""
        self.parts.append(self.terrain.ground())
        for start_m, end_m in self.plan.blocks():
            for side in (-1.0, 1.0):
                self._houses(start_m, end_m, side)
                self._back_rows(start_m, end_m, side)
                self._pavement(start_m, end_m, side)
                if self.plan.parking:
                    self._parked(start_m, end_m, side)
        for centre_m in self.plan.crossings_s_m:
            self._corner(centre_m)
        self._skyline()

    def put(self, mesh: Mesh, s_m: float, t_m: float, turn: float = 0.0, up_m: float = KERB_M):
        """Stand something on a pavement (or, with up_m = 0, on the road)."""
        self.parts.append(self.terrain.put(mesh, s_m, t_m, turn, up_m, tilted=up_m == 0))

    def _house(
        self, s_m: float, t_m: float, turn: float, size_m: tuple[float, float], floors: int,
        shop: bool,
    ) -> None:  # fmt: skip
        mesh, facade = building(self.rng, *size_m, floors, len(self.facades), shop)
        self.facades.append(facade.row())
        self.put(mesh, s_m, t_m, turn)

    def _houses(self, start_m: float, end_m: float, side: float) -> None:
        """A row of buildings along the street, with gaps, yards and fences by the zone."""
        rng, half = self.rng, self.plan.road_half_m + self.plan.pavement_m
        s_m = start_m + half - self.plan.road_half_m + float(rng.uniform(0.0, 6.0))
        while s_m < end_m - 12.0:
            wide, floors, setback, gap, shop = self._lot()
            wide = min(wide, end_m - s_m - self.plan.pavement_m)
            if wide < 5.0:
                break
            middle, front = s_m + wide / 2, half + setback
            if rng.random() < 0.12:
                self._grove(s_m, s_m + wide, side, half)
            else:
                turn = 0.0 if side > 0 else np.pi
                depth = float(rng.uniform(9.0, 16.0))
                self._house(middle, side * front, turn, (wide, depth), floors, shop)
                if setback > 3.0:
                    self._yard(s_m, s_m + wide, side, half, setback)
            s_m += wide + gap

    def _lot(self) -> tuple[float, int, float, float, bool]:
        """Width, storeys, setback, gap to the next and whether it is a shop."""
        rng = self.rng
        if self.zone == "town":
            gap = float(rng.choice([0.02, 0.02, 3.0, 7.0]))
            return (
                float(rng.uniform(9, 24)),
                int(rng.integers(2, 9)),
                float(rng.choice([0.3, 0.3, 1.5, 5.0])),
                gap,
                bool(rng.random() < 0.6),
            )
        if self.zone == "suburb":
            return (
                float(rng.uniform(8, 15)),
                int(rng.integers(1, 4)),
                float(rng.uniform(3.5, 10.0)),
                float(rng.uniform(2.5, 9.0)),
                False,
            )
        return (float(rng.uniform(14, 38)), int(rng.integers(1, 4)),
                float(rng.choice([1.0, 8.0, 16.0, 22.0])), float(rng.uniform(2.0, 20.0)),
                bool(rng.random() < 0.75))  # fmt: skip

    def _yard(self, start_m: float, end_m: float, side: float, half: float, deep_m: float) -> None:
        """A hedge, fence or wall, a tree, and on a deep yard a few parked cars."""
        rng, middle, wide = self.rng, (start_m + end_m) / 2, end_m - start_m
        kind = int(rng.integers(0, 4))
        rail = 0.38 * wide
        fences = (
            lambda: box((rail, 0.9, float(rng.uniform(0.8, 1.6))), Material.FOLIAGE,
                        np.array([0.05, 0.1, 0.03]) * rng.uniform(0.7, 1.5), 3),
            lambda: box((rail, 0.08, 1.1), Material.WOOD, rng.uniform(0.15, 0.6, 3)),
            lambda: box((rail, 0.25, float(rng.uniform(0.6, 1.3))), Material.CONCRETE,
                        np.array([0.34, 0.25, 0.2]) * rng.uniform(0.7, 1.3)),
        )  # fmt: skip
        if kind < 3 and deep_m < 11.0:
            for place in (-0.3, 0.3):
                self.put(fences[kind](), middle + place * wide, side * (half + 0.6))
        if deep_m > 7.0:
            for s_m in np.arange(start_m + 1.6, end_m - 1.5, 2.8).tolist():
                if rng.random() < 0.5:
                    self._car(s_m, side * (half + deep_m - 3.2), side * np.pi / 2, KERB_M)
        elif rng.random() < 0.6:
            self._tree(float(rng.uniform(start_m, end_m)), side * (half + 0.5 * deep_m))

    def _grove(self, start_m: float, end_m: float, side: float, half: float) -> None:
        """A small park."""
        for _ in range(int(self.rng.integers(3, 7))):
            self._tree(
                float(self.rng.uniform(start_m, end_m)),
                side * (half + float(self.rng.uniform(1.0, 18.0))),
            )

    def _tree(self, s_m: float, t_m: float) -> None:
        mesh = self.trees[self.rng.integers(len(self.trees))]
        grown = mesh.scaled(float(self.rng.uniform(0.7, 1.25)))
        self.put(grown, s_m, t_m, float(self.rng.uniform(0, 6.28)), KERB_M - 0.05)

    def _car(self, s_m: float, t_m: float, turn: float, up_m: float = 0.0) -> None:
        kinds = [0, 0, 1, 1, 2, 2, 3]
        mesh = self.cars[self.rng.choice(kinds)].painted(_paint(self.rng))
        self.put(mesh.scaled(float(self.rng.uniform(0.94, 1.06))), s_m, t_m, turn, up_m)

    def _back_rows(self, start_m: float, end_m: float, side: float) -> None:
        """Buildings behind, which also line the side streets."""
        rng = self.rng
        for t_m in (38.0, 62.0, 92.0, 135.0, 185.0):
            s_m = start_m + self.plan.pavement_m + float(rng.uniform(0.0, 3.0))
            while s_m < end_m - 10.0:
                wide = float(rng.uniform(9.0, 30.0))
                if s_m + wide > end_m - self.plan.pavement_m:
                    break
                if rng.random() < 0.7:
                    tall = int(rng.integers(1, 5) if rng.random() < 0.8 else rng.integers(5, 16))
                    place = side * (t_m + float(rng.uniform(-3, 3)))
                    turn = (0.0 if side > 0 else np.pi) + float(rng.normal(0, 0.02))
                    self._house(s_m + wide / 2, place, turn, (wide, 13.0), tall, False)
                elif rng.random() < 0.6:
                    self._tree(s_m + wide / 2, side * t_m)
                s_m += wide + float(rng.uniform(1.0, 16.0))

    def _pavement(self, start_m: float, end_m: float, side: float) -> None:
        """Lamps, trees, signs and clutter along the kerb; people."""
        rng, kerb = self.rng, self.plan.road_half_m + 0.6
        towards_road = 0.0 if side < 0 else np.pi
        lamp = objects.street_lamp(float(rng.uniform(5.5, 9.0)), float(rng.uniform(1.0, 2.2)))
        if rng.random() < 0.25:
            lamp = objects.utility_pole(float(rng.uniform(8.0, 11.0)))
        for s_m in np.arange(start_m + 9.0, end_m - 5.0, float(rng.uniform(24.0, 38.0))).tolist():
            self.put(lamp, s_m, side * kerb, towards_road)
        if rng.random() < 0.65:
            step = float(rng.uniform(8.0, 20.0))
            for s_m in np.arange(start_m + 12.0, end_m - 6.0, step).tolist():
                if rng.random() < 0.75:
                    self._tree(s_m + float(rng.normal(0, 0.7)), side * (kerb + 0.3))
        facing = 0.0 if side < 0 else np.pi
        for _ in range(int((end_m - start_m) / 22.0) + 1):
            s_m = float(rng.uniform(start_m + 4.0, end_m - 4.0))
            self.put(self.signs[rng.integers(5)], s_m, side * (kerb - 0.15),
                     facing + float(rng.normal(0, 0.12)))  # fmt: skip
            s_m = float(rng.uniform(start_m + 4.0, end_m - 4.0))
            self.put(self.clutter[rng.integers(6)], s_m, side * (kerb + float(
                rng.uniform(0, 0.4))), towards_road)  # fmt: skip
            if rng.random() < 0.5:
                t_m = self.plan.road_half_m + float(rng.uniform(1.0, self.plan.pavement_m))
                self.put(self.people[rng.integers(8)], float(rng.uniform(start_m + 2, end_m - 2)),
                         side * t_m, float(rng.uniform(0, 6.28)))  # fmt: skip

    def _parked(self, start_m: float, end_m: float, side: float) -> None:
        """Cars along the kerb, with gaps."""
        rng, s_m = self.rng, start_m + 9.0
        density = float(rng.uniform(0.25, 0.95))
        while s_m < end_m - 9.0:
            if rng.random() < density:
                turn = 0.0 if side < 0 else np.pi
                self._car(s_m, side * (self.plan.road_half_m - 1.12), turn + float(
                    rng.normal(0, 0.015)))  # fmt: skip
            s_m += float(rng.uniform(5.8, 7.2))

    def _corner(self, centre_m: float) -> None:
        """Signals or stop signs, cars that wait and cars parked in the side street."""
        rng, plan = self.rng, self.plan
        signals, lit = rng.random() < 0.5, int(rng.integers(0, 3))
        for side in (-1.0, 1.0):
            corner = (centre_m - side * (plan.side_half_m + 0.8), side * (plan.road_half_m + 0.7))
            facing = 0.0 if side < 0 else np.pi
            if signals:
                post = objects.traffic_light(float(rng.uniform(2.5, 5.0)), lit)
                self.put(post, 2 * centre_m - corner[0], corner[1], facing)
            else:
                self.put(self.signs[0], *corner, side * np.pi / -2)
            lane = side * plan.side_half_m / 2
            waits = plan.road_half_m + float(rng.uniform(7.5, 9.0))
            if rng.random() < 0.6:
                self._car(centre_m - lane, side * waits, -side * np.pi / 2)
            for t_m in np.arange(waits + 8.0, 130.0, 7.0).tolist():
                if rng.random() < 0.25:
                    edge = centre_m + side * (plan.side_half_m - 1.1)
                    self._car(edge, side * t_m, side * np.pi / 2)

    def _skyline(self) -> None:
        """Hills, woods and towers beyond the end of the street."""
        rng, plan = self.rng, self.plan
        middle, count = (plan.start_m + plan.end_m) / 2, 16
        for angle in (2 * np.pi * np.arange(count) / count + rng.uniform(0, 0.4, count)).tolist():
            s_m = middle + float(rng.uniform(420, 600)) * np.cos(angle)
            t_m = float(rng.uniform(330, 480)) * np.sin(angle)
            x, y, z = self.terrain.point_m(float(np.clip(s_m, plan.start_m, plan.end_m)), 0.0)
            centre = (x + s_m - float(np.clip(s_m, plan.start_m, plan.end_m)), y + t_m)
            green = np.array([0.07, 0.1, 0.045]) * rng.uniform(0.7, 1.3)
            radii = (float(rng.uniform(90, 220)), float(rng.uniform(90, 220)),
                     float(rng.uniform(18, 60)))  # fmt: skip
            hill = ellipsoid(radii, Material.FOLIAGE, green, (*centre, float(z) - 12.0), 8, 40)
            self.parts.append(hill)
        far = 1500.0
        plain = [[[-far, -far, -30.0], [far, -far, -30.0], [far, far, -30.0], [-far, far, -30.0]]]
        self.parts.append(quads(np.array(plain), Material.FOLIAGE, (0.1, 0.12, 0.06), 40))


def _leafy_tree(rng: np.random.Generator) -> Mesh:
    return objects.tree(rng, _LEAVES)


def _paint(rng: np.random.Generator) -> np.ndarray:
    return objects.CAR_PAINTS[rng.integers(len(objects.CAR_PAINTS))] * rng.uniform(0.7, 1.15)


def _traffic(
    rng: np.random.Generator, plan: Plan, cars: list[Mesh], ego_lane: int, ego_speed: float
) -> list[Mover]:
    """Cars in every lane, those of one lane equally fast; the ego's lane keeps its distance."""
    movers = []
    for direction in (-1.0, 1.0):
        for lane in range(plan.lanes):
            ego = direction > 0 and lane == ego_lane
            speed = ego_speed if ego else float(rng.uniform(3.0, 14.0))
            step = float(rng.uniform(14.0, 60.0))
            spots = np.arange(plan.start_m + 20.0, plan.end_m - 20.0, step)
            spots = spots + rng.uniform(0.0, 0.35 * step, len(spots))
            if ego:
                spots = spots[(spots > 8.0 + 2.0 * step / 14.0) | (spots < -12.0)]
            for s_m in spots.tolist():
                if rng.random() < 0.6:
                    mesh = cars[rng.choice(len(cars), p=[0.34, 0.25, 0.27, 0.07, 0.04, 0.03])]
                    t_m = -direction * plan.lane_centre_m(lane) + float(rng.normal(0, 0.12))
                    mover = Mover(mesh.painted(_paint(rng)), s_m, t_m, direction * speed)
                    movers.append(mover)
    return movers


def _walkers(rng: np.random.Generator, plan: Plan, people: list[Mesh]) -> list[Mover]:
    """People who walk along the pavements."""
    movers = []
    for _ in range(int(rng.integers(4, 16))):
        side = float(rng.choice([-1.0, 1.0]))
        t_m = side * (plan.road_half_m + float(rng.uniform(0.8, plan.pavement_m)))
        speed = float(rng.uniform(0.8, 1.7)) * float(rng.choice([-1.0, 1.0]))
        s_m = float(rng.uniform(-60.0, 120.0))
        movers.append(Mover(people[rng.integers(len(people))], s_m, t_m, speed, KERB_M))
    return movers
