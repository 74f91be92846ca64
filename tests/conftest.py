"""Test session: eight virtual CPU devices, checked shapes, a shared compilation cache."""

import os
import pathlib

# Tests compile much and run little: optimising would take longer than it saves.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook


def pytest_configure(config: pytest.Config) -> None:
    """`-m gpu` runs on the accelerator there is, with ordinary compilation."""
    if config.option.markexpr == "gpu":
        os.environ["XLA_FLAGS"] = ""
        jax.config.update("jax_platforms", None)


# Shapes and dtypes in the annotations are checked at run time in tests.
install_import_hook(["fsmde_jax", "tfds_builders"], "beartype.beartype")

jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/fsmde_jax/xla-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Grain's workers read absl flags, which pytest does not parse.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """Real samples and weights; users do not have them, so their tests skip."""
    default = pathlib.Path(__file__).parents[2] / "shared"
    path = pathlib.Path(os.environ.get("FSMDE_SHARED", default))
    if not (path / "real").is_dir():
        pytest.skip("the folder of real samples is absent")
    return path
