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

import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags

from fsmde_jax import cli
from fsmde_jax.benchmark import inference, report, teachers, timing, training
from fsmde_jax.benchmark.input import input_rate
from fsmde_jax.benchmark.timing import GIGA, Rows
from fsmde_jax.errors import UserError
from fsmde_jax.train import dry_run

SECTIONS = ("inference", "training", "input", "loading", "forward")


def main(_) -> None:
    """Measures and prints the report."""
    cli.set_up()
    with cli.errors_as_lines():
        if unknown := set(flags.FLAGS.what) - set(SECTIONS):
            raise UserError(f"--what={','.join(unknown)}: use some of {', '.join(SECTIONS)}")
        out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else None
        if out:
            report.refuse_other(out)
        report.write(_measure(CONFIG.value, flags.FLAGS.what), flags.FLAGS.repeats, out)


def _measure(config: ConfigDict | None, what: list[str]) -> dict[str, Rows]:
    """The tables of the sections in `what`, as the flags say."""
    repeats, found = flags.FLAGS.repeats, {}
    if {"inference", "training", "input"} & set(what):
        if config is None:
            raise UserError("name what to measure: --config=configs/demo.py, for example")
        config = dry_run.with_random_teacher(config)
    if {"inference", "training"} & set(what):
        ceilings = timing.ceilings(config.train.dtype, repeats)
        found["ceilings"] = [
            {
                "dtype": config.train.dtype,
                "GFLOP/s, matrix product": ceilings.flops_per_s / GIGA,
                "GB/s, addition": ceilings.bytes_per_s / GIGA,
            }
        ]
    if "inference" in what:
        students = flags.FLAGS.students or [config.student.size]
        batches = [int(batch) for batch in flags.FLAGS.batches]
        found["inference"] = inference.measure(config, students, batches, repeats, ceilings)
    if "training" in what:
        found["training"] = training.measure(config, repeats, ceilings)
    if "input" in what and (rows := input_rate(CONFIG.value)):
        found["input"] = rows
    models, size = flags.FLAGS.models, flags.FLAGS.image_size
    if "loading" in what:
        found["loading"] = [teachers.loading(name) for name in models]
    if "forward" in what:
        height, width = map(int, size.split("x"))
        found["forward"] = [teachers.forward(name, (height, width), repeats) for name in models]
    return found


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
