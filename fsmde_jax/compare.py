"""Do two results differ? `python -m fsmde_jax.compare FIRST SECOND [--out=FILE.json]`

FIRST and SECOND are folders of runs or reports, or results.json files, of the same protocol and
data; `runs/a:teacher` takes another method of a file than its first. Prints second minus first,
paired by scene, with 95 % intervals from a bootstrap over scenes.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from fsmde_jax import results
from fsmde_jax.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Compares two results and prints the table."""
    if len(argv) != 3:
        raise app.UsageError("give two results: python -m fsmde_jax.compare FIRST SECOND")
    try:
        first, second = (_read(text) for text in argv[1:])
        compared = results.compare(first, second)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(results.comparison_table(compared, argv[1:]))
    if flags.FLAGS.out:
        pathlib.Path(flags.FLAGS.out).write_text(json.dumps(compared, indent=1) + "\n")


def _read(text: str) -> dict:
    path, _, method = text.partition(":")
    content = results.read(pathlib.Path(path))
    methods = content["methods"]
    if method and method not in methods:
        raise UserError(f"{text}: has no method {method!r}; there are {', '.join(methods)}")
    chosen = method or next(iter(methods))
    return {**content, "methods": {chosen: methods[chosen]}}


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Also writes the figures there, as JSON.")
    app.run(main)
