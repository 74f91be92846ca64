"""The colours of depth, the same in every picture: logarithmic, near is red, far is blue."""

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

COLOUR_MAP = "turbo_r"
MIN_DEPTH_M = 1.0


def depth_colours(
    depth_m: Float[np.ndarray, "*s"], max_depth_m: float
) -> Float[np.ndarray, "*s 3"]:
    """RGB in 0..1, logarithmic from `MIN_DEPTH_M` to `max_depth_m`."""
    place = np.log(np.maximum(depth_m, 1e-6) / MIN_DEPTH_M) / np.log(max_depth_m / MIN_DEPTH_M)
    return matplotlib.colormaps[COLOUR_MAP](np.clip(place, 0, 1))[..., :3]


def draw_colour_bar(figure: Figure, max_depth_m: float) -> None:
    """Adds the legend of `depth_colours`, with marks in metres, at the right of a figure."""
    norm = matplotlib.colors.LogNorm(MIN_DEPTH_M, max_depth_m)
    mappable = matplotlib.cm.ScalarMappable(norm, COLOUR_MAP)
    inch = 1 / figure.get_figwidth()
    axis = figure.add_axes((1 - 0.95 * inch, 0.1, 0.2 * inch, 0.75))
    bar = figure.colorbar(mappable, cax=axis)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200) if t <= max_depth_m]
    bar.set_ticks(ticks, labels=[f"{t} m" for t in ticks])
