# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Metric depth of six cameras, distilled
#
# A depth foundation model knows what is near and what is far, but no metres. LiDAR knows metres, at
# few pixels. This notebook distils both into a small network that needs neither, on a miniature
# world of streets that is rendered here: no download, any accelerator or none.
#
# About ten minutes on a GPU runtime, half an hour on Colab's CPU. (`FSMDE_SHORT=1` in the
# environment makes every step tiny: that is how it is tested.)

# %% [markdown]
# ## 1. Install
#
# In Colab, say in `SOURCE` where the package is: a wheel that you uploaded, a folder of the
# repository, or an address to clone it from. Where the package is installed already, as in a
# checkout after `pip install -e ".[export,predict]"`, leave it empty.

# %%
import importlib
import importlib.util
import os
import pathlib
import shlex
import subprocess
import sys

# The commands below run beside this process, on the same accelerator: none may take all memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

SOURCE = ""
SHORT = os.environ.get("FSMDE_SHORT") == "1"

root = pathlib.Path.cwd()  # runs and data lie here
if importlib.util.find_spec("fsmde_jax") is None:
    if not SOURCE:
        raise SystemExit(
            "fsmde_jax is not installed. Upload its wheel or the folder of its repository (the "
            "symbol of a folder, on the left), and write its name into SOURCE, above: "
            'SOURCE = "fsmde_jax-0.1.0-py3-none-any.whl". Or write an address to clone it from.'
        )
    package = pathlib.Path(SOURCE)
    if not package.exists():
        package = pathlib.Path("fsmde_jax_repository")
        subprocess.run(["git", "clone", SOURCE, package], check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", f"{package.resolve()}[export,predict]"]
    subprocess.run(install, check=True)
    importlib.invalidate_caches()


def run(command: str) -> None:
    """Runs one of the package's commands; an error stops the notebook."""
    command = ["-m", *shlex.split(command)]
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    print(done.stdout[-4000:])


import json

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from PIL import Image

print(f"{jax.devices()[0].device_kind} x {jax.device_count()}")

# %% [markdown]
# ## 2. A world, and what is trained on it
#
# Streets with buildings, trees, poles, signs, cars and glossy surfaces; a ring of six cameras and
# a spinning LiDAR. It is written in DDAD's own layout and prepared by the reader that real DDAD
# goes through. Ten of the streets have LiDAR; of the other ones only the pictures are used. The
# first command that needs it renders it; this one only says what will be built.

# %%
RUNS = "runs/notebook"
WORLD = "--config.data.data_dir=data_notebook"
train_scenes, val_scenes, labelled_scenes, steps = (3, 2, 1, 20) if SHORT else (60, 15, 10, 1200)
WORLD += f" --config.world.train_scenes={train_scenes} --config.world.val_scenes={val_scenes}"
LABELS = f" --config.data.labelled_scenes={labelled_scenes}"
STEPS = f" --config.train.steps={steps} --config.train.log_every={max(2, steps // 40)}"
STEPS += f" --config.teacher.head_stage.train.steps={steps // 2}"
OTHERS = " --config.data.keep_unlabelled=True"

run(f"fsmde_jax.main --config=demo --workdir={RUNS}/none --dry_run {WORLD}")

# %% [markdown]
# ## 3. Distil
#
# First the binning head of the shipped teacher (4.27 M parameters) is trained on LiDAR, then the
# student (0.5 M). Cross-interaction: the teacher's probabilities over depth bins teach structure,
# LiDAR teaches the bins' metres. View-relational: how cameras resemble their neighbours.

# %%
distilled = f"{RUNS}/ckd_vrkd"
run(f"fsmde_jax.main --config=demo --workdir={distilled} {WORLD}{LABELS}{STEPS}{OTHERS}")

# %% [markdown]
# What the world looks like: one instant of a street of the validation split, image and LiDAR.

# %%
from fsmde_jax import config as config_lib
from fsmde_jax.data import pipeline
from fsmde_jax.pictures import ring

config = config_lib.load_config(root / distilled)
source, cameras = pipeline.open_data(config.data, "val")
sample = pipeline.place_on_rig(
    pipeline.read_sample(source, 0), cameras, source.rig["max_points_per_image"]
)
figure, axes = plt.subplots(2, len(cameras), figsize=(18, 4.4), layout="constrained")
for i, camera in enumerate(cameras):
    overlay = ring.lidar_overlay(
        sample["image"][i], sample["lidar_xy"][i], sample["lidar_depth_m"][i], 80.0, scale=3
    )
    for axis, picture in zip(axes[:, i], (sample["image"][i], overlay), strict=True):
        axis.imshow(picture)
        axis.axis("off")
    axes[0, i].set_title(camera)
plt.show()

# %% [markdown]
# The loss on the way: `silog` is the error on LiDAR, the other terms come from the teacher. Where
# `silog` drops to .001, no street of that batch had LiDAR.

# %%
lines = [json.loads(line) for line in open(root / distilled / "metrics.jsonl")]
logged = [line for line in lines if line["kind"] == "train"]
figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
for term in ("silog", "ckd_crossing", "ckd_divergence", "vrkd"):
    axis.plot([line["step"] for line in logged], [line[term] for line in logged], label=term)
axis.set(xlabel="step", ylabel="term of the loss", yscale="log")
axis.legend()
plt.show()

# %% [markdown]
# ## 4. Measure
#
# Metric depth on streets that were never seen, no scaling by the truth. The trivial predictor
# knows each pixel's median depth in training; the teacher is scaled by each image's LiDAR.

# %%
report = (root / distilled / "report" / "results.md").read_text()
display(Markdown(report.split("\n\nOf ")[0]))

# %% [markdown]
# ## 5. Look
#
# `predict` writes depth as 16-bit PNG, confidence, point clouds (PLY), a Rerun recording and these
# pictures. Colours are one fixed metric range for all cameras and frames.

# %%
predicted = root / RUNS / "predicted"
if not predicted.exists():
    run(
        f"fsmde_jax.predict --checkpoint={distilled} --out={predicted} --max_samples=1 "
        "--save=depth,panel,cloud,birds_eye"
    )
for kind in ("panel", "birds_eye"):
    display(Image.open(next((predicted / kind).rglob("*.png"))))

# %% [markdown]
# ## 6. What distillation adds
#
# The same student, supervised by the LiDAR of the same streets only. **One run each**: seeds move
# the figure by about .01, and a claim needs several of them. The study that has them is
# `python -m fsmde_jax.study --config=study_demo`.

# %%
supervised = f"{RUNS}/supervised"
run(f"fsmde_jax.main --config=demo:supervised --workdir={supervised} {WORLD}{LABELS}{STEPS}")
found = {}
for name in (supervised, distilled):
    methods = json.loads((root / name / "report" / "results.json").read_text())["methods"]
    found[pathlib.Path(name).name] = next(iter(methods.values()))["mean"]
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, metric in zip(axes, ("abs_rel", "delta1"), strict=True):
    axis.bar(list(found), [mean[metric] for mean in found.values()], color=["grey", "teal"])
    axis.set_title(metric)
plt.show()

# %%
for name in (supervised, distilled):
    print(pathlib.Path(name).name)
    display(Image.open(sorted((root / name / "report").glob("*.png"))[0]))

# %% [markdown]
# ## 7. Take it away
#
# As Orbax parameters; `--format=onnx` or `stablehlo` make a file that needs neither this package
# nor its training code.

# %%
exported = root / RUNS / "exported"
if not exported.exists():
    run(f"fsmde_jax.export --checkpoint={distilled} --format=orbax --out={exported}")
import orbax.checkpoint as ocp

parameters = ocp.StandardCheckpointer().restore(exported / "params")
print(sum(np.size(leaf) for leaf in jax.tree.leaves(parameters)), "numbers")
display(Markdown((exported / "README.md").read_text()))

# %% [markdown]
# ## 8. On DDAD, nuScenes or your own rig
#
# The commands are the same with another config:
#
#     python -m fsmde_jax.prepare --dataset=ddad --source=ddad_train_val --data_dir=data
#     python -m fsmde_jax.main --config=ddad
#
# An own rig needs a folder of undistorted images, LiDAR and one `rig.json`;
# `python -m fsmde_jax.prepare --dataset=rig --source=RIG --check` says what is wrong with it. The
# pages `fsmde_jax/prepare/README.md` and `fsmde_jax/train/README.md` have both.
