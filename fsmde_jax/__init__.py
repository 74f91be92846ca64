"""Full-surround metric depth: distil a depth foundation model into a light JAX student.

    student = fsmde_jax.load("runs/demo")
    estimate = student(images, intrinsics)

See `fsmde_jax/api.py`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsmde_jax.api import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, imported when it is asked for: it needs JAX, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'fsmde_jax' has no attribute {name!r}")
    from fsmde_jax import api

    return getattr(api, name)
