"""Products in full float32, on every device.

Unless it is told otherwise JAX multiplies float32 in TF32 on GPUs since Ampere (10 bits of
mantissa) and in bfloat16 on TPUs (7 bits). Networks bear that; metres, confidence, similarities and
the geometry between cameras do not.
"""

import functools
from collections.abc import Callable

import jax


def full_precision(function: Callable) -> Callable:
    """The function with all products of float32 in it, and in its gradient, in float32."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped
