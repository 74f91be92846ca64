"""Houses, shops and towers: solids with ledges, roofs, awnings and a facade for the painter."""

import dataclasses

import numpy as np
from jaxtyping import Float

from fsmde_jax.world.meshes import Material, Mesh, box, boxes, merge, quads, soup

WALLS = np.array(
    [[0.35, 0.13, 0.08], [0.45, 0.3, 0.2], [0.55, 0.5, 0.42], [0.62, 0.6, 0.56], [0.3, 0.28, 0.26],
     [0.5, 0.42, 0.28], [0.22, 0.1, 0.07], [0.4, 0.45, 0.48], [0.55, 0.36, 0.28],
     [0.3, 0.36, 0.3], [0.68, 0.64, 0.5], [0.18, 0.2, 0.23]]
)  # fmt: skip
ROOFS = np.array([[0.16, 0.07, 0.05], [0.08, 0.08, 0.085], [0.14, 0.11, 0.09], [0.25, 0.24, 0.23]])


@dataclasses.dataclass(frozen=True)
class Facade:
    """How the painter draws a building's walls; lengths in metres.

    Args:
        floor_m, bay_m: height of a storey and width of a window bay.
        glass_wide, glass_tall: share of the bay and of the storey that is window.
        sill: height of the window's foot as a share of the storey.
        shop_m: height of a shop front on the ground floor, 0 for none.
        brick: strength of the brick pattern.
        bands: strength of the lines between storeys.
        seed: draws blinds, lit rooms, stains.
        accent: colour of frames, doors and shop signs.
        height_m: of the wall, for the band under the roof.
    """

    floor_m: float
    bay_m: float
    glass_wide: float
    glass_tall: float
    sill: float
    shop_m: float
    brick: float
    bands: float
    seed: float
    accent: tuple[float, float, float]
    height_m: float

    def row(self) -> Float[np.ndarray, "13"]:
        """The facade as a row of the painter's table."""
        values = dataclasses.astuple(self)
        return np.array([*values[:9], *values[9], values[10]], np.float32)


def draw_facade(rng: np.random.Generator, height_m: float, shop: bool) -> Facade:
    """A random facade for a wall of that height."""
    floor_m = float(rng.uniform(2.8, 3.8))
    office = bool(rng.random() < 0.25)
    return Facade(
        floor_m, float(rng.uniform(1.6, 4.2)),
        float(rng.uniform(0.75, 0.94) if office else rng.uniform(0.32, 0.62)),
        float(rng.uniform(0.5, 0.78) if office else rng.uniform(0.4, 0.58)),
        float(rng.uniform(0.12, 0.2) if office else rng.uniform(0.24, 0.34)),
        float(rng.uniform(3.3, 4.4)) if shop else 0.0,
        float(rng.choice([0.0, 0.0, 1.0])), float(rng.uniform(0.0, 1.0)),
        float(rng.integers(0, 9999)), tuple(rng.uniform(0.02, 0.6, 3).tolist()), height_m,
    )  # fmt: skip


def building(
    rng: np.random.Generator, wide_m: float, deep_m: float, floors: int, style: int, shop: bool
) -> tuple[Mesh, Facade]:
    """A building whose front stands on y = 0 and looks along -y; it goes 4 m underground.

    Returns:
        the mesh, whose facade triangles carry `style`, and the facade to store under it.
    """
    height_m = floors * float(rng.uniform(2.9, 3.6)) + (1.0 if shop else 0.3)
    facade = draw_facade(rng, height_m, shop)
    wall = WALLS[rng.integers(len(WALLS))] * rng.uniform(0.75, 1.2) * rng.uniform(0.94, 1.06, 3)
    parts = [_walls(wide_m, deep_m, height_m, wall, style)]
    pitched = floors <= 3 and not shop and rng.random() < 0.75
    parts += _gable(rng, wide_m, deep_m, height_m) if pitched else _flat_roof(
        rng, wide_m, deep_m, height_m, wall
    )  # fmt: skip
    if shop and rng.random() < 0.7:
        parts.append(_awning(rng, wide_m))
    if not shop and floors > 2 and wide_m > 7.0 and rng.random() < 0.5:
        parts += _balconies(facade, wide_m, floors)
    if not shop:
        parts.append(
            box((1.6, 0.9, 0.3), Material.CONCRETE, (0.35, 0.34, 0.32), 0, (0.0, -0.4, 0.0))
        )
    return merge(parts), facade


def _walls(wide_m: float, deep_m: float, height_m: float, wall: np.ndarray, style: int) -> Mesh:
    """Four walls with uv (metres along the wall, metres above the ground)."""
    x, under = wide_m / 2, -4.0
    corner = np.array([[-x, 0.0], [x, 0.0], [x, deep_m], [-x, deep_m]])
    faces, uv = [], []
    for side in range(4):
        a, b = corner[side], corner[(side + 1) % 4]
        run = float(np.linalg.norm(b - a))
        faces.append([[*a, under], [*b, under], [*b, height_m], [*a, height_m]])
        uv.append([[0.0, under], [run, under], [run, height_m], [0.0, height_m]])
    return quads(np.array(faces), Material.FACADE, wall, style, np.array(uv))


def _flat_roof(
    rng: np.random.Generator, wide_m: float, deep_m: float, height_m: float, wall: np.ndarray
) -> list[Mesh]:
    """A roof with a cornice, and plant rooms on top."""
    ledge = float(rng.uniform(0.1, 0.5))
    cornice = box(
        (wide_m + 2 * ledge, deep_m + 2 * ledge, float(rng.uniform(0.3, 0.9))), Material.CONCRETE,
        wall * rng.uniform(0.6, 1.3), 0, (0.0, deep_m / 2, height_m - 0.15),
    )  # fmt: skip
    parts = [cornice]
    for _ in range(int(rng.integers(0, 3))):
        size = rng.uniform(1.2, 4.0, 3)
        at = (float(rng.uniform(-0.3, 0.3) * wide_m), float(rng.uniform(0.3, 0.7) * deep_m))
        parts.append(box(tuple(size.tolist()), Material.METAL, (0.4, 0.4, 0.4), 0,
                         (*at, height_m + 0.2)))  # fmt: skip
    return parts


def _gable(rng: np.random.Generator, wide_m: float, deep_m: float, height_m: float) -> list[Mesh]:
    """A pitched roof with eaves and a chimney; the ridge runs along or across the front."""
    tiles = ROOFS[rng.integers(len(ROOFS))] * rng.uniform(0.7, 1.3)
    rise, eaves = float(rng.uniform(1.6, 3.2)), 0.45
    x, low, high = wide_m / 2 + eaves, -eaves, deep_m + eaves
    middle, base, top = deep_m / 2, height_m - 0.12, height_m + rise
    if rng.random() < 0.5:
        slopes = [
            [[-x, low, base], [x, low, base], [x, middle, top], [-x, middle, top]],
            [[x, high, base], [-x, high, base], [-x, middle, top], [x, middle, top]],
        ]
        ends = [[[e, low, base], [e, high, base], [e, middle, top]] for e in (-x, x)]
    else:
        slopes = [
            [[-x, high, base], [-x, low, base], [0.0, low, top], [0.0, high, top]],
            [[x, low, base], [x, high, base], [0.0, high, top], [0.0, low, top]],
        ]
        ends = [[[-x, e, base], [x, e, base], [0.0, e, top]] for e in (low, high)]
    triangles = np.array(ends)
    chimney = box((0.7, 0.7, rise + 1.2), Material.CONCRETE, (0.3, 0.15, 0.1), 0,
                  (0.25 * wide_m, 0.5 * deep_m, height_m))  # fmt: skip
    return [
        quads(np.array(slopes), Material.ROOF, tiles),
        soup(triangles, triangles[..., :2], Material.PLAIN, WALLS[rng.integers(len(WALLS))]),
        chimney,
    ]


def _awning(rng: np.random.Generator, wide_m: float) -> Mesh:
    """A sloping sheet over the shop window."""
    x, out = 0.42 * wide_m, float(rng.uniform(0.9, 1.7))
    sheet = [[[-x, -out, 2.45], [x, -out, 2.45], [x, -0.05, 3.1], [-x, -0.05, 3.1]],
             [[-x, -out, 2.2], [x, -out, 2.2], [x, -out, 2.45], [-x, -out, 2.45]]]  # fmt: skip
    return quads(np.array(sheet), Material.SIGN, rng.uniform(0.03, 0.6, 3), 6)


def _balconies(facade: Facade, wide_m: float, floors: int) -> list[Mesh]:
    """Slabs with railings before every other bay."""
    x = np.arange(-wide_m / 2 + facade.bay_m, wide_m / 2 - 1.0, 2 * facade.bay_m)
    z = np.arange(1, min(floors, 7)) * facade.floor_m
    slabs = np.stack([grid.ravel() for grid in np.meshgrid(x, [-0.55], z)], -1)
    rails = slabs + np.array([0.0, -0.53, 0.15])
    return [
        boxes((2.0, 1.1, 0.15), slabs, Material.CONCRETE, (0.4, 0.39, 0.37)),
        boxes((2.0, 0.05, 0.9), rails, Material.METAL, (0.1, 0.1, 0.11)),
    ]
