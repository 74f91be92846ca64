"""What XLA is told when it compiles a student."""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

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
_LOCK = threading.RLock()


def step_options(steps: int) -> dict[str, bool | str]:
    """Of the `Program` that is the training step of a run of so many steps.

    On CPUs whose XLA has oneDNN it convolves in a long run, while products and sums stay with
    YNNPACK; all else is XLA's choice. Figures are in fsmde_jax/reports/training_speed.md.
    """
    return {} if steps < _MIN_STEPS else _where_onednn_is(_TRAINING)


def inference_options() -> dict[str, bool | str]:
    """The same for inference, where nothing is left to YNNPACK; compiling takes no longer."""
    return _where_onednn_is(_INFERENCE)


class Program:
    """A jitted function; where oneDNN convolves in it, it is not written into jax's cache.

    XLA of jax 0.12 fails to serialise such a program, at times by a segmentation fault.

    Args:
      function: as for `jax.jit`.
      options: `step_options` or `inference_options`.
      arguments: what `jax.jit` takes besides.
    """

    def __init__(self, function: Callable, options: dict[str, bool | str], **arguments: Any):
        self.jitted = jax.jit(function, compiler_options=options, **arguments)
        self._scope = _nothing_written if options else contextlib.nullcontext

    def __call__(self, *args: Any) -> Any:
        """The function's result; compiles at the first call and for other shapes."""
        with self._scope():
            return self.jitted(*args)

    def compile(self, *args: Any) -> tuple[jax.stages.Lowered, jax.stages.Compiled]:
        """The program for arguments (or their shapes), before and after it is compiled."""
        with self._scope():
            lowered = self.jitted.lower(*args)
            return lowered, lowered.compile()


@contextlib.contextmanager
def _nothing_written() -> Iterator[None]:
    """Within it no program is written into jax's cache."""
    key = "jax_persistent_cache_min_compile_time_secs"
    with _LOCK:  # another thread must not take what is set here for what was before
        seconds = getattr(jax.config, key)
        jax.config.update(key, math.inf)
        try:
            yield
        finally:
            jax.config.update(key, seconds)


def _where_onednn_is(options: dict[str, bool | str]) -> dict[str, bool | str]:
    return options if _has_onednn() else {}


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
        _, compiled = Program(convolve, _INFERENCE).compile(image, kernel)
    except jax.errors.JaxRuntimeError:  # an option that this XLA does not know
        return False
    return "__onednn$convolution" in compiled.as_text()
