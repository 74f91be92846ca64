"""The lie of the land: a winding, rolling street and the side streets that cross it.

Everything is laid out in street coordinates: s metres along the street, t metres to its left.
`Terrain` bends them into scene metres (x, y, z up) and builds the ground, whose uv stay (s, t) so
that the painter of the ground draws kerbs, lanes and crossings from them.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from fsmde_jax.world.meshes import Material, Mesh, merge, quads, rotation

KERB_M = 0.14
_ROW_STEP_M = 3.0
_FLAT_HALF_M = 13.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The street from above.

    Args:
        start_m, end_m: the stretch of s that is built.
        road_half_m: from the centre line to the kerb.
        lanes: lanes in each direction.
        lane_m: width of a lane.
        parking: whether cars may park along the kerb.
        pavement_m: width of the pavement.
        crossings_s_m: centres of the side streets.
        side_half_m: from a side street's centre to its kerb.
        reach_m: how far the ground goes to the left and right.
    """

    start_m: float
    end_m: float
    road_half_m: float
    lanes: int
    lane_m: float
    parking: bool
    pavement_m: float
    crossings_s_m: tuple[float, ...]
    side_half_m: float
    reach_m: float = 240.0

    def blocks(self) -> list[tuple[float, float]]:
        """The stretches of s between side streets."""
        edges = [self.start_m]
        for centre in self.crossings_s_m:
            edges += [centre - self.side_half_m, centre + self.side_half_m]
        edges.append(self.end_m)
        return list(zip(edges[::2], edges[1::2], strict=True))

    def lane_centre_m(self, lane: int) -> float:
        """Distance of a lane's centre from the centre line; lane 0 is the inner one."""
        return (lane + 0.5) * self.lane_m

    def in_side_street(self, s_m: float) -> bool:
        """Whether s lies in the mouth of a side street."""
        return any(abs(s_m - centre) < self.side_half_m + 1.0 for centre in self.crossings_s_m)


def draw_plan(rng: np.random.Generator, travel_m: float) -> Plan:
    """A random street long enough to look 200 m ahead and behind of a drive of `travel_m`."""
    lanes, parking = int(rng.choice([1, 1, 2])), bool(rng.random() < 0.7)
    lane_m = float(rng.uniform(3.0, 3.7))
    margin = 2.3 if parking else float(rng.uniform(0.3, 0.9))
    start_m, end_m = -240.0, 320.0 + travel_m
    crossings, s_m = [], start_m + float(rng.uniform(40.0, 110.0))
    while s_m < end_m - 50.0:
        crossings.append(s_m)
        s_m += float(rng.uniform(60.0, 150.0))
    return Plan(
        start_m, end_m, lanes * lane_m + margin, lanes, lane_m, parking,
        float(rng.uniform(2.2, 4.5)), tuple(crossings), float(rng.uniform(3.2, 5.5)),
    )  # fmt: skip


class Terrain:
    """Bends street coordinates into scene metres."""

    def __init__(self, plan: Plan, rng: np.random.Generator):
        self.plan = plan
        self._knots_m = np.arange(plan.start_m - 150.0, plan.end_m + 151.0, 1.0)
        bends = self._waves(rng, 1.0 / 420.0, (180.0, 600.0))
        self._heading = self._from_origin(np.cumsum(bends))
        self._x_m = self._from_origin(np.cumsum(np.cos(self._heading)))
        self._y_m = self._from_origin(np.cumsum(np.sin(self._heading)))
        slopes = self._waves(rng, float(rng.uniform(0.01, 0.06)), (110.0, 420.0))
        self._z_m = self._from_origin(np.cumsum(slopes))
        self._cross = self._waves(rng, float(rng.uniform(0.0, 0.07)), (150.0, 500.0))

    def _waves(
        self, rng: np.random.Generator, largest: float, lengths_m: tuple[float, float]
    ) -> np.ndarray:
        """A sum of three waves no larger than `largest`."""
        lengths, phases = rng.uniform(*lengths_m, 3), rng.uniform(0, 2 * np.pi, 3)
        angle = 2 * np.pi * self._knots_m[:, None] / lengths + phases
        return (np.sin(angle) * np.array([0.5, 0.3, 0.2])).sum(-1) * largest

    def _from_origin(self, values: np.ndarray) -> np.ndarray:
        return values - np.interp(0.0, self._knots_m, values)

    def heading(self, s_m: np.ndarray | float) -> np.ndarray | float:
        """Direction of the street in the scene's plane, radians."""
        return np.interp(s_m, self._knots_m, self._heading)

    def height_m(self, s_m: np.ndarray | float, t_m: np.ndarray | float) -> np.ndarray | float:
        """Height of the road surface: hills along the street, slopes to its left and right."""
        beyond = np.sign(t_m) * np.maximum(np.abs(t_m) - _FLAT_HALF_M, 0.0)
        slope = np.interp(s_m, self._knots_m, self._cross)
        return np.interp(s_m, self._knots_m, self._z_m) + slope * beyond

    def point_m(
        self, s_m: np.ndarray | float, t_m: np.ndarray | float, up_m: np.ndarray | float = 0.0
    ) -> Float[np.ndarray, "*shape 3"]:
        """Scene coordinates of a place `up_m` above the road surface."""
        heading = self.heading(s_m)
        x = np.interp(s_m, self._knots_m, self._x_m) - t_m * np.sin(heading)
        y = np.interp(s_m, self._knots_m, self._y_m) + t_m * np.cos(heading)
        return np.stack(np.broadcast_arrays(x, y, self.height_m(s_m, t_m) + up_m), -1)

    def pitch(self, s_m: float, t_m: float, turn: float, wheelbase_m: float = 2.8) -> float:
        """Nose-up angle of a car that stands at (s, t), turned by `turn` from the street."""
        ds, dt = 0.5 * wheelbase_m * np.cos(turn), 0.5 * wheelbase_m * np.sin(turn)
        rise = self.height_m(s_m + ds, t_m + dt) - self.height_m(s_m - ds, t_m - dt)
        return float(np.arctan2(rise, wheelbase_m))

    def put(
        self, mesh: Mesh, s_m: float, t_m: float, turn: float = 0.0, up_m: float = 0.0,
        tilted: bool = False,
    ) -> Mesh:  # fmt: skip
        """A mesh stood at (s, t), turned from the street's direction; cars tilt with the road."""
        matrix = self.pose(s_m, t_m, turn, up_m, tilted)
        return mesh.transformed(matrix[:3, :3], matrix[:3, 3])

    def pose(
        self, s_m: float, t_m: float, turn: float, up_m: float, tilted: bool
    ) -> Float[np.ndarray, "4 4"]:
        """Scene coordinates from those of a thing that stands at (s, t)."""
        pitch = self.pitch(s_m, t_m, turn) if tilted else 0.0
        matrix = np.eye(4)
        matrix[:3, :3] = rotation(float(self.heading(s_m)) + turn, pitch)
        matrix[:3, 3] = self.point_m(s_m, t_m, up_m)
        return matrix

    def ground(self) -> Mesh:
        """Road, pavements and the land behind, with kerbs between road and blocks."""
        rows, columns = self._rows(), self._columns()
        middle_s = (rows[:-1] + rows[1:]) / 2
        middle_t = (columns[:-1] + columns[1:]) / 2
        centres = np.array(self.plan.crossings_s_m)
        in_side = (np.abs(middle_s[:, None] - centres) < self.plan.side_half_m).any(-1)
        raised = (np.abs(middle_t)[None] > self.plan.road_half_m) & ~in_side[:, None]
        return merge([self._tiles(rows, columns, raised), self._kerbs(rows, columns, raised)])

    def _rows(self) -> np.ndarray:
        edges = [edge for block in self.plan.blocks() for edge in block]
        plain = np.arange(self.plan.start_m, self.plan.end_m, _ROW_STEP_M)
        clear = np.abs(plain[:, None] - np.array(edges)).min(-1) > 0.4
        return np.unique(np.concatenate([plain[clear], edges]))

    def _columns(self) -> np.ndarray:
        half = self.plan.road_half_m
        side = [half, half + self.plan.pavement_m, max(_FLAT_HALF_M, half + 5.0), 60.0, 120.0]
        side.append(self.plan.reach_m)
        return np.array([-t for t in side[::-1]] + [0.0] + side)

    def _tiles(self, rows: np.ndarray, columns: np.ndarray, raised: np.ndarray) -> Mesh:
        i, j = (index.ravel() for index in np.indices(raised.shape))
        s = np.stack([rows[i], rows[i + 1], rows[i + 1], rows[i]], -1)
        t = np.stack([columns[j], columns[j], columns[j + 1], columns[j + 1]], -1)
        points = self.point_m(s, t, KERB_M * raised[i, j][:, None])
        return quads(points, Material.GROUND, (0.16, 0.16, 0.15), 0, np.stack([s, t], -1))

    def _kerbs(self, rows: np.ndarray, columns: np.ndarray, raised: np.ndarray) -> Mesh:
        """Upright faces wherever a raised cell meets a low one."""
        i, j = np.nonzero(raised[:, :-1] != raised[:, 1:])
        along = self._wall(rows[i], columns[j + 1], rows[i + 1], columns[j + 1])
        i, j = np.nonzero(raised[:-1] != raised[1:])
        across = self._wall(rows[i + 1], columns[j], rows[i + 1], columns[j + 1])
        faces = np.concatenate([along, across])
        return quads(faces, Material.CONCRETE, (0.36, 0.35, 0.33))

    def _wall(self, s0: np.ndarray, t0: np.ndarray, s1: np.ndarray, t1: np.ndarray) -> np.ndarray:
        low, high = -0.02, KERB_M
        return np.stack(
            [self.point_m(s0, t0, low), self.point_m(s1, t1, low),
             self.point_m(s1, t1, high), self.point_m(s0, t0, high)], 1,
        )  # fmt: skip
