"""Writes a trained student as a folder that stands alone.

    python -m fsmde_jax.export --checkpoint=runs/demo --format=onnx --out=exported

    hub        safetensors, config.json and a model card, for fsmde_jax.load and the
               Hugging Face hub (hf upload OWNER/NAME exported)
    orbax      the parameters, for JAX, without optimizer, teacher and data
    stablehlo  the compiled function, for any JAX without this package; cpu, cuda, tpu
    onnx       standard operators, for onnxruntime, TensorRT and the like

The latter two take any number of samples, from uint8 images and intrinsics to depth in
metres and confidence. They need `pip install -e ".[export]"`. Every folder has a
README.md (inputs, outputs, how to load it); all but the hub's also have student.json
(the same for programs) and self_test.npz (an input and its output).
"""

import pathlib

from absl import flags

from fsmde_jax import cli


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "The run's folder.", required=True)
    flags.DEFINE_string("format", None, "One of the above.", required=True)
    flags.DEFINE_string("out", None, "Folder to write; must be empty or absent.", required=True)


def main(_) -> None:
    """Exports as the flags say."""
    # Slow to import; --help and a misspelt flag do without.
    from fsmde_jax.export import formats

    cli.set_up()
    values, out = flags.FLAGS, pathlib.Path(flags.FLAGS.out)
    formats.export(pathlib.Path(values.checkpoint), values.format, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {values.format}, {size / 1e6:.1f} MB; see {out / 'README.md'}")


if __name__ == "__main__":
    cli.start(__name__)
