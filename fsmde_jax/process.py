"""How every command sets up its process."""

import logging
import os

import jax
from absl import logging as absl_logging


def set_up() -> None:
    """Says what this package does at INFO, and keeps compiled functions over runs.

    JAX_COMPILATION_CACHE_DIR is honoured.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells much at INFO
    logging.getLogger("fsmde_jax").setLevel(logging.INFO)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/fsmde_jax/xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
