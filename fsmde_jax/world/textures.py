"""Noise tables that every procedural texture looks up (made once, the same for all worlds)."""

import numpy as np
from jaxtyping import Bool, Float, Num

_SIZE = 512
_MASK = _SIZE - 1


def _smooth_noise() -> np.ndarray:
    """Tileable noise with detail at every scale, in [0, 1], mean one half."""
    rng = np.random.default_rng(20)
    spectrum = np.fft.rfft2(rng.normal(size=(_SIZE, _SIZE)))
    frequency = np.hypot(
        np.fft.fftfreq(_SIZE)[:, None] * _SIZE, np.fft.rfftfreq(_SIZE)[None] * _SIZE
    )
    noise = np.fft.irfft2(spectrum / np.maximum(frequency, 1.0) ** 1.45)
    return np.clip(0.5 + 0.22 * noise / noise.std(), 0.0, 1.0).astype(np.float32)


_WHITE = np.random.default_rng(10).random((_SIZE, _SIZE), np.float32).ravel()
_SMOOTH = _smooth_noise().ravel()
_Coordinate = Num[np.ndarray, "p"]


def _cell(u: _Coordinate, v: _Coordinate) -> np.ndarray:
    """Index into a table of the cell that holds (u, v)."""
    i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    return ((i & _MASK) << 9) | (j & _MASK)


def white(u: _Coordinate, v: _Coordinate) -> Float[np.ndarray, "p"]:
    """Independent values in [0, 1), one a unit cell."""
    return _WHITE[_cell(u, v)]


def smooth(u: _Coordinate, v: _Coordinate) -> Float[np.ndarray, "p"]:
    """Cloudy values in [0, 1]; a unit cell is the finest detail."""
    return _SMOOTH[_cell(u, v)]


def soft(u: _Coordinate, v: _Coordinate) -> Float[np.ndarray, "p"]:
    """`smooth`, interpolated between cells (for clouds, whose cells are larger than pixels)."""
    fu, fv = u - np.floor(u), v - np.floor(v)
    low = _SMOOTH[_cell(u, v)] * (1 - fu) + _SMOOTH[_cell(u + 1, v)] * fu
    high = _SMOOTH[_cell(u, v + 1)] * (1 - fu) + _SMOOTH[_cell(u + 1, v + 1)] * fu
    return low * (1 - fv) + high * fv


def line(
    distance_m: Float[np.ndarray, "p"], half_m: float, pixel_m: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "p"]:
    """How much of a pixel a line of that half width covers, `distance_m` from its middle."""
    return np.clip((half_m - np.abs(distance_m)) / pixel_m + 0.5, 0.0, 1.0) * np.minimum(
        1.0, 2 * half_m / pixel_m
    )


def inside(margin_m: Float[np.ndarray, "p"], pixel_m: Float[np.ndarray, "p"]) -> np.ndarray:
    """How much of a pixel lies within an edge that is `margin_m` away (negative: outside)."""
    return np.clip(margin_m / pixel_m + 0.5, 0.0, 1.0)


def pick(
    mask: Bool[np.ndarray, "p"], yes: float | np.ndarray, no: float | np.ndarray
) -> Float[np.ndarray, "p"]:
    """`np.where` in single precision."""
    return np.where(mask, np.float32(yes), np.float32(no))


def fade(pixel_m: Float[np.ndarray, "p"], detail_m: float) -> Float[np.ndarray, "p"]:
    """1 where detail of that size is seen, 0 where a pixel is larger than it."""
    return np.clip(1.6 - pixel_m / detail_m, 0.0, 1.0)
