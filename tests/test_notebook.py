"""The Colab notebook: what is reviewed is what runs, and it runs headless in its short mode."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "colab" / "fsmde_demo.ipynb"
jupytext = pytest.importorskip("jupytext")


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_the_notebook_is_its_text():
    text = jupytext.read(NOTEBOOK.with_suffix(".py"))
    assert cells(jupytext.read(NOTEBOOK)) == cells(text), (
        "make it anew: jupytext --to ipynb colab/fsmde_demo.py"
    )


def test_it_says_how_to_install_where_nothing_is(tmp_path):
    first = next(source for kind, source in cells(jupytext.read(NOTEBOOK)) if kind == "code")
    command = [sys.executable, "-I", "-S", "-c", first]  # knows no installed package
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "fsmde_jax is not installed. Upload its wheel" in done.stderr


def test_every_cell_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("FSMDE_SHORT", "1")
    # Ordinary runs, compiled quickly: on one device, as on a user's machine.
    quickly = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    monkeypatch.setenv("XLA_FLAGS", quickly)
    for name in ("fsmde_jax", "tfds_builders", "colab"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    notebook = jupytext.read(tmp_path / "colab" / "fsmde_demo.ipynb")
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path / "colab"}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 6  # ring, loss, panel, from above, comparison, two reports
