"""A student in the form of the Hugging Face hub: safetensors, config.json and a model card.

    model.safetensors         parameters and batch statistics, by our own names
    model.safetensors.sha256  its checksum
    config.json               the network, the size it was trained at, its rig
    README.md                 the card

`hf upload OWNER/NAME FOLDER` puts such a folder on the hub; `fsmde_jax.load("OWNER/NAME")` gets it
from there.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from fsmde_jax import files
from fsmde_jax.evaluate import results
from fsmde_jax.models.weights.files import WEIGHTS_FILE, checksum_file

CONFIG_FILE = "config.json"
MODEL_TYPE = "fsmde_jax_student"
_FIGURES = {"abs_rel": "AbsRel {:.3f}", "rmse_m": "RMSE {:.2f} m", "delta1": "δ < 1.25 {:.3f}"}


def write(
    folder: pathlib.Path,
    student: nnx.Module,
    about: dict[str, Any],
    figures: str = "",
    dtype: np.typing.DTypeLike = np.float32,
) -> None:
    """Writes a student into a folder that is there.

    Args:
      about: of `formats.describe`.
      figures: how well it measures, in words, for the card.
      dtype: of the weights in the file. float16 halves the file and rounds each weight by at most
        5e-4 of it.
    """
    state = nnx.to_flat_state(nnx.state(student, nnx.Any(nnx.Param, nnx.BatchStat)))
    tensors = {
        ".".join(map(str, path)): np.array(jax.device_get(leaf[...]), dtype, order="C")
        for path, leaf in state
    }
    file = folder / WEIGHTS_FILE
    save_file(tensors, file)
    files.write_text(checksum_file(file), f"{files.sha256(file)}  {file.name}\n")
    files.write_json(folder / CONFIG_FILE, {"model_type": MODEL_TYPE, **about}, indent=2)
    files.write_text(folder / "README.md", _card(about, figures))


def figures_of(workdir: pathlib.Path) -> str:
    """The main figures of a run's report, in words; "" where there is no report."""
    if not (workdir / "report" / results.FILE).is_file():
        return ""
    content = results.read(workdir)
    mean = content["methods"].get("student", {}).get("mean", {})
    told = ", ".join(text.format(mean[name]) for name, text in _FIGURES.items() if name in mean)
    return f"{told} ({content['about']['text']})." if told else ""


def _card(about: dict[str, Any], figures: str) -> str:
    height, width = about["image_size"]
    nearest, farthest = about["depth_range_m"]
    return f"""---
license: apache-2.0
library_name: fsmde_jax
pipeline_tag: depth-estimation
tags:
- depth-estimation
- metric-depth
- surround-view
- jax
---

# {about["run"]}

Metric depth of every pixel of a ring of cameras, or of one camera, with a confidence. A student
({about["student"]!r}) that fsmde_jax trained.

```python
import fsmde_jax

student = fsmde_jax.load("this folder, or its id on the hub")
estimate = student(images, intrinsics)  # or student.predict(image, focal_px=1260.0)
estimate.depth_m, estimate.confidence
```

**Input.** RGB images, uint8, of any size, undistorted, of pinhole cameras; `intrinsics` in pixels
of these images. The network sees them at {height}x{width}, the size of its training, or at about
as many pixels of their own shape.

**Output.** `depth_m`: z-depth in metres, {nearest:g} to {farthest:g}, for a focal length of
{about["canonical_focal_px"]:g} px at {height}x{width}; it grows with that of `intrinsics`.
`confidence`: exp(-s), s the standard deviation of log depth; 1 is certain, .5 is a factor of two.

**Rig of its training.** {", ".join(about["cameras"])}; `config.json` has its calibration.

**Figures.** {figures or "The run had no report when it was exported."}

**Licence.** Apache-2.0. If the images that it learned from ask for another one, say so here before
you pass it on.
"""
