"""Says whether two results differ: second minus first, paired by scene, with intervals.

    python -m fsmde_jax.evaluate.compare runs/a runs/b
    python -m fsmde_jax.evaluate.compare runs/a runs/a:teacher --out=difference.json

FIRST and SECOND are folders of runs or reports, or results.json files, of the same
protocol and data; `runs/a:teacher` takes another method of a file than its first.
Intervals are of 95 %, from a bootstrap over scenes.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from fsmde_jax import cli, files
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import comparison, results, tables

ARGUMENTS = ("FIRST", "SECOND")


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("out", None, "Also writes the figures there, as JSON; replaces some.")


def main(argv: Sequence[str]) -> None:
    """Compares two results and prints the table."""
    out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else None
    if out:
        files.refuse_other(out, _is_comparison)
    first, second = (_read(text) for text in argv[1:])
    compared = comparison.compare(first, second)
    print(tables.comparison_table(compared, argv[1:]))
    if out:
        files.write_json(out, compared)


def _is_comparison(content: Any) -> bool:
    return {"first", "second", "difference", "interval"} <= content["abs_rel"].keys()


def _read(text: str) -> dict:
    path, method = text, ""
    if ":" in text and not pathlib.Path(text).exists():  # a name may have colons of its own
        path, _, method = text.rpartition(":")
    content = results.read(pathlib.Path(path))
    methods = content["methods"]
    if method and method not in methods:
        raise UserError(f"{text}: has no method {method!r}; there are {', '.join(methods)}")
    chosen = method or next(iter(methods))
    return {**content, "methods": {chosen: methods[chosen]}}


if __name__ == "__main__":
    cli.start(__name__)
