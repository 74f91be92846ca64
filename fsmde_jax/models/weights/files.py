"""Files of a checkpoint: where they are, and whether their bytes can be trusted.

Damage is looked for before anything is used. What this package writes and ships has its SHA-256
beside it (`model.safetensors.sha256`, in the format of sha256sum). The checksum is compared
wherever there is one. A file in the hub's cache is named by its own checksum, which is compared,
too. Any other file can only be searched for a cut end, for values that are not finite, and for
16-bit kernels labelled as the other 16-bit type. A flipped bit in one of its weights goes unseen
while the value stays finite: compare the file's checksum with one from where you got it.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from fsmde_jax import files
from fsmde_jax.errors import UserError

_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")  # large files (LFS) have a SHA-256
JSON_FILES = ("config.json", "preprocessor_config.json")
WEIGHTS_FILE = "model.safetensors"

# Checkpoints that come with the package, by name.
_ASSETS = pathlib.Path(__file__).parents[2] / "assets"
SHIPPED = {name: _ASSETS / name for name in ("mini-world", "dpt-mini-world")}


class WeightsError(UserError):
    """Weights are missing, unreadable or do not fit; the text says which and what to do."""


def folder_of(source: str | pathlib.Path, names: Iterable[str]) -> pathlib.Path:
    """The folder of a shipped or local checkpoint, or of a hub repository with these files."""
    path = SHIPPED.get(str(source), pathlib.Path(source).expanduser())
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise WeightsError(
            f"{source}: no such file or folder, no hub id (owner/name), and not shipped with "
            f"fsmde_jax ({', '.join(SHIPPED)})"
        )
    try:
        return pathlib.Path(snapshot_download(str(source), allow_patterns=list(names)))
    except (OSError, ValueError, hub_errors.HfHubHTTPError) as error:
        raise WeightsError(
            f"{source}: neither a local folder nor to be had from the Hugging Face hub: {error} "
            f"Fetch {JSON_FILES[0]} and {WEIGHTS_FILE} where there is a network "
            f"(hf download {source}) and name that folder, or copy its cache here (HF_HOME) and "
            "set HF_HUB_OFFLINE=1."
        ) from error


def weights_file(source: str | pathlib.Path) -> pathlib.Path:
    """The .safetensors file that `source` names: a file, a folder or a hub id."""
    path = pathlib.Path(source).expanduser()
    file = path if path.is_file() else folder_of(source, [*JSON_FILES, WEIGHTS_FILE]) / WEIGHTS_FILE
    if not file.is_file():
        raise WeightsError(
            f"{file}: missing; convert the checkpoint to one safetensors file, for example with "
            "transformers' save_pretrained"
        )
    return file


class SafetensorsFile:
    """Shapes and tensors of a .safetensors file."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        _check_bytes(file)
        self.shapes = self._opened(
            lambda opened: {k: tuple(opened.get_slice(k).get_shape()) for k in opened.keys()}  # noqa: SIM118
        )

    def read(self, key: str) -> np.ndarray:
        """One tensor. The file is opened each time, or all that was read would stay mapped."""
        tensor = self._opened(lambda opened: opened.get_tensor(key))
        if problem := _implausible(tensor):
            raise WeightsError(f"{self.file}: {key} {problem}. The file is damaged: fetch it again")
        return tensor

    def _opened(self, use: Callable[[Any], Any]) -> Any:
        try:
            with safe_open(self.file, "numpy") as opened:
                return use(opened)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{self.file}: cannot be read as safetensors ({error}); truncated? Fetch it again"
            ) from error


def _implausible(tensor: np.ndarray) -> str | None:
    """In words, why these cannot be trained weights; None where they can."""
    if not jax.numpy.issubdtype(tensor.dtype, np.floating):
        return None
    if wrong := tensor.size - np.count_nonzero(np.isfinite(tensor)):
        return f"has {wrong} values that are not finite"
    if tensor.dtype.itemsize != 2 or tensor.ndim < 2 or tensor.size < 256:
        return None
    # bfloat16 read as float16 has its exponents squeezed around 1; float16 read as bfloat16 has
    # them below anything that float16 can hold. Kernels of networks have neither.
    some = np.abs(tensor.reshape(-1)[:: max(1, tensor.size // 4096)].astype(np.float32))
    some = some[some > 0]
    if some.size and np.median(some) < 2.0**-30:
        return f"has values around {np.median(some):.0e}, as if float16 were labelled bfloat16"
    if some.size and np.mean((some >= 0.25) & (some < 2.0)) > 0.98:
        return "has hardly a value below 0.25, as if bfloat16 were labelled float16"
    return None


def _check_bytes(file: pathlib.Path) -> None:
    """Refuses a file whose bytes are not those of the checksum beside it, or of its blob's name."""
    blob = file.resolve()
    if not blob.is_file():
        return
    if (beside := checksum(file)) is not None:
        if files.sha256(file) != beside:
            raise WeightsError(
                f"{file} is damaged: its SHA-256 is not that of {checksum_file(file).name}. Fetch "
                "or make it again; if you changed it yourself, delete the .sha256"
            )
    elif blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        found = files.sha256(blob) if len(blob.name) == 64 else _git_sha1(blob)
        if found != blob.name:
            raise WeightsError(
                f"{file} is damaged: its checksum is {found}, its name in the hub's cache {blob}. "
                "Delete both and fetch it again"
            )


def checksum_file(file: pathlib.Path) -> pathlib.Path:
    """Where the checksum of a file is written."""
    return file.with_name(f"{file.name}.sha256")


def checksum(file: pathlib.Path) -> str | None:
    """The SHA-256 written beside a file: None without such a text, "" where the text has none."""
    beside = checksum_file(file)
    if not beside.is_file():
        return None
    found = re.search(r"\b[0-9a-f]{64}\b", beside.read_text(errors="replace").lower())
    return found[0] if found else ""


def _git_sha1(file: pathlib.Path) -> str:
    """Git's name for a file's content; the hub names small files by it."""
    with file.open("rb") as opened:
        begin = lambda: hashlib.sha1(b"blob %d\0" % file.stat().st_size)  # noqa: E731
        return hashlib.file_digest(opened, begin).hexdigest()


def read_json(file: pathlib.Path, parse: Callable[[Any], Any]) -> Any:
    """`parse` of the file's content; its errors become `WeightsError`s with the file's name."""
    _check_bytes(file)
    try:
        return parse(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise WeightsError(f"{file}: {error}") from error
