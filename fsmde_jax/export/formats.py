"""The formats of an exported student, and what a program needs to know of each."""

import importlib.util
import pathlib
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from fsmde_jax import config as config_lib
from fsmde_jax import files, markdown
from fsmde_jax.errors import UserError
from fsmde_jax.export import hub
from fsmde_jax.run import checkpoints, example
from fsmde_jax.run.load import load_student

FORMATS = ("hub", "orbax", "stablehlo", "onnx")
INPUTS = ("image", "intrinsics")
OUTPUTS = ("depth_m", "confidence")
FILES = {
    "hub": hub.WEIGHTS_FILE,
    "orbax": "params",
    "stablehlo": "student.stablehlo",
    "onnx": "student.onnx",
}
ABOUT_FILE = "student.json"  # what `describe` says, but in "hub", whose config.json says it
_PACKAGES = {"stablehlo": "flatbuffers", "onnx": "onnx"}  # extras that a format needs


def export(workdir: pathlib.Path, format_: str, out: pathlib.Path) -> None:
    """Writes the student of a run into the folder `out`, whole or not at all.

    Raises `UserError` for a run without student or checkpoint, an unknown format, a package that
    is missing, a folder that has something in it or cannot be written.
    """
    if format_ not in FORMATS:
        raise UserError(f"--format={format_}: use one of {', '.join(FORMATS)}")
    _need(format_)
    files.refuse_occupied(out)
    config = config_lib.load_config(workdir)
    student = load_student(config, workdir)
    sample, cameras = example.read(config, workdir)
    about = describe(config, format_, sample, cameras)
    if format_ == "hub":
        figures = hub.figures_of(workdir)
        with files.new_folder(out) as folder:
            hub.write(folder, student, about, figures)
        return
    inputs = {name: sample[name][None] for name in INPUTS}
    outputs = jax.jit(inference(student))(*inputs.values())
    with files.new_folder(out) as folder:
        _WRITERS[format_](student, inputs, folder.resolve() / FILES[format_])
        outputs = dict(zip(OUTPUTS, map(np.asarray, outputs), strict=True))
        np.savez_compressed(folder / "self_test.npz", **inputs, **outputs)
        files.write_json(folder / ABOUT_FILE, about, indent=2)
        files.write_text(folder / "README.md", _readme(about))


def inference(student: nnx.Module):  # -> (image, intrinsics) -> (depth_m, confidence)
    """What is exported: the student of a whole rig, a pure function of arrays."""
    graphdef, parameters = nnx.split(student)

    def function(
        image: UInt8[Array, "b n h w 3"], intrinsics: Float[Array, "b n 3 3"]
    ) -> tuple[Float[Array, "b n h w"], Float[Array, "b n h w"]]:
        present = jnp.ones(image.shape[:2], bool)
        output = nnx.merge(graphdef, parameters)(image, intrinsics, present)
        return output.depth_m, output.confidence

    return function


def describe(
    config: ConfigDict, format_: str, sample: dict[str, np.ndarray], cameras: tuple[str, ...]
) -> dict[str, Any]:
    """What student.json holds: the file, its inputs and outputs, the rig."""
    n, height, width, _ = sample["image"].shape
    depths = f"{config.data.min_depth_m:g} to {config.data.max_depth_m:g}"
    return {
        "format": format_,
        "file": FILES[format_],
        "run": config.name,
        "inputs": {
            "image": f"uint8 [batch, {n}, {height}, {width}, 3]: RGB, 0 to 255",
            "intrinsics": f"float32 [batch, {n}, 3, 3]: in pixels of that image",
        },
        "outputs": {
            "depth_m": f"float32 [batch, {n}, {height}, {width}]: z-depth in metres, {depths}",
            "confidence": f"float32 [batch, {n}, {height}, {width}]: exp(-s), s the standard "
            "deviation of log depth; 1 is certain, .5 is a factor of two",
        },
        "image_size": [height, width],
        "cameras": list(cameras),
        "intrinsics_px": sample["intrinsics"].tolist(),
        "vehicle_from_camera": sample["vehicle_from_camera"].tolist(),
        "canonical_focal_px": config_lib.input_focal_px(config),
        "student": config.student.size,
        "mean_of": config.student.mean_of,
        "dtype": config.train.dtype,
        "bins": config.bins.to_dict(),
        "depth_range_m": [config.data.min_depth_m, config.data.max_depth_m],
    }


# ---------------------------------------------------------------- formats


def _write_orbax(student: nnx.Module, _, path: pathlib.Path) -> None:
    checkpoints.save_tree(path, nnx.state(student, (nnx.Param, nnx.BatchStat)).to_pure_dict())


def _write_stablehlo(student: nnx.Module, inputs, path: pathlib.Path) -> None:
    exported = jax.export.export(jax.jit(inference(student)), platforms=("cpu", "cuda", "tpu"))
    path.write_bytes(exported(*free_batch(inputs).values()).serialize())


def _write_onnx(student: nnx.Module, inputs, path: pathlib.Path) -> None:
    from fsmde_jax.export import onnx_graph  # only here: onnx is an extra

    model = onnx_graph.convert(inference(student), free_batch(inputs), OUTPUTS)
    path.write_bytes(model.SerializeToString())


_WRITERS = {"orbax": _write_orbax, "stablehlo": _write_stablehlo, "onnx": _write_onnx}


def free_batch(inputs: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the inputs, for any number of samples."""
    (batch,) = jax.export.symbolic_shape("batch")
    return {
        name: jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype)
        for name, array in inputs.items()
    }


def _need(format_: str) -> None:
    package = _PACKAGES.get(format_)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f'--format={format_} needs the package {package}: pip install -e ".[export]"'
        )


_LOAD = {
    "orbax": """The parameters by name: a tree of arrays of the network in fsmde_jax (this
folder's student.json says of which size), without optimizer.

```python
import pathlib
import orbax.checkpoint as ocp

params = ocp.StandardCheckpointer().restore(pathlib.Path("params").resolve())
```""",
    "stablehlo": """Needs jax and flatbuffers, on cpu, cuda or tpu.

```python
import jax
import numpy as np

student = jax.export.deserialize(open("student.stablehlo", "rb").read())
test = np.load("self_test.npz")
depth_m, confidence = jax.jit(student.call)(test["image"], test["intrinsics"])
print(abs(depth_m - test["depth_m"]).max())
```""",
    "onnx": """Needs onnxruntime, or what else reads ONNX (opset 17).

```python
import numpy as np
import onnxruntime

student = onnxruntime.InferenceSession("student.onnx")
test = np.load("self_test.npz")
inputs = {name: test[name] for name in ("image", "intrinsics")}
depth_m, confidence = student.run(None, inputs)
print(abs(depth_m - test["depth_m"]).max())
```""",
}


def _readme(about: dict[str, Any]) -> str:
    rows = [("input", f"`{name}`", text) for name, text in about["inputs"].items()]
    rows += [("output", f"`{name}`", text) for name, text in about["outputs"].items()]
    table = markdown.table(["", "name", "what"], rows)
    return f"""# Metric depth of a ring of cameras

A student of fsmde_jax (run {about["run"]!r}), as {about["format"]}: `{about["file"]}`.

{table}

Cameras in this order: {", ".join(about["cameras"])}. Images are undistorted, of pinhole cameras.
The network works for a focal length of {about["canonical_focal_px"]:g} px and scales its depth by
that of `intrinsics`, so give the one of the image as it is resized. `student.json` has the rig it
was trained on, `self_test.npz` an input with its output.

{_LOAD[about["format"]]}
"""
