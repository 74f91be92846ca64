"""Confidence intervals of figures: a bootstrap over scenes."""

import functools

import numpy as np
import scipy.stats
from jaxtyping import Float

REPLICATES = 2000
MIN_SCENES = 2  # fewer have no interval


@functools.cache
def resample(num_scenes: int) -> Float[np.ndarray, "b s"]:
    """How often each bootstrap replicate draws each scene; the draws are always the same."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(num_scenes, np.full(num_scenes, 1 / num_scenes), REPLICATES)
    return drawn.astype(np.float64)


def expanded_interval(
    replicates: Float[np.ndarray, "b *m"], num_scenes: int
) -> Float[np.ndarray, "2 *m"]:
    """The 95 % interval from bootstrap replicates over scenes, by expanded percentiles.

    Plain percentiles are too narrow for few scenes: with 5 scenes the interval holds the true
    value 83 % of the time, with 15 scenes 91 %. Therefore the percentiles are widened to
    Student's t and by sqrt(s / (s - 1)) (Hesterberg, "What Teachers Should Know About the
    Bootstrap", arXiv 1411.5279, section 5.2).
    """
    t = scipy.stats.t.ppf(0.025, num_scenes - 1)
    tail = scipy.stats.norm.cdf(np.sqrt(num_scenes / (num_scenes - 1)) * t)
    return np.quantile(replicates, [tail, 1 - tail], axis=0)
