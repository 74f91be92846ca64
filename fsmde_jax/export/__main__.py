"""A trained student as a folder that stands alone:
`python -m fsmde_jax.export --checkpoint=runs/demo --format=onnx --out=exported`.

hub: safetensors, config.json and a model card, for `fsmde_jax.load` and the Hugging Face hub
(`hf upload OWNER/NAME exported`). orbax: the parameters, for JAX, without optimizer, teacher and
data. stablehlo: the compiled function, for any JAX without this package, on cpu, cuda and tpu.
onnx: standard operators, for onnxruntime, TensorRT and the like (`pip install -e ".[export]"`). The
latter two take any number of samples, from uint8 images and intrinsics to depth in metres and
confidence: what has to be done before and after is inside.

Every folder has a README.md (inputs, outputs, how to load it). All but the hub's also have
student.json (the same for programs) and self_test.npz (an input and its output).
"""

import pathlib

from absl import app, flags

from fsmde_jax import cli
from fsmde_jax.export import formats


def main(_) -> None:
    """Exports as the flags say."""
    cli.set_up()
    out = pathlib.Path(OUT.value)
    with cli.errors_as_lines():
        formats.export(pathlib.Path(CHECKPOINT.value), FORMAT.value, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {FORMAT.value}, {size / 1e6:.1f} MB; see {out / 'README.md'}")


if __name__ == "__main__":
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The run's folder.")
    FORMAT = flags.DEFINE_string("format", None, ", ".join(formats.FORMATS))
    OUT = flags.DEFINE_string("out", None, "Folder to write; must be empty or absent.")
    flags.mark_flags_as_required(["checkpoint", "format", "out"])
    app.run(main)
