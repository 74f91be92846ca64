"""The benchmark's report: tables for people, and the same values for programs."""

import os
import pathlib
import shlex
import sys
from typing import Any

from fsmde_jax import files, markdown
from fsmde_jax.benchmark import timing
from fsmde_jax.benchmark.timing import Rows
from fsmde_jax.errors import UserError


def refuse_other(out: pathlib.Path) -> None:
    """Raises `UserError` where `out` is no .md file, or is there and no report of this command."""
    if out.suffix != ".md":
        raise UserError(f"--out={out}: name a .md file; the .json for programs goes beside it")
    values = out.with_suffix(".json")
    files.refuse_other(values, lambda found: {"command", "machine"} <= found.keys())
    if out.exists() and not values.exists():
        raise UserError(
            f"{out} is there already and is no report of this command, which has {values.name} "
            "beside it: move it away, or choose another --out"
        )


def write(found: dict[str, Rows], repeats: int, out: pathlib.Path | None) -> None:
    """Prints the tables, and writes them to `out` and beside it."""
    command = shlex.join(["python", "-m", "fsmde_jax.benchmark", *sys.argv[1:]])
    if tunables := os.environ.get("GLIBC_TUNABLES"):  # huge pages make large maps faster
        command = f"GLIBC_TUNABLES={shlex.quote(tunables)} {command}"
    about = timing.machine()
    if set(found) - {"input"}:  # which is measured once, without turns
        about += f" Medians of {repeats} turns."
    lines = ["# Speed", "", f"`{command}`", "", about]
    for section, rows in found.items():
        lines += ["", f"## {section.capitalize()}", "", table(rows)]
    print("\n".join(lines))
    if out:
        values = {"command": command, "machine": about, **found}
        files.write_json(out.with_suffix(".json"), values)
        files.write_text(out, "\n".join(lines) + "\n")


def table(rows: Rows) -> str:
    """Markdown: rows with the same columns; None is a dash."""
    return markdown.table(list(rows[0]), [[_text(value) for value in row.values()] for row in rows])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
