"""Measures how fast a config is on this device, with random images and weights.

    python -m fsmde_jax.benchmark --config=ddad --out=speed.md
    python -m fsmde_jax.benchmark --config=demo --what=inference --students=resnet18,tiny
    python -m fsmde_jax.benchmark --what=forward --models=Intel/dpt-large

    inference  the students and the teacher; beside onnxruntime and torch, if installed
    training   a step: supervised, with a cached and with an online teacher; in torch
    input      how fast the config's prepared data is read, if it is there
    loading    memory that published teachers (--models) need while they are loaded
    forward    their forward pass, beside transformers' torch model

Prints Markdown; --out=FILE.md also writes it, and FILE.json for programs. What is
compared runs in turns. FLOPs and bytes are the compiler's count; bytes that a cache
holds are counted, too, so small models can exceed the memory's rate.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from fsmde_jax import cli
from fsmde_jax.errors import UserError

SECTIONS = ("inference", "training", "input", "loading", "forward")


def define_flags() -> None:
    """The command's flags."""
    cli.define_config("The run whose models and data are measured.", required=False)
    flags.DEFINE_list("what", ["inference", "training", "input"], "Some of the above.")
    flags.DEFINE_list("students", [], "Sizes of students; the config's by default.")
    flags.DEFINE_list("batches", ["1"], "Rigs at once in inference.")
    flags.DEFINE_integer("repeats", 7, "Turns, after one that compiles.")
    flags.DEFINE_string("out", "", "A .md file to write the report to, too; replaces one.")
    flags.DEFINE_list("models", ["Intel/dpt-large"], "Hub ids, for loading and forward.")
    flags.DEFINE_string("image_size", "518x686", "Height x width of forward's image.")


def main(_) -> None:
    """Measures and prints the report."""
    # Slow to import; --help and a misspelt flag do without.
    from fsmde_jax.benchmark import report

    cli.set_up()
    if unknown := set(flags.FLAGS.what) - set(SECTIONS):
        raise UserError(f"--what={','.join(unknown)}: use some of {', '.join(SECTIONS)}")
    out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else None
    if out:
        report.refuse_other(out)
    report.write(_measure(flags.FLAGS.config, flags.FLAGS.what), flags.FLAGS.repeats, out)


def _measure(config: ConfigDict | None, what: list[str]) -> dict[str, list[dict]]:
    """The tables of the sections in `what`, as the flags say."""
    from fsmde_jax.benchmark import inference, teachers, timing, training
    from fsmde_jax.benchmark.input import input_rate
    from fsmde_jax.train import dry_run

    repeats, found = flags.FLAGS.repeats, {}
    if {"inference", "training", "input"} & set(what):
        if config is None:
            raise UserError("name what to measure: --config=demo, for example")
        config = dry_run.with_random_teacher(config)
    if {"inference", "training"} & set(what):
        ceilings = timing.ceilings(config.train.dtype, repeats)
        found["ceilings"] = [
            {
                "dtype": config.train.dtype,
                "GFLOP/s, matrix product": ceilings.flops_per_s / timing.GIGA,
                "GB/s, addition": ceilings.bytes_per_s / timing.GIGA,
            }
        ]
    if "inference" in what:
        students = flags.FLAGS.students or [config.student.size]
        batches = [int(batch) for batch in flags.FLAGS.batches]
        found["inference"] = inference.measure(config, students, batches, repeats, ceilings)
    if "training" in what:
        found["training"] = training.measure(config, repeats, ceilings)
    if "input" in what and (rows := input_rate(flags.FLAGS.config)):
        found["input"] = rows
    models, size = flags.FLAGS.models, flags.FLAGS.image_size
    if "loading" in what:
        found["loading"] = [teachers.loading(name) for name in models]
    if "forward" in what:
        height, width = map(int, size.split("x"))
        found["forward"] = [teachers.forward(name, (height, width), repeats) for name in models]
    return found


if __name__ == "__main__":
    cli.start(__name__)
