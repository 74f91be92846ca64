"""What XLA is told when it compiles a student."""

import functools
import math

import jax
import jax.numpy as jnp

# Convolutions by oneDNN, if YNNPACK leaves them: it takes them by default.
_ONEDNN = {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_custom_call": True}
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_TRAINING = _ONEDNN | {_YNNPACK: "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
_INFERENCE = _ONEDNN | {_YNNPACK: ""}
# jax 0.12 cannot keep such a program in its cache, so every start compiles it (the demo's step:
# 8 s, 3 s from the cache). 500 steps gain 6 s there; shorter runs would lose.
_MIN_STEPS = 500


def step_options(steps: int) -> dict[str, bool | str]:
    """`compiler_options` of `jax.jit` for the training step of a run of so many steps.

    On CPUs whose XLA has oneDNN it convolves in a long run, while products and sums stay with
    YNNPACK; all else is XLA's choice. Figures are in fsmde_jax/reports/training_speed.md.
    """
    return {} if steps < _MIN_STEPS else _where_onednn_is(_TRAINING)


def inference_options() -> dict[str, bool | str]:
    """The same for inference, where nothing is left to YNNPACK; compiling takes no longer."""
    return _where_onednn_is(_INFERENCE)


def _where_onednn_is(options: dict[str, bool | str]) -> dict[str, bool | str]:
    if not _has_onednn():
        return {}
    # XLA of jax 0.12 fails to serialise such a program, at times by a segmentation fault: this
    # process writes nothing more into the cache.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    return options


@functools.cache
def _has_onednn() -> bool:
    """Asks XLA, whatever its version: jax 0.12 has it, 0.10 knows the options without effect."""
    if jax.default_backend() != "cpu":
        return False
    image, kernel = jnp.zeros((1, 16, 16, 16)), jnp.zeros((3, 3, 16, 16))
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    try:
        compiled = jax.jit(convolve, compiler_options=_INFERENCE).lower(image, kernel).compile()
    except jax.errors.JaxRuntimeError:  # an option that this XLA does not know
        return False
    return "__onednn$convolution" in compiled.as_text()
