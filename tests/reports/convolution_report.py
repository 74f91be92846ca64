"""How long convolutions and their gradients take on this CPU, in jax and in torch.

    python tests/reports/convolution_report.py > fsmde_jax/reports/convolutions.md

The convolutions of the ResNet-18 student at 384x640 (six images) and of the demo's at 96x160
(twelve), float32, in turns; needs `pip install -e ".[torch]"`.
"""

import functools
import sys
from collections.abc import Callable

import jax
import numpy as np
import torch

from fsmde_jax import cli
from fsmde_jax.benchmark import report, timing
from fsmde_jax.models.layers import convolution, winograd

REPEATS = 11
# Images, height, width, channels in and out, kernel, stride; the last decoder block comes last.
SHAPES = (
    (12, 96, 160, 3, 16, 7, 2),
    (12, 24, 40, 16, 16, 3, 1),
    (12, 24, 40, 64, 32, 3, 1),
    (12, 12, 20, 96, 48, 3, 1),
    (6, 384, 640, 3, 64, 7, 2),
    (6, 96, 160, 64, 64, 3, 1),
    (6, 96, 160, 64, 128, 3, 2),
    (6, 48, 80, 128, 128, 3, 1),
    (6, 24, 40, 256, 256, 3, 1),
    (6, 12, 20, 512, 512, 3, 1),
    (6, 96, 160, 192, 64, 3, 1),
    (6, 192, 320, 128, 64, 3, 1),
)


def runs(b: int, h: int, w: int, c: int, d: int, k: int, stride: int) -> dict[str, Callable]:
    """What is timed of one shape: the convolution, its gradient by the maps, by the kernel."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((b, h, w, c), (k, k, c, d)))
    out_grad = rng.normal(size=(b, -(-h // stride), -(-w // stride), d)).astype(np.float32)
    return _in_jax(x, kernel, out_grad, stride) | _in_torch(x, kernel, out_grad, stride)


def _in_jax(x, kernel, out_grad, stride: int) -> dict[str, Callable]:
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    xlas = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(stride, stride), padding=padding, **options
    )

    def ours(x, kernel):
        return convolution.convolve(x, kernel, (stride, stride), padding, **options)

    def by_kernel(convolve):
        return lambda x, k, g: jax.vjp(functools.partial(convolve, x), k)[1](g)

    functions = {
        "forward": lambda x, k, g: xlas(x, k),
        "by maps": lambda x, k, g: jax.vjp(lambda x: xlas(x, k), x)[1](g),
        "by kernel": by_kernel(xlas),
    }
    by_ones = winograd.applies(kernel.shape, (stride, stride), padding)
    if by_ones and winograd.pays(x.shape, kernel.shape):
        functions["by kernel, ours"] = by_kernel(ours)
    arrays = jax.device_put((x, kernel, out_grad))
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    return {
        name: lambda function=function: jax.block_until_ready(function(*arrays))
        for name, function in compiled.items()
    }


def _in_torch(x, kernel, out_grad, stride: int) -> dict[str, Callable]:
    def maps(array):
        tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
        return tensor.to(memory_format=torch.channels_last)

    weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    pad, one = [kernel.shape[0] // 2] * 2, [1, 1]
    images, grads = maps(x), maps(out_grad)
    backward = functools.partial(
        torch.ops.aten.convolution_backward,
        *(grads, images, weight, None, [stride] * 2, pad, one, False, [0, 0], 1),
    )
    return {
        "torch forward": lambda: torch.nn.functional.conv2d(images, weight, None, stride, pad),
        "torch by maps": lambda: backward([True, False, False]),
        "torch by kernel": lambda: backward([False, True, False]),
    }


def main() -> None:
    """Prints the table."""
    cli.set_up()
    rows = []
    for shape in SHAPES:
        times = timing.in_turns(runs(*shape), REPEATS)
        ms = {name: 1e3 * one.median_s for name, one in times.items()}
        b, h, w, c, d, k, stride = shape
        rows.append(
            {"convolution": f"{b}x{h}x{w}, {c} to {d}, {k}x{k}" + (" by 2" if stride > 1 else "")}
            | {name: ms.get(name) for name in ("forward", "torch forward")}
            | {name: ms.get(name) for name in ("by maps", "torch by maps")}
            | {n: ms.get(n) for n in ("by kernel", "by kernel, ours", "torch by kernel")}
        )
    print(f"# Convolutions on a CPU\n\n`python {sys.argv[0]}`\n\n{timing.machine()}")
    print(f"torch {torch.__version__}. Milliseconds, medians of {REPEATS} turns: the convolution,")
    print("the gradient by its maps, and that by its kernel as XLA and as `winograd.py` has it.\n")
    print(report.table(rows))


if __name__ == "__main__":
    main()
