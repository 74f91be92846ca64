"""The benchmark's report: tables for people, and the same values for programs."""

import os
import pathlib
import shlex
import sys

from fsmde_jax import files
from fsmde_jax.benchmark import timing
from fsmde_jax.benchmark.inference import Rows
from fsmde_jax.errors import UserError


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


def write(found: dict[str, Rows], repeats: int, out: pathlib.Path | None) -> None:
    """Prints the tables, and writes them to `out` and beside it."""
    command = shlex.join(["python", "-m", "fsmde_jax.benchmark", *sys.argv[1:]])
    if tunables := os.environ.get("GLIBC_TUNABLES"):  # huge pages, which large maps gain from
        command = f"GLIBC_TUNABLES={shlex.quote(tunables)} {command}"
    about = timing.machine()
    if set(found) - {"input"}:  # whose rate is of one stretch
        about += f" Medians of {repeats} turns."
    lines = ["# Speed", "", f"`{command}`", "", about]
    for section, rows in found.items():
        lines += ["", f"## {section.capitalize()}", "", *timing.markdown(rows)]
    print("\n".join(lines))
    if out:
        values = {"command": command, "machine": about, **found}
        files.write_json(out.with_suffix(".json"), values)
        files.write_text(out, "\n".join(lines) + "\n")
