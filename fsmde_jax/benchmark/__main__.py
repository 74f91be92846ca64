"""How fast a config is here: `python -m fsmde_jax.benchmark --config=configs/ddad.py`.

Measures, on random images and weights (nothing is downloaded), and prints as Markdown:

- what the device can do at most: matrix products, memory;
- inference on one rig, and on as many as `--batches` says: the config's student, others by
  `--students=resnet18,tiny`, its teacher; beside them the students in onnxruntime and, eager and
  compiled, in torch, if they are installed (`pip install -e ".[export,torch]" onnxruntime`);
- a training step: supervised only, with a cached and with an online teacher; in torch;
- how fast the prepared data of the config is read, decoded and batched, if it is there.

What is compared runs in turns. FLOPs and bytes are the compiler's count; bytes that a cache holds
are counted, too, so small models can exceed the memory's rate. `--out=FILE.md` writes the
report, and FILE.json for programs. `--what=inference,training,input` chooses; `loading` and
`forward` measure published teachers (`--models=NAME,NAME`): memory of loading them, and their
forward pass beside transformers' torch model.
"""

import os
import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from fsmde_jax import cli, files
from fsmde_jax.benchmark import inference, timing
from fsmde_jax.benchmark.inference import SECTIONS, Rows
from fsmde_jax.errors import UserError


def main(_) -> None:
    """Measures and prints the report."""
    cli.set_up()
    with cli.errors_as_lines():
        if unknown := set(flags.FLAGS.what) - set(SECTIONS):
            raise UserError(f"--what={','.join(unknown)}: use some of {', '.join(SECTIONS)}")
        out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else None
        if out:
            refuse_other(out)
        _report(inference.measure(CONFIG.value, flags.FLAGS.what), out)


def refuse_other(out: pathlib.Path) -> None:
    """Raises `UserError` where `out` is no .md file, or there without being such a report."""
    if out.suffix != ".md":
        raise UserError(f"--out={out}: name a .md file; the .json for programs goes beside it")
    values = out.with_suffix(".json")
    files.refuse_other(values, lambda found: {"command", "machine"} <= found.keys())
    if out.exists() and not values.exists():
        raise UserError(
            f"{out} is there already and is no report of this command, which has {values.name} "
            "beside it: move it away, or choose another --out"
        )


def _report(found: dict[str, Rows], out: pathlib.Path | None) -> None:
    """Prints the tables, and writes them to `out` and beside it."""
    command = shlex.join(["python", "-m", "fsmde_jax.benchmark", *sys.argv[1:]])
    if tunables := os.environ.get("GLIBC_TUNABLES"):  # huge pages, which large maps gain from
        command = f"GLIBC_TUNABLES={shlex.quote(tunables)} {command}"
    about = timing.machine()
    if set(found) - {"input"}:  # whose rate is of one stretch
        about += f" Medians of {flags.FLAGS.repeats} turns."
    lines = ["# Speed", "", f"`{command}`", "", about]
    for section, rows in found.items():
        lines += ["", f"## {section.capitalize()}", "", *timing.markdown(rows)]
    print("\n".join(lines))
    if out:
        values = {"command": command, "machine": about, **found}
        files.write_json(out.with_suffix(".json"), values)
        files.write_text(out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    flags.DEFINE_list("what", ["inference", "training", "input"], ", ".join(SECTIONS))
    flags.DEFINE_list("students", [], "Sizes of students; the config's by default.")
    flags.DEFINE_list("batches", ["1"], "Rigs at once in inference.")
    flags.DEFINE_integer("repeats", 7, "Turns, after one that compiles.")
    flags.DEFINE_string("out", "", "A .md file to write the report to, too; replaces one.")
    flags.DEFINE_list("models", ["Intel/dpt-large"], "Hub ids, for loading and forward.")
    flags.DEFINE_string("image_size", "518x686", "Height x width of forward's image.")
    cli.start(main)
