"""Triangle soups and the solids that streets are built of (numpy, metres, z up)."""

import dataclasses
import enum

import numpy as np
from jaxtyping import Float, Int, UInt8


class Material(enum.IntEnum):
    """What a triangle is made of; `shading` has one painter for each."""

    GROUND = 0
    CONCRETE = 1
    FACADE = 2
    PAINT = 3
    GLASS = 4
    FOLIAGE = 5
    WOOD = 6
    PLAIN = 7
    METAL = 8
    ROOF = 9
    SIGN = 10
    LAMP = 11


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A triangle soup; every array has one row a triangle.

    Args:
        corners_m: the three corners.
        uv_m: surface coordinates of the corners, in metres.
        normals: unit normals at the corners (equal where the solid is flat).
        material: a `Material`.
        rgb: base reflectance, linear.
        style: a row of the street's facade table, or a free seed.
    """

    corners_m: Float[np.ndarray, "t 3 3"]
    uv_m: Float[np.ndarray, "t 3 2"]
    normals: Float[np.ndarray, "t 3 3"]
    material: UInt8[np.ndarray, "t"]
    rgb: Float[np.ndarray, "t 3"]
    style: Int[np.ndarray, "t"]

    def __len__(self) -> int:
        return len(self.corners_m)

    def placed(self, x: float, y: float, z: float, yaw: float = 0.0, pitch: float = 0.0) -> "Mesh":
        """The mesh pitched (nose up positive), turned by yaw, then moved; angles in radians."""
        return self.transformed(rotation(yaw, pitch), np.array([x, y, z]))

    def transformed(
        self, turn: Float[np.ndarray, "3 3"], shift_m: Float[np.ndarray, "3"]
    ) -> "Mesh":
        """The mesh under a rigid motion, or a scaling that keeps angles."""
        turn = turn.astype(np.float32)
        corners = np.einsum("tkc,dc->tkd", self.corners_m, turn) + shift_m.astype(np.float32)
        normals = np.einsum("tkc,dc->tkd", self.normals, turn)
        return dataclasses.replace(self, corners_m=corners, normals=normals)

    def scaled(self, factor: float) -> "Mesh":
        """The mesh grown about its origin."""
        factor32 = np.float32(factor)
        return dataclasses.replace(
            self, corners_m=self.corners_m * factor32, uv_m=self.uv_m * factor32
        )

    def painted(self, rgb: np.ndarray, material: Material = Material.PAINT) -> "Mesh":
        """The mesh with another base colour on all triangles of one material."""
        chosen = (self.material == material)[:, None]
        return dataclasses.replace(self, rgb=np.where(chosen, np.float32(rgb), self.rgb))


def rotation(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Float[np.ndarray, "3 3"]:
    """Rotation in radians: roll about x, then pitch (nose up positive), then yaw about z."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    about_y = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return about_z @ about_y @ about_x


def merge(meshes: list[Mesh]) -> Mesh:
    """One soup of several."""
    names = [field.name for field in dataclasses.fields(Mesh)]
    return Mesh(**{name: np.concatenate([getattr(m, name) for m in meshes]) for name in names})


def soup(
    corners_m: np.ndarray,
    uv_m: np.ndarray,
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
    style: int = 0,
    normals: np.ndarray | None = None,
) -> Mesh:
    """A mesh of one material, colour and style; flat normals unless given."""
    count = len(corners_m)
    if normals is None:
        normals = np.repeat(_flat_normals(corners_m)[:, None], 3, axis=1)
    return Mesh(
        np.asarray(corners_m, np.float32),
        np.asarray(uv_m, np.float32),
        np.asarray(normals, np.float32),
        np.full(count, int(material), np.uint8),
        np.tile(np.asarray(rgb, np.float32), (count, 1)),
        np.full(count, style, np.int32),
    )


def _flat_normals(corners_m: np.ndarray) -> np.ndarray:
    return _unit_cross(corners_m[:, 1] - corners_m[:, 0], corners_m[:, 2] - corners_m[:, 0])


def _unit_cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Unit cross product; several times quicker than numpy's on the small arrays met here."""
    cross = np.empty(np.broadcast_shapes(a.shape, b.shape))
    cross[..., 0] = a[..., 1] * b[..., 2] - a[..., 2] * b[..., 1]
    cross[..., 1] = a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2]
    cross[..., 2] = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return cross / np.maximum(np.sqrt((cross * cross).sum(-1, keepdims=True)), 1e-12)


def quads(
    corners_m: Float[np.ndarray, "q 4 3"],
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
    style: int = 0,
    uv_m: Float[np.ndarray, "q 4 2"] | None = None,
) -> Mesh:
    """Quads (corners in order round the edge) as pairs of triangles; uv along the first edge."""
    corners_m = np.asarray(corners_m, np.float64)
    if uv_m is None:
        uv_m = _quad_uv(corners_m)
    halves = np.array([[0, 1, 2], [0, 2, 3]])
    return soup(
        corners_m[:, halves].reshape(-1, 3, 3), uv_m[:, halves].reshape(-1, 3, 2),
        material, rgb, style,
    )  # fmt: skip


def _quad_uv(corners_m: np.ndarray) -> np.ndarray:
    """Metres along the first edge, and across it from there."""
    first = corners_m[:, 1] - corners_m[:, 0]
    along = first / np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-9)
    offset = corners_m - corners_m[:, :1]
    u = (offset * along[:, None]).sum(-1)
    v = np.linalg.norm(offset - u[..., None] * along[:, None], axis=-1)
    return np.stack([u, v], -1)


_BOX_FACES = np.array(  # corner numbers are x + 2 y + 4 z; each first edge is horizontal
    [[0, 1, 5, 4], [1, 3, 7, 5], [3, 2, 6, 7], [2, 0, 4, 6], [4, 5, 7, 6], [2, 3, 1, 0]]
)
_BOX_CORNERS = np.array([[x, y, z] for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])


def box(
    size_m: tuple[float, float, float],
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
    style: int = 0,
    at_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
    taper: float = 1.0,
) -> Mesh:
    """A box whose base is centred at `at_m`; its top is `taper` times as long and wide."""
    corners = _BOX_CORNERS * np.array(size_m)
    corners[4:, :2] *= taper
    return quads((corners + np.array(at_m))[_BOX_FACES], material, rgb, style)


def boxes(
    size_m: tuple[float, float, float],
    at_m: Float[np.ndarray, "n 3"],
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
) -> Mesh:
    """Equal boxes whose bases are centred at many places."""
    corners = _BOX_CORNERS * np.array(size_m) + at_m[:, None]
    return quads(corners[:, _BOX_FACES].reshape(-1, 4, 3), material, rgb)


def grid_surface(
    points_m: Float[np.ndarray, "r c 3"],
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
    style: int = 0,
) -> Mesh:
    """A smooth surface through a grid of points; uv are arc lengths."""
    normals = _grid_normals(points_m)
    uv = np.stack([_arc_lengths(points_m, 1), _arc_lengths(points_m, 0)], -1)
    return soup(
        _grid_triangles(points_m), _grid_triangles(uv), material, rgb, style,
        _grid_triangles(normals),
    )  # fmt: skip


def _grid_triangles(values: np.ndarray) -> np.ndarray:
    """The two triangles of every grid cell, whatever is stored at the points."""
    a, b, c, d = values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]
    cells = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], 2)
    return cells.reshape(-1, 3, values.shape[-1])


def _grid_normals(points_m: np.ndarray) -> np.ndarray:
    across = np.gradient(points_m, axis=1)
    along = np.gradient(points_m, axis=0)
    return _unit_cross(across, along)


def _arc_lengths(points_m: np.ndarray, axis: int) -> np.ndarray:
    steps = np.linalg.norm(np.diff(points_m, axis=axis), axis=-1)
    pad = [(0, 0), (0, 0)]
    pad[axis] = (1, 0)
    return np.cumsum(np.pad(steps, pad), axis=axis)


def cylinder(
    radius_m: float,
    height_m: float,
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
    sides: int = 8,
    top_radius_m: float | None = None,
    capped: bool = False,
    style: int = 0,
) -> Mesh:
    """An upright round column standing on the origin, or a cone frustum."""
    angle = np.linspace(0.0, 2.0 * np.pi, sides + 1)
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    top_radius_m = radius_m if top_radius_m is None else top_radius_m
    top = ring * top_radius_m + np.array([0.0, 0.0, height_m])
    side = grid_surface(np.stack([ring * radius_m, top]), material, rgb, style)
    if not capped:
        return side
    lid = np.stack([np.tile([[0.0, 0.0, height_m]], (sides, 1)), top[:-1], top[1:]], 1)
    return merge([side, soup(lid, lid[..., :2], material, rgb, style)])


def tube(
    start_m: tuple[float, float, float],
    end_m: tuple[float, float, float],
    radius_m: float,
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
    sides: int = 6,
) -> Mesh:
    """A round bar between two points."""
    start, end = np.array(start_m), np.array(end_m)
    axis = (end - start) / np.linalg.norm(end - start)
    helper = np.array([0.0, 0.0, 1.0]) if abs(axis[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    side = np.cross(axis, helper)
    side /= np.linalg.norm(side)
    turn = np.stack([side, np.cross(axis, side), axis], 1)
    bar = cylinder(radius_m, float(np.linalg.norm(end - start)), material, rgb, sides)
    return bar.transformed(turn, start)


def ellipsoid(
    radii_m: tuple[float, float, float],
    material: Material,
    rgb: np.ndarray | tuple[float, float, float],
    at_m: tuple[float, float, float] = (0.0, 0.0, 0.0),
    rings: int = 6,
    style: int = 0,
) -> Mesh:
    """An ellipsoid centred at `at_m`."""
    polar = np.linspace(0.0, np.pi, rings + 1)[:, None]
    around = np.linspace(0.0, 2.0 * np.pi, 2 * rings + 1)[None]
    unit = np.stack(
        [np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around),
         np.cos(polar) + 0.0 * around], -1,
    )  # fmt: skip
    mesh = grid_surface(unit * np.array(radii_m) + np.array(at_m), material, rgb, style)
    outward = _grid_triangles(unit / np.array(radii_m))
    outward /= np.maximum(np.linalg.norm(outward, axis=-1, keepdims=True), 1e-9)
    return dataclasses.replace(mesh, normals=outward.astype(np.float32))
