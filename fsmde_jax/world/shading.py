"""Painters: from where a ray hit to the colour it sees (numpy, one flat array a quantity).

Colours are linear, stored as (3, pixels). A painter gets the pixels of its material and returns
their reflectance, how mirror-like they are and how much they glow.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from fsmde_jax.world import textures
from fsmde_jax.world.meshes import Material
from fsmde_jax.world.street import Light, Street


@dataclasses.dataclass(frozen=True)
class Surface:
    """Pixels of one material.

    Args:
        uv_m: surface coordinates; street coordinates on the ground.
        rgb: base reflectance.
        pixel_m: size of the pixel on the surface.
        style: style number of the triangle.
    """

    uv_m: Float[np.ndarray, "2 p"]
    rgb: Float[np.ndarray, "3 p"]
    pixel_m: Float[np.ndarray, "p"]
    style: Int[np.ndarray, "p"]


@dataclasses.dataclass(frozen=True)
class Look:
    """What a painter says of its pixels."""

    rgb: Float[np.ndarray, "3 p"]
    mirror: Float[np.ndarray, "p"] | float = 0.0
    glow: Float[np.ndarray, "p"] | float = 0.0


def sky(light: Light, towards: Float[np.ndarray, "3 p"]) -> Float[np.ndarray, "3 p"]:
    """Colour of the sky in unit directions: gradient, clouds, glow round the sun."""
    up = np.maximum(towards[2], 0.0)
    blend = np.exp(-3.2 * up)
    colour = light.zenith_rgb[:, None] * (1 - blend) + light.horizon_rgb[:, None] * blend
    reach = 60.0 / (up + 0.12)
    cloud = textures.soft(towards[0] * reach + light.cloud_seed, towards[1] * reach + 7.0)
    cover = np.clip((cloud - 0.85 + 0.6 * light.clouds) * 3.0, 0.0, 1.0) * np.minimum(8 * up, 0.85)
    bright = 0.55 * light.horizon_rgb + 0.22 * light.sun_rgb
    colour += cover * (bright[:, None] * (0.75 + 0.5 * cloud) - colour)
    facing = np.maximum(np.einsum("c,cp->p", light.sun, towards), 0.0)
    glow = 0.12 * facing**12 + 0.9 * facing**600
    return colour + light.sun_rgb[:, None] * glow * (1 - 0.6 * cover)


def paint_ground(street: Street, surface: Surface) -> Look:
    """Asphalt with markings, kerb stones, pavements and the land of the blocks."""
    plan = street.terrain.plan
    s, t = surface.uv_m
    beyond_main = np.abs(t) - plan.road_half_m
    gap = np.abs(s[None] - np.array(plan.crossings_s_m, np.float32)[:, None])
    nearest = gap.argmin(0)
    beyond_side = gap[nearest, np.arange(len(s))] - plan.side_half_m
    kerb = np.minimum(beyond_main, beyond_side)
    road = kerb < 0.0
    rgb = np.empty_like(surface.rgb)
    on, off = np.flatnonzero(road), np.flatnonzero(~road)
    centre = np.array(plan.crossings_s_m, np.float32)[nearest[on]]
    rgb[:, on] = _asphalt(
        street, s[on], t[on], s[on] - centre, beyond_side[on], surface.pixel_m[on]
    )
    rgb[:, off] = _land(street, s[off], t[off], kerb[off], surface.pixel_m[off])
    return Look(rgb)


def _asphalt(
    street: Street, s: np.ndarray, t: np.ndarray, from_centre: np.ndarray, beyond: np.ndarray,
    pixel: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Grain, patches, tyre tracks and cracks under the paint."""
    grain = (textures.white(s * 40, t * 40) - 0.5) * textures.fade(pixel, 0.04)
    stains = textures.smooth(s * 14 + 91, t * 14) - 0.5
    wide = textures.soft(s * 1.5, t * 1.5 + 37) - 0.5
    tone = 1.0 + 0.7 * grain + 0.5 * stains + 0.6 * wide
    track = np.abs(np.mod(np.abs(t) / street.terrain.plan.lane_m, 1.0) - 0.5)
    tone -= 0.12 * textures.line(track - 0.24, 0.09, pixel * 0.3 + 0.05)
    crack = np.abs(textures.soft(s * 6, t * 6 + 211) - 0.5)
    tone *= 1.0 - np.float32(0.45) * (crack < 0.006) * textures.fade(pixel, 0.08)
    patch = textures.white(s / 7.3 + 3, t / 2.6) < 0.08
    tone *= textures.pick(patch, 0.72, 1.0)
    rgb = street.tint[0][:, None] * np.maximum(tone, 0.2)
    return _markings(street, s, t, from_centre, beyond, pixel, rgb)


def _markings(
    street: Street, s: np.ndarray, t: np.ndarray, from_centre: np.ndarray, beyond: np.ndarray,
    pixel: np.ndarray, rgb: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Lane lines, centre line, stop lines and zebra crossings, worn by traffic."""
    plan = street.terrain.plan
    side_half, half = plan.side_half_m, plan.road_half_m
    on_main, on_side = beyond > 5.6, np.abs(t) - half > 5.6
    yellow = np.zeros_like(s)
    two_way = bool(plan.lanes > 1 or plan.parking)
    if two_way:
        yellow = textures.line(np.abs(t) - 0.14, 0.06, pixel) * on_main
    white = textures.line(t, 0.07, pixel) * (np.mod(s, 9.0) < 4.0) * on_main * (not two_way)
    for lane in range(1, plan.lanes):
        dash = textures.line(np.abs(t) - lane * plan.lane_m, 0.07, pixel)
        white = np.maximum(white, dash * (np.mod(s, 9.0) < 3.2) * on_main)
    edge = plan.lanes * plan.lane_m + 0.06
    white = np.maximum(white, textures.line(np.abs(t) - edge, 0.06, pixel) * (beyond > 1.0))
    stop = textures.line(beyond - 5.0, 0.2, pixel) * (t * from_centre > 0) * (np.abs(t) < half)
    white = np.maximum(white, stop)
    zebra = inside_band(beyond, 1.0, 3.8) & (np.mod(t, 1.1) < 0.55) & (np.abs(t) < half - 0.2)
    over_side = np.abs(t) - half
    zebra |= inside_band(over_side, 1.0, 3.8) & (np.mod(s, 1.1) < 0.55) & (
        np.abs(from_centre) < side_half - 0.2
    )  # fmt: skip
    white = np.maximum(white, zebra)
    middle = textures.line(from_centre, 0.08, pixel) * (np.mod(t, 7.0) < 3.0) * on_side
    white = np.maximum(white, middle)
    wear = 0.55 + 0.45 * np.clip(2.2 * textures.smooth(s * 9, t * 9 + 53) - 0.45, 0.0, 1.0)
    rgb += (white * wear) * (0.62 - rgb)
    return rgb + (yellow * wear) * (np.array([[0.55], [0.36], [0.05]], np.float32) - rgb)


def inside_band(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Whether low < value < high."""
    return (value > low) & (value < high)


def _land(
    street: Street, s: np.ndarray, t: np.ndarray, kerb: np.ndarray, pixel: np.ndarray
) -> np.ndarray:
    """Kerb stones, slabs of the pavement, and lawns, gravel or paving behind."""
    tint, pavement_m = street.tint, street.terrain.plan.pavement_m
    walk = kerb < pavement_m
    lot = textures.white(s / 21.0 + 5, np.sign(t) * 9.0 + t / 33.0)
    kind = np.where(lot < 0.55, 2, np.where(lot < 0.7, 3, np.where(lot < 0.85, 4, 0)))
    kind[walk] = 1
    rough = textures.pick(walk, 0.35, textures.pick(kind == 2, 1.1, 0.6))
    grain = (textures.white(s * 30, t * 30) - 0.5) * textures.fade(pixel, 0.06)
    coarse = (textures.white(s * 7, t * 7) - 0.5) * textures.fade(pixel, 0.25)
    stains = textures.soft(s * 4, t * 4 + 131) - 0.5
    tone = 1.0 + rough * (0.5 * grain + 0.5 * coarse) + 0.7 * stains
    slab = np.minimum(np.mod(s, 1.2), np.mod(t, 1.2))
    joints = textures.line(slab - 0.02, 0.02, pixel) * (walk | (kind == 4))
    shade = 0.14 * (textures.white(s / 1.2, t / 1.2) - 0.5) * (walk | (kind == 4))
    tone = (tone + shade) * (1.0 - 0.45 * joints)
    stone = kerb < 0.22
    tone = textures.pick(stone, 1.15, tone)
    return np.ascontiguousarray(tint.T).take(kind, axis=1) * np.maximum(tone, 0.15)


def paint_facade(street: Street, surface: Surface) -> Look:
    """A wall of bricks or render with a grid of windows and, at its foot, shop fronts."""
    u, v = surface.uv_m
    pixel = surface.pixel_m
    (floor_m, bay_m, wide, tall, sill, shop_m, brick, bands, seed, *accent, height_m) = (
        np.ascontiguousarray(street.facades.T).take(surface.style, axis=1)
    )
    accent = np.stack(accent)
    rgb = surface.rgb * _masonry(u, v, pixel, brick, seed)
    shop = v < shop_m
    up = np.where(shop, v, v - shop_m)
    floor = np.where(shop, -1.0, np.floor(up / floor_m))
    bay = np.floor(u / bay_m)
    x, y = u / bay_m - bay, up / floor_m - floor
    dice = textures.white(bay * 3 + seed, floor * 5 + seed * 0.37)
    margin = np.minimum(
        (0.5 * wide - np.abs(x - 0.5)) * bay_m,
        np.minimum(y - sill, sill + tall - y) * floor_m,
    )
    blank = (dice > 0.93) | (height_m - v < 0.45) | (v < 0.3)
    margin = np.where(blank | shop, -1.0, margin)
    window = textures.inside(margin, pixel)
    frame = window * (1.0 - textures.inside(margin - 0.07, pixel))
    bar = textures.line((x - 0.5) * bay_m, 0.03, pixel) * (bay_m < 2.6)
    frame = np.maximum(frame, window * bar)
    ledge = textures.inside(0.05 - np.abs(y - sill + 0.02) * floor_m, pixel)
    ledge = ledge * (np.abs(x - 0.5) < 0.5 * wide + 0.04) * ~(blank | shop)
    band = bands * textures.line(y * floor_m - 0.1, 0.09, pixel) * ~shop
    rgb *= 1.0 - np.float32(0.28) * band
    rgb += ledge * (0.5 - rgb) * 0.7
    glass, lit = _pane(dice, y - sill, tall, rgb)
    rgb += window * (glass - rgb)
    rgb += frame * (accent * 0.5 + 0.3 - rgb)
    mirror = 0.5 * (window - frame)
    glow = (window - frame) * lit * street.light.lit
    return _shop_fronts(street, surface, shop, shop_m, seed, accent, Look(rgb, mirror, glow))


def _masonry(
    u: np.ndarray, v: np.ndarray, pixel: np.ndarray, brick: np.ndarray, seed: np.ndarray
) -> np.ndarray:
    """Tone of a bare wall: bricks or rough render, stains that run down, a dark foot."""
    row = np.floor(v / 0.085)
    along = u / 0.25 + 0.5 * np.mod(row, 2)
    joint = (np.mod(v, 0.085) < 0.013) | (along - np.floor(along) < 0.06)
    near = textures.fade(pixel, 0.06)
    bricks = near * (0.35 * (textures.white(along, row) - 0.5) - np.float32(0.25) * joint)
    courses = 0.16 * (textures.white(u / 0.9 + seed, v / 0.45) - 0.5) * textures.fade(pixel, 0.5)
    render = 0.22 * (textures.white(u * 28, v * 28) - 0.5) * textures.fade(pixel, 0.06)
    stains = 0.5 * (textures.soft(u * 5 + seed, v * 1.4) - 0.5)
    foot = 0.25 * np.exp(-np.maximum(v, 0.0) / 0.5)
    return np.maximum(1.0 + brick * (bricks + courses) + render + stains - foot, 0.1)


def _pane(
    dice: np.ndarray, above_sill: np.ndarray, tall: np.ndarray, wall: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colour behind window panes (dark rooms, blinds, curtains) and how lit the rooms are."""
    blind = (dice < 0.4) & (above_sill > tall * (0.25 + 1.6 * dice))
    curtain = (dice > 0.75) & (dice < 0.86)
    room = 0.02 + 0.06 * np.mod(dice * 17.0, 1.0)
    tone = textures.pick(blind, 0.42, textures.pick(curtain, 0.25, room))
    lit = textures.pick(np.mod(dice * 31.0, 1.0) < 0.35, 1.6, 0.0)
    return np.stack([tone * 1.0, tone * 0.98, tone * 0.94]) + 0.03 * wall, lit


def _shop_fronts(
    street: Street, surface: Surface, shop: np.ndarray, shop_m: np.ndarray, seed: np.ndarray,
    accent: np.ndarray, look: Look,
) -> Look:  # fmt: skip
    """Large panes, doors and a sign with something like letters over them."""
    index = np.flatnonzero(shop)
    if not len(index):
        return look
    u, v = surface.uv_m[:, index]
    pixel, high, seed, accent = surface.pixel_m[index], shop_m[index], seed[index], accent[:, index]
    unit = np.floor(u / 3.4)
    dice = textures.white(unit + seed, unit * 0.0 + seed)
    x = u - unit * 3.4
    low = textures.pick((dice < 0.35) & (x > 2.2), 0.08, 0.55)
    margin = np.minimum(np.minimum(x - 0.12, 3.28 - x), np.minimum(v - low, high - 1.0 - v))
    margin = np.minimum(margin, np.abs(x - 2.2) - 0.04)
    window = textures.inside(margin, pixel)
    goods = 0.05 + 0.4 * textures.white(u * 2.2, v * 1.6 + seed) * (v < 1.7)
    board = (v > high - 0.85) & (v < high - 0.1)
    letter = board & (np.abs(v - high + 0.48) < 0.2) & (np.mod(u + 3 * dice, 9.0) < 4.0)
    letter &= textures.white(u / 0.13 + seed, v / 0.13) < 0.55
    hue = np.mod(accent + dice * np.array([[0.9], [0.4], [0.7]], np.float32), 0.6) + 0.02
    rgb = look.rgb[:, index] * 0.75
    rgb = np.where(board, hue, rgb)
    rgb = np.where(letter, 0.75, rgb)
    rgb += window * (goods * (0.6 + 0.8 * hue) - rgb)
    look.rgb[:, index] = rgb
    mirror = np.array(look.mirror)
    mirror[index] = 0.65 * window
    glow = np.array(look.glow)
    glow[index] = window * 1.2 * street.light.lit
    return Look(look.rgb, mirror, glow)


def _paint_car(street: Street, surface: Surface) -> Look:
    dirt = 0.9 + 0.2 * textures.smooth(surface.uv_m[0] * 20, surface.uv_m[1] * 20)
    return Look(surface.rgb * dirt, np.full(len(dirt), 0.42, np.float32))


def _paint_glass(street: Street, surface: Surface) -> Look:
    return Look(surface.rgb, np.full(surface.rgb.shape[1], 0.8, np.float32))


def _paint_foliage(street: Street, surface: Surface) -> Look:
    """Leaves at the size the style says (2 cm a style unit)."""
    u, v = surface.uv_m / np.maximum(np.float32(0.02) * surface.style, np.float32(0.02))
    leaf = textures.white(u, v) - 0.5
    clump = textures.smooth(u * 0.7 + 17, v * 0.7) - 0.5
    tone = 1.0 + 0.9 * leaf * textures.fade(surface.pixel_m, 0.15) + 1.3 * clump
    return Look(surface.rgb * np.maximum(tone, 0.2))


def _paint_plain(street: Street, surface: Surface) -> Look:
    u, v = surface.uv_m
    fine = (textures.white(u * 25, v * 25) - 0.5) * textures.fade(surface.pixel_m, 0.06)
    stain = textures.smooth(u * 5, v * 5 + 71) - 0.5
    return Look(surface.rgb * (1.0 + 0.25 * fine + 0.5 * stain))


def _paint_wood(street: Street, surface: Surface) -> Look:
    u, v = surface.uv_m
    grain = (textures.white(u * 40, v * 4) - 0.5) * textures.fade(surface.pixel_m, 0.04)
    return Look(surface.rgb * (1.0 + 0.7 * grain + 0.5 * (textures.smooth(u * 9, v * 3) - 0.5)))


def _paint_metal(street: Street, surface: Surface) -> Look:
    look = _paint_plain(street, surface)
    return Look(look.rgb, np.full(look.rgb.shape[1], 0.1, np.float32))


def _paint_roof(street: Street, surface: Surface) -> Look:
    """Rows of tiles."""
    u, v = surface.uv_m
    row = np.floor(v / 0.3)
    tile = textures.white(u / 0.22 + 0.5 * np.mod(row, 2), row) - 0.5
    near = textures.fade(surface.pixel_m, 0.25)
    step = (np.mod(v, 0.3) < 0.05) * near
    stain = textures.smooth(u * 2, v * 2) - 0.5
    return Look(surface.rgb * (1.0 + 0.45 * tile * near - 0.35 * step + 0.5 * stain))


def _paint_sign(street: Street, surface: Surface) -> Look:
    """Plates with writing (styles 1, 4, 5, 7), a bar (0, 2, 3) or stripes (6, awnings)."""
    u, v = surface.uv_m
    style = surface.style
    ink = textures.white(u / 0.06, v / 0.09) < 0.45
    written = np.isin(style, (1, 4, 5, 7)) & ink & (np.mod(v, 0.24) < 0.15)
    bar = np.isin(style, (0, 2, 3)) & (np.abs(v - 0.38) < 0.09) & (np.abs(u - 0.38) < 0.24)
    stripe = (style == 6) & (np.mod(u, 0.7) < 0.35)
    dark = surface.rgb.mean(0) > 0.5
    other = textures.pick(dark, 0.04, 0.75)
    return Look(np.where(written | bar | stripe, other, surface.rgb), glow=0.06)


def _paint_lamp(street: Street, surface: Surface) -> Look:
    """Styles: 0 dark, 1 tail light, 2 head light, 3 street lamp, 4 lit signal."""
    lit = street.light.lit
    glow = np.array([0.0, 0.2 + lit, 3.0 * lit, 6.0 * lit, 1.6], np.float32)[surface.style]
    return Look(surface.rgb, np.full(len(glow), 0.25, np.float32), glow)


PAINTERS: dict[Material, Callable[[Street, Surface], Look]] = {
    Material.GROUND: paint_ground,
    Material.CONCRETE: _paint_plain,
    Material.FACADE: paint_facade,
    Material.PAINT: _paint_car,
    Material.GLASS: _paint_glass,
    Material.FOLIAGE: _paint_foliage,
    Material.WOOD: _paint_wood,
    Material.PLAIN: _paint_plain,
    Material.METAL: _paint_metal,
    Material.ROOF: _paint_roof,
    Material.SIGN: _paint_sign,
    Material.LAMP: _paint_lamp,
}
