"""Stored teacher outputs on disk: what distillation reads of a frozen teacher, sample by sample.

`<data_dir>/<dataset>/<config name>/teacher_cache/` (or `config.teacher.cache_dir`) holds
`cache.json`, which says what was run on what, and array_record files of `CHUNK` samples each. An
entry is the bin probabilities of each pixel at the student's resolution (square roots in 255ths),
the pooled tokens and the logarithm of depth up to scale (both float16), once for the sample and
once for its mirror image if the config flips.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from fsmde_jax.data import prepared
from fsmde_jax.errors import UserError, differences

CHUNK = 32  # samples a file
_DTYPES = {
    "teacher_roots": np.uint8,
    "teacher_tokens": np.float16,
    "teacher_log_depth": np.float16,
}
FIELDS = tuple(_DTYPES)


class TeacherCacheError(UserError):
    """Stored teacher outputs are missing, incomplete or of something else; says what to do."""


def encode(logits: Float[Array, "*s k"]) -> UInt8[Array, "*s k"]:
    """255 times the square roots of the bin probabilities.

    Roots, because small probabilities matter to a divergence: a step is 0.8 % of a probability of
    1, 8 % of one of 0.01. (The eight largest of 32 alone, with the rest spread evenly, took half
    the space and moved the demo's divergence by 15 to 22 %; this moves it by 0.1 %.)
    """
    return jnp.round(255 * jnp.sqrt(jax.nn.softmax(logits))).astype(jnp.uint8)


def decode(roots: UInt8[Array, "*s k"]) -> Float[Array, "*s k"]:
    """Logits; what was rounded to 0 gets a millionth."""
    return jnp.log(jnp.maximum((roots.astype(jnp.float32) / 255) ** 2, 1e-6))


class TeacherCache:
    """Reads entries by sample and orientation; can be pickled and read from many threads."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.about: dict[str, Any] = json.loads((directory / "cache.json").read_text())
        self.orientations = 2 if self.about["flips"] else 1
        files = [str(_file(directory, chunk)) for chunk in range(num_chunks(self.about))]
        self._records = array_record_data_source.ArrayRecordDataSource(files)

    def __reduce__(self):
        return TeacherCache, (self.directory,)

    def entry(self, index: int, flipped: bool) -> dict[str, np.ndarray]:
        """The stored arrays (`FIELDS`) of a sample, or of its mirror image."""
        record = self._records[index * self.orientations + flipped]
        out, start = {}, 0
        for name in FIELDS:
            shape = self.about["shapes"][name]
            size = int(np.prod(shape)) * np.dtype(_DTYPES[name]).itemsize
            out[name] = np.frombuffer(record[start : start + size], _DTYPES[name]).reshape(shape)
            start += size
        return out


def directory_of(config: ConfigDict) -> pathlib.Path:
    """Where the stored outputs of a config lie."""
    if config.teacher.cache_dir:
        return pathlib.Path(config.teacher.cache_dir).expanduser()
    data = config.data
    version = prepared.version_dir(pathlib.Path(data.data_dir), data.dataset, data.config_name)
    return version.with_name("teacher_cache")


def num_chunks(about: dict[str, Any]) -> int:
    """How many files a whole cache has."""
    return -(-about["samples"] // CHUNK)


def missing_chunks(directory: pathlib.Path, about: dict[str, Any]) -> list[int]:
    """The files that are not there yet."""
    return [c for c in range(num_chunks(about)) if not _file(directory, c).is_file()]


def chunk_indices(chunk: int, about: dict[str, Any]) -> range:
    """The samples of a file."""
    return range(chunk * CHUNK, min((chunk + 1) * CHUNK, about["samples"]))


def _file(directory: pathlib.Path, chunk: int) -> pathlib.Path:
    return directory / f"{chunk:06d}.array_record"


def check(directory: pathlib.Path, about: dict[str, Any], command: str) -> None:
    """Refuses a cache that is absent, of something else, or incomplete.

    `about` is what the config would make; `command` makes it.
    """
    if not (directory / "cache.json").is_file():
        raise TeacherCacheError(
            f"There are no stored teacher outputs in {directory}. Run {command}"
        )
    check_same(directory, about)
    if missing := missing_chunks(directory, about):
        ranges = [chunk_indices(chunk, about) for chunk in missing]
        named = ", ".join(f"{r.start} to {r.stop - 1}" for r in ranges[:8])
        more = f" and {len(ranges) - 8} more files" if len(ranges) > 8 else ""
        raise TeacherCacheError(
            f"{directory} lacks the samples {named}{more}. Resume it: {command}"
        )


def check_same(directory: pathlib.Path, about: dict[str, Any]) -> None:
    """Refuses a cache of another teacher, resolution, dataset or objective; names each."""
    found = json.loads((directory / "cache.json").read_text())
    if wrong := differences(found, about, "there"):
        raise TeacherCacheError(
            f"The stored teacher outputs in {directory} are of something else: {wrong}. "
            "Set config.teacher.cache_dir to another folder, or delete that one."
        )


def write_about(directory: pathlib.Path, about: dict[str, Any]) -> None:
    """Begins a cache, or checks that the one that is there is the same."""
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "cache.json").is_file():
        check_same(directory, about)
    else:
        partial = directory / "cache.json.incomplete"
        partial.write_text(json.dumps(about, indent=2) + "\n")
        partial.rename(directory / "cache.json")


def write_chunk(
    directory: pathlib.Path, chunk: int, entries: Iterator[dict[str, np.ndarray]]
) -> None:
    """Writes a file whole or not at all; `entries` by sample, mirror image after the sample."""
    file = _file(directory, chunk)
    partial = file.with_suffix(".incomplete")
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    for entry in entries:
        arrays = (np.asarray(entry[name], _DTYPES[name]) for name in FIELDS)
        writer.write(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    writer.close()
    partial.rename(file)
