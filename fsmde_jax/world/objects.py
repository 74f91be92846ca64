"""What stands and drives on a street: cars, trees, street furniture, people (metres, x forward)."""

import dataclasses

import numpy as np
from jaxtyping import Float

from fsmde_jax.world.meshes import (
    Material,
    Mesh,
    box,
    cylinder,
    ellipsoid,
    grid_surface,
    merge,
    quads,
    soup,
    tube,
)

Rgb = tuple[float, float, float]
TYRE: Rgb = (0.012, 0.012, 0.013)
TRIM: Rgb = (0.02, 0.02, 0.022)
PANE: Rgb = (0.02, 0.025, 0.03)
CAR_PAINTS = np.array(
    [[0.75, 0.75, 0.74], [0.02, 0.02, 0.022], [0.32, 0.33, 0.35], [0.1, 0.105, 0.11],
     [0.35, 0.02, 0.02], [0.02, 0.06, 0.25], [0.5, 0.48, 0.42], [0.03, 0.12, 0.07],
     [0.6, 0.25, 0.03], [0.15, 0.25, 0.36], [0.65, 0.5, 0.05], [0.55, 0.55, 0.56]]
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CarShape:
    """The outline of a car; x runs from the rear bumper (0) to the front one (length_m).

    Args:
        deck: (x / length, height_m) of the body without the cabin, rear to front.
        cabin: x / length of the rear window's foot, the roof's rear and front edges and the
            windscreen's foot.
    """

    length_m: float
    width_m: float
    roof_m: float
    belt_m: float
    wheel_radius_m: float
    deck: tuple[tuple[float, float], ...]
    cabin: tuple[float, float, float, float]


SEDAN = CarShape(
    4.8, 1.84, 1.46, 0.96, 0.33,
    ((0.0, 0.62), (0.02, 0.98), (0.12, 1.04), (0.22, 1.0), (0.7, 0.98), (0.9, 0.82), (1.0, 0.5)),
    (0.1, 0.26, 0.55, 0.76),
)  # fmt: skip
HATCH = CarShape(
    4.1, 1.76, 1.5, 0.96, 0.31,
    ((0.0, 0.6), (0.02, 0.98), (0.1, 1.0), (0.7, 0.98), (0.9, 0.84), (1.0, 0.5)),
    (0.015, 0.1, 0.55, 0.79),
)  # fmt: skip
SUV = CarShape(
    4.75, 1.94, 1.74, 1.12, 0.38,
    ((0.0, 0.7), (0.02, 1.12), (0.1, 1.14), (0.72, 1.14), (0.93, 1.02), (1.0, 0.6)),
    (0.02, 0.09, 0.58, 0.75),
)  # fmt: skip
VAN = CarShape(
    5.4, 2.0, 2.35, 1.25, 0.36,
    ((0.0, 0.8), (0.01, 1.25), (0.1, 1.25), (0.82, 1.22), (0.95, 1.02), (1.0, 0.6)),
    (0.005, 0.02, 0.72, 0.9),
)  # fmt: skip
SHAPES = (SEDAN, HATCH, SUV, VAN)


def car(shape: CarShape) -> Mesh:
    """A car in white paint, standing on z = 0 with its middle at the origin."""
    parts = [_body(shape), _cabin(shape), *_wheels(shape), *_lights(shape)]
    return merge(parts).placed(-shape.length_m / 2, 0.0, 0.0)


def _body(shape: CarShape) -> Mesh:
    """The painted shell below the windows: cross-sections along the deck line."""
    deck = np.array(shape.deck)
    x_m = np.concatenate([[0.0], deck[:, 0] * shape.length_m, [shape.length_m]])
    top = np.concatenate([[0.55], deck[:, 1], [0.45]])
    ends = np.array([0.0, 0.8] + [1.0] * (len(x_m) - 4) + [0.84, 0.0])
    return grid_surface(_sections(shape, x_m, top, ends), Material.PAINT, (0.8, 0.8, 0.8))


def _sections(shape: CarShape, x_m: np.ndarray, top_m: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Grid of body points: each section runs from the right sill over the deck to the left."""
    half = shape.width_m / 2 * (0.86 + 0.14 * ends)
    clearance = 0.2 + 0.25 * shape.wheel_radius_m / 0.33 * 0.4
    across = np.array([-0.9, -0.99, -1.0, -0.96, -0.8, 0.0, 0.8, 0.96, 1.0, 0.99, 0.9])
    height = np.array([0.0, 0.2, 0.6, 0.94, 1.0, 1.03, 1.0, 0.94, 0.6, 0.2, 0.0])
    z = clearance + (top_m[:, None] - clearance) * height
    y = half[:, None] * across
    return np.stack([np.broadcast_to(x_m[:, None], y.shape), y, z], -1)


def _cabin(shape: CarShape) -> Mesh:
    """Windows, pillars and roof: a frustum over the belt line."""
    foot_rear, rear, front, foot_front = (np.array(shape.cabin) * shape.length_m).tolist()
    low, high = shape.belt_m - 0.03, shape.roof_m
    wide, narrow = 0.44 * shape.width_m, 0.355 * shape.width_m
    base = np.array([[foot_rear, -wide, low], [foot_front, -wide, low],
                     [foot_front, wide, low], [foot_rear, wide, low]])  # fmt: skip
    edge = np.array([[rear, -narrow, high - 0.05], [front, -narrow, high - 0.05],
                     [front, narrow, high - 0.05], [rear, narrow, high - 0.05]])  # fmt: skip
    parts = []
    for side in range(4):
        other = (side + 1) % 4
        wall = np.stack([base[side], base[other], edge[other], edge[side]])
        bars = (0.0, 0.09, 0.45, 0.5, 0.84, 1.0) if side in (0, 2) else (0.0, 0.06, 0.94, 1.0)
        parts += _glazed_wall(wall, bars)
    return merge([*parts, _roof(edge, high)])


def _glazed_wall(wall: np.ndarray, bars: tuple[float, ...]) -> list[Mesh]:
    """Alternate pillars and panes along a wall, with a painted rail above and below."""

    def patch(u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
        return np.array(
            [_bilinear(wall, u, v) for u, v in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))]
        )

    pillars = [patch(a, b, 0.06, 0.9) for a, b in zip(bars[::2], bars[1::2], strict=True)]
    rails = [patch(0.0, 1.0, 0.0, 0.06), patch(0.0, 1.0, 0.9, 1.0)]
    panes = [patch(a, b, 0.06, 0.9) for a, b in zip(bars[1:-1:2], bars[2::2], strict=True)]
    return [
        quads(np.stack(pillars + rails), Material.PAINT, (0.8, 0.8, 0.8)),
        quads(np.stack(panes), Material.GLASS, PANE),
    ]


def _bilinear(wall: np.ndarray, u: float, v: float) -> np.ndarray:
    low, high = wall[0] + u * (wall[1] - wall[0]), wall[3] + u * (wall[2] - wall[3])
    return low + v * (high - low)


def _roof(edge: np.ndarray, high_m: float) -> Mesh:
    """A slightly domed roof over the upper edge of the windows."""
    u, v = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 4))
    x = edge[0, 0] + u * (edge[1, 0] - edge[0, 0])
    y = edge[0, 1] + v * (edge[3, 1] - edge[0, 1])
    bulge = (1 - (2 * u - 1) ** 4) * (1 - (2 * v - 1) ** 4)
    return grid_surface(
        np.stack([x, y, high_m - 0.05 + 0.05 * bulge], -1), Material.PAINT, (0.8, 0.8, 0.8)
    )


def _wheels(shape: CarShape) -> list[Mesh]:
    """Four wheels in dark arches."""
    radius, half = shape.wheel_radius_m, shape.width_m / 2
    parts = []
    for x in (0.19 * shape.length_m, 0.81 * shape.length_m):
        for side in (-1.0, 1.0):
            outer = (x, side * (half + 0.012), radius)
            parts += [
                tube((x, side * (half - 0.24), radius), outer, radius, Material.PLAIN, TYRE, 12),
                _disc(outer, radius, side, Material.PLAIN, TYRE),
                _disc((x, side * (half + 0.02), radius), 0.62 * radius, side, Material.METAL,
                      (0.35, 0.35, 0.36)),
                _disc((x, side * (half + 0.024), radius), 0.2 * radius, side, Material.PLAIN, TRIM),
                _disc((x, side * (half + 0.004), radius + 0.02), 1.2 * radius, side,
                      Material.PLAIN, TYRE, arch=True),
            ]  # fmt: skip
    return parts


def _disc(
    centre_m: tuple[float, float, float],
    radius_m: float,
    side: float,
    material: Material,
    rgb: Rgb,
    arch: bool = False,
) -> Mesh:
    """An upright disc facing sideways; as an arch only what is above the sill."""
    angle = np.linspace(-0.2, np.pi + 0.2, 10) if arch else np.linspace(0.0, 2 * np.pi, 13)
    rim = np.array(centre_m) + radius_m * np.stack(
        [np.cos(angle) * side, np.zeros_like(angle), np.sin(angle)], -1
    )
    hub = np.tile(np.array(centre_m), (len(angle) - 1, 1))
    fan = np.stack([hub, rim[1:], rim[:-1]], 1)
    return soup(fan, fan[..., [0, 2]], material, rgb)


def _lights(shape: CarShape) -> list[Mesh]:
    """Lamps, bumpers, grille, plates and mirrors."""
    length, half = shape.length_m, shape.width_m / 2
    rear_m, front_m = 0.78 * shape.deck[1][1], 0.66
    parts = [
        box((0.1, 1.5 * half, 0.2), Material.PLAIN, TRIM, at_m=(length - 0.03, 0.0, 0.26)),
        box((0.1, 1.6 * half, 0.2), Material.PLAIN, TRIM, at_m=(0.03, 0.0, 0.28)),
        box((0.06, 0.8 * half, 0.14), Material.PLAIN, TRIM, at_m=(length - 0.01, 0.0, 0.5)),
        box((0.03, 0.5, 0.12), Material.SIGN, (0.7, 0.7, 0.68), 7, (-0.01, 0.0, 0.62)),
        box((0.03, 0.5, 0.11), Material.SIGN, (0.7, 0.7, 0.68), 7, (length + 0.02, 0.0, 0.34)),
    ]
    for side in (-1.0, 1.0):
        parts += [
            box((0.16, 0.38, 0.16), Material.LAMP, (0.4, 0.01, 0.01), 1,
                (0.07, side * (half - 0.2), rear_m)),
            box((0.3, 0.36, 0.13), Material.LAMP, (0.75, 0.75, 0.7), 2,
                (length - 0.16, side * (half - 0.24), front_m - 0.03)),
            ellipsoid((0.06, 0.1, 0.07), Material.PAINT, (0.8, 0.8, 0.8),
                      ((shape.cabin[3] - 0.05) * length, side * (half + 0.05),
                       shape.belt_m + 0.06), 3),
        ]  # fmt: skip
    return parts


def truck(cargo_m: float = 4.6) -> Mesh:
    """A box lorry: cab with windows in front, white cargo box behind."""
    paint, grey = (0.8, 0.8, 0.8), (0.5, 0.5, 0.5)
    front = cargo_m / 2
    parts = [
        box((cargo_m, 2.4, 2.4), Material.PLAIN, (0.7, 0.7, 0.68), 3, (0.0, 0.0, 0.95)),
        box((cargo_m + 1.9, 0.9, 0.25), Material.PLAIN, TRIM, 0, (0.8, 0.0, 0.65)),
        box((1.9, 2.2, 1.15), Material.PAINT, paint, 0, (front + 1.05, 0.0, 0.55)),
        box((1.8, 2.1, 0.85), Material.GLASS, PANE, 0, (front + 1.0, 0.0, 1.7), taper=0.86),
        box((1.5, 1.8, 0.12), Material.PAINT, paint, 0, (front + 1.0, 0.0, 2.55)),
        box((0.05, 1.4, 0.3), Material.METAL, grey, 0, (front + 2.0, 0.0, 0.8)),
    ]
    for side in (-1.0, 1.0):
        parts.append(
            box((0.06, 0.3, 0.16), Material.LAMP, (0.4, 0.01, 0.01), 1,
                (-front - 0.02, side * 0.95, 0.75))
        )  # fmt: skip
        for x in (-front + 1.0, front + 1.0):
            parts.append(tube((x, side * 0.75, 0.45), (x, side * 1.14, 0.45), 0.45,
                              Material.PLAIN, TYRE, 14))  # fmt: skip
            parts.append(_disc((x, side * 1.14, 0.45), 0.45, side, Material.PLAIN, TYRE))
            parts.append(_disc((x, side * 1.15, 0.45), 0.25, side, Material.METAL, grey))
    return merge(parts)


def bus() -> Mesh:
    """A city bus, 11 m long."""
    length, half = 11.0, 1.27
    body = box((length, 2 * half, 2.75), Material.PAINT, (0.8, 0.8, 0.8), 0, (0.0, 0.0, 0.3))
    parts = [body]
    for side in (-1.0, 1.0):
        for x in np.arange(-4.9, 4.9, 1.55).tolist():
            parts.append(box((1.4, 0.03, 1.05), Material.GLASS, PANE, 0,
                             (x + 0.5, side * (half + 0.01), 1.35)))  # fmt: skip
        for x in (-3.2, 3.0):
            parts.append(_disc((x, side * (half + 0.012), 0.48), 0.48, side, Material.PLAIN, TYRE))
            parts.append(_disc((x, side * (half + 0.02), 0.48), 0.26, side, Material.METAL,
                               (0.4, 0.4, 0.4)))  # fmt: skip
    for end in (-1.0, 1.0):
        parts.append(box((0.03, 2.2, 1.3), Material.GLASS, PANE, 0,
                         (end * (length / 2 + 0.01), 0.0, 1.2)))  # fmt: skip
        parts.append(box((0.04, 1.4, 0.3), Material.SIGN, (0.6, 0.3, 0.02), 5,
                         (end * (length / 2 + 0.01), 0.0, 2.6)))  # fmt: skip
    return merge(parts)


def tree(rng: np.random.Generator, leaves: int = 300) -> Mesh:
    """A tree: trunk, branches, and a crown of leaf clusters with gaps between them."""
    height = float(rng.uniform(4.5, 11.0))
    spread = height * float(rng.uniform(0.22, 0.38))
    stem = height * float(rng.uniform(0.28, 0.42))
    bark = np.array([0.11, 0.08, 0.055]) * rng.uniform(0.6, 1.6)
    green = np.array([0.09, 0.16, 0.035]) * rng.uniform(0.6, 1.5, 3) * rng.uniform(0.7, 1.2)
    clumps = _clumps(rng, height, spread, stem)
    trunk = cylinder(0.02 * height, stem + 0.3 * height, Material.WOOD, bark, 7, 0.008 * height)
    limbs = [
        tube((0.0, 0.0, stem), tuple(centre.tolist()), 0.008 * height, Material.WOOD, bark, 3)
        for centre in clumps[:, :3]
    ]
    cores = [
        ellipsoid((0.62 * r, 0.62 * r, 0.55 * r), Material.FOLIAGE, green * 0.6,
                  (x, y, z), 3, 3) for x, y, z, r in clumps.tolist()
    ]  # fmt: skip
    return merge([trunk, *limbs, *cores, _leaves(rng, clumps, green, leaves)])


def conifer(rng: np.random.Generator) -> Mesh:
    """A slim evergreen: stacked ragged cones."""
    height = float(rng.uniform(5.0, 14.0))
    green = np.array([0.03, 0.07, 0.03]) * rng.uniform(0.7, 1.6)
    parts = [cylinder(0.018 * height, 0.3 * height, Material.WOOD, (0.09, 0.06, 0.04), 6)]
    for level in np.linspace(0.2, 0.84, 7).tolist():
        radius = 0.17 * height * (1.05 - level) * float(rng.uniform(0.85, 1.15))
        cone = cylinder(radius, 0.2 * height, Material.FOLIAGE, green, 9, 0.02 * height, style=3)
        parts.append(cone.placed(0.0, 0.0, level * height, float(rng.uniform(0, 6))))
    return merge(parts)


def _clumps(
    rng: np.random.Generator, height: float, spread: float, stem: float
) -> Float[np.ndarray, "k 4"]:
    """Centres and radii of the crown's leaf clusters."""
    count = int(rng.integers(4, 8))
    angle = rng.uniform(0, 2 * np.pi) + np.arange(count) * 2.4
    out = spread * rng.uniform(0.3, 0.62, count)
    out[0] = 0.0
    z = rng.uniform(stem + 0.35 * spread, height - 0.5 * spread, count)
    z[0] = height - 0.55 * spread
    radius = spread * rng.uniform(0.5, 0.72, count)
    return np.stack([out * np.cos(angle), out * np.sin(angle), z, radius], -1)


def _leaves(rng: np.random.Generator, clumps: np.ndarray, green: np.ndarray, count: int) -> Mesh:
    """Twig-sized triangles on the clusters' shells, lit as the shell is."""
    which = rng.integers(0, len(clumps), count)
    outward = rng.normal(size=(count, 3))
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    centre = clumps[which, :3] + outward * clumps[which, 3:] * rng.uniform(0.6, 1.1, (count, 1))
    size = clumps[which, 3:, None] * rng.uniform(0.16, 0.34, (count, 1, 1))
    corners = centre[:, None] + size * rng.normal(size=(count, 3, 3)) * 0.75
    normals = np.repeat(outward[:, None] + np.array([0, 0, 0.25]), 3, axis=1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    leaves = soup(corners, corners[..., :2], Material.FOLIAGE, green, 3, normals)
    shade = rng.uniform(0.7, 1.35, (count, 1)).astype(np.float32)
    return dataclasses.replace(leaves, rgb=leaves.rgb * shade)


def street_lamp(height_m: float, reach_m: float) -> Mesh:
    """A lamp post whose arm reaches along +y."""
    grey = (0.2, 0.21, 0.22)
    top = (0.0, reach_m, height_m + 0.25)
    return merge([
        cylinder(0.11, height_m, Material.METAL, grey, 8, 0.07),
        cylinder(0.17, 0.7, Material.METAL, grey, 8, 0.14),
        tube((0.0, 0.0, height_m - 0.05), top, 0.05, Material.METAL, grey),
        box((0.26, 0.7, 0.12), Material.METAL, grey, 0, (0.0, reach_m, height_m + 0.2)),
        box((0.2, 0.5, 0.03), Material.LAMP, (0.9, 0.8, 0.6), 3,
            (0.0, reach_m, height_m + 0.165)),
    ])  # fmt: skip


def utility_pole(height_m: float) -> Mesh:
    """A wooden pole with a cross-arm along y and a transformer."""
    brown = (0.13, 0.09, 0.06)
    return merge([
        cylinder(0.15, height_m, Material.WOOD, brown, 8, 0.11),
        box((0.1, 2.4, 0.12), Material.WOOD, brown, 0, (0.0, 0.0, height_m - 0.9)),
        cylinder(0.25, 0.9, Material.METAL, (0.25, 0.26, 0.27), 8, capped=True)
        .placed(0.32, 0.0, height_m - 2.6),
    ])  # fmt: skip


def traffic_light(reach_m: float, lit: int) -> Mesh:
    """Signals on a pole, seen by traffic that drives along +x, and one on an arm along +y."""
    dark = (0.03, 0.035, 0.035)
    parts = [
        cylinder(0.1, 5.6, Material.METAL, (0.24, 0.25, 0.25), 8, 0.08),
        tube((0.0, 0.0, 5.5), (0.0, reach_m, 5.7), 0.06, Material.METAL, (0.24, 0.25, 0.25)),
    ]
    for y, z in ((0.25, 2.6), (reach_m - 0.3, 4.95)):
        parts.append(box((0.2, 0.34, 1.0), Material.PLAIN, dark, 0, (-0.02, y, z)))
        for index, rgb in enumerate(((0.05, 0.5, 0.2), (0.5, 0.3, 0.02), (0.6, 0.02, 0.02))):
            glow = np.array(rgb) * (1.6 if index == lit else 0.12)
            parts.append(box((0.03, 0.2, 0.2), Material.LAMP, glow, 4 if index == lit else 0,
                             (-0.13, y, z + 0.08 + 0.31 * index)))  # fmt: skip
    return merge(parts)


def sign(kind: int, height_m: float) -> Mesh:
    """A traffic sign on a post that faces traffic driving along +x; kinds 0..4."""
    faces = ((0.55, 0.02, 0.02), (0.7, 0.7, 0.7), (0.65, 0.45, 0.02), (0.02, 0.12, 0.4),
             (0.03, 0.25, 0.1))  # fmt: skip
    post = cylinder(0.035, height_m, Material.METAL, (0.35, 0.36, 0.36), 6)
    if kind in (1, 4):
        wide, tall = ((0.6, 0.75), (1.5, 0.4))[kind == 4]
        plate = box((0.02, wide, tall), Material.SIGN, faces[kind], kind,
                    (-0.05, 0.0, height_m - tall))  # fmt: skip
        return merge([post, plate])
    sides = {0: 8, 2: 4, 3: 14}[kind]
    angle = np.linspace(0, 2 * np.pi, sides + 1) + (np.pi / 8 if kind == 0 else 0.0)
    rim = 0.38 * np.stack([0 * angle, np.cos(angle), np.sin(angle)], -1)
    fan = np.stack([0 * rim[1:], rim[1:], rim[:-1]], 1)
    plate = soup(fan, fan[..., 1:] + 0.38, Material.SIGN, faces[kind], kind)
    return merge([post, plate.placed(-0.06, 0.0, height_m - 0.35)])


def person(rng: np.random.Generator) -> Mesh:
    """Somebody walking along +x."""
    coat, legs = rng.uniform(0.02, 0.5, 3), rng.uniform(0.01, 0.2, 3)
    skin = np.array([0.45, 0.3, 0.22]) * rng.uniform(0.4, 1.2)
    stride = float(rng.uniform(0.1, 0.32))
    parts = [
        ellipsoid((0.17, 0.24, 0.36), Material.PLAIN, coat, (0.0, 0.0, 1.15), 4),
        ellipsoid((0.11, 0.1, 0.14), Material.PLAIN, skin, (0.03, 0.0, 1.62), 4),
    ]
    for side in (-1.0, 1.0):
        foot = (side * stride, side * 0.1, 0.03)
        parts.append(tube((0.0, side * 0.1, 0.9), foot, 0.085, Material.PLAIN, legs))
        hand = (-side * stride, side * 0.3, 0.82)
        parts.append(tube((0.0, side * 0.24, 1.38), hand, 0.055, Material.PLAIN, coat))
    return merge(parts).scaled(float(rng.uniform(0.88, 1.12)))


def clutter(kind: int) -> Mesh:
    """A small thing of the pavement: bin, hydrant, letter box, bollard, bench or cone (0..5)."""
    if kind == 0:
        return cylinder(0.28, 0.95, Material.METAL, (0.06, 0.12, 0.08), 10, 0.33, capped=True)
    if kind == 1:
        red = (0.45, 0.05, 0.03)
        cap = ellipsoid((0.14, 0.14, 0.12), Material.PLAIN, red, (0.0, 0.0, 0.6), 4)
        return merge([cylinder(0.13, 0.6, Material.PLAIN, red, 8), cap])
    if kind == 2:
        return box((0.5, 0.55, 1.2), Material.PAINT, (0.02, 0.07, 0.3))
    if kind == 3:
        return cylinder(0.08, 1.0, Material.METAL, (0.5, 0.4, 0.05), 8, capped=True)
    if kind == 4:
        seat = box((1.7, 0.45, 0.06), Material.WOOD, (0.25, 0.15, 0.08), 0, (0.0, 0.0, 0.44))
        back = box((1.7, 0.06, 0.42), Material.WOOD, (0.25, 0.15, 0.08), 0, (0.0, -0.2, 0.5))
        legs = [box((0.07, 0.4, 0.44), Material.METAL, TRIM, 0, (x, 0.0, 0.0)) for x in (-0.7, 0.7)]
        return merge([seat, back, *legs])
    foot = box((0.36, 0.36, 0.04), Material.PLAIN, TRIM)
    return merge([foot, cylinder(0.15, 0.7, Material.PLAIN, (0.7, 0.17, 0.02), 10, 0.03)])


def ego_car(paint: np.ndarray) -> Mesh:
    """The recording car in its own frame (rear axle at the origin): only its edges are seen.

    Cameras and LiDAR ride on a rack a hand's breadth above the roof.
    """
    shape = CarShape(
        4.95, 1.9, 1.3, 0.92, 0.34,
        ((0.0, 0.6), (0.02, 0.98), (0.12, 1.0), (0.22, 0.98), (0.7, 0.97), (0.92, 0.88),
         (1.0, 0.5)),
        (0.1, 0.27, 0.5, 0.72),
    )  # fmt: skip
    rear_overhang_m = 1.05
    return car(shape).painted(paint).placed(shape.length_m / 2 - rear_overhang_m, 0.0, 0.0)
