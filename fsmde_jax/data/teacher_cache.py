"""Stored teacher outputs on disk: what distillation reads of a frozen teacher, sample by sample.

`<data_dir>/<dataset>/<config name>/teacher_cache/` (or `config.teacher.cache_dir`) holds
`cache.json`, which says what was run on what, array_record files of `CHUNK` samples each, and
`chunks.json` with their sizes and SHA-256. Sizes are looked at when a cache is opened, checksums by
`cache_teacher --verify`; what is read of a file is checked by array_record's own hashes.

An entry is the bin probabilities of each pixel at the student's resolution (square roots in
255ths), the pooled tokens and the logarithm of depth up to scale (both float16), once for the
sample and once for its mirror image if the config flips.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from fsmde_jax import files
from fsmde_jax.data import prepared
from fsmde_jax.errors import UserError, differences

CHUNK = 32  # samples a file
_ABOUT, _CHUNKS = "cache.json", "chunks.json"
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
        self.about = _about(directory)
        self.orientations = 2 if self.about["flips"] else 1
        paths = [str(_file(directory, chunk)) for chunk in range(num_chunks(self.about))]
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(paths)
        except RuntimeError as error:  # names no file
            raise TeacherCacheError(_damaged(str(directory), error)) from error

    def __reduce__(self):
        return TeacherCache, (self.directory,)

    def entry(self, index: int, flipped: bool) -> dict[str, np.ndarray]:
        """The stored arrays (`FIELDS`) of a sample, or of its mirror image."""
        try:
            record = self._records[index * self.orientations + flipped]
        except RuntimeError as error:  # array_record's, where a hash is not that of the data
            raise TeacherCacheError(
                _damaged(str(_file(self.directory, index // CHUNK)), error)
            ) from error
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


def is_whole(directory: pathlib.Path) -> bool:
    """Whether all files are there that the cache itself says it has."""
    return (directory / _ABOUT).is_file() and not missing_chunks(directory, _about(directory))


def missing_chunks(directory: pathlib.Path, about: dict[str, Any]) -> list[int]:
    """The files that are not there yet, or have not the size that they were written with."""
    sizes, missing = _written(directory), []
    for chunk in range(num_chunks(about)):
        file = _file(directory, chunk)
        size = sizes.get(file.name, {}).get("size")
        if not file.is_file() or file.stat().st_size != size:
            missing.append(chunk)
    return missing


def damaged_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files whose bytes are not those that were written; reads all of them."""
    return [
        directory / name
        for name, about in sorted(_written(directory).items())
        if files.sha256(directory / name) != about["sha256"]
    ]


def adopt(directory: pathlib.Path, about: dict[str, Any]) -> None:
    """Records sizes and checksums of whole files that have none.

    They are of a version that kept none, or were written just before a kill.
    """
    for chunk in missing_chunks(directory, about):
        file = _file(directory, chunk)
        if file.is_file() and file.name not in _written(directory) and _is_whole(file, about):
            _record(directory, file)


def chunk_indices(chunk: int, about: dict[str, Any]) -> range:
    """The samples of a file."""
    return range(chunk * CHUNK, min((chunk + 1) * CHUNK, about["samples"]))


def _file(directory: pathlib.Path, chunk: int) -> pathlib.Path:
    return directory / f"{chunk:06d}.array_record"


def _about(directory: pathlib.Path) -> dict[str, Any]:
    do = f"Move {directory} away and store the teacher's outputs again"
    return files.read_json(directory / _ABOUT, "what says what the cache is of", do)


def _written(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """`size` and `sha256` of the files by name."""
    if not (directory / _CHUNKS).exists():
        return {}
    do = "Move it away: python -m fsmde_jax.cache_teacher makes it anew"
    return files.read_json(directory / _CHUNKS, "the list of the cache's files", do)


def _record(directory: pathlib.Path, file: pathlib.Path) -> None:
    written = {"size": file.stat().st_size, "sha256": files.sha256(file)}
    files.write_json(directory / _CHUNKS, _written(directory) | {file.name: written})


def _is_whole(file: pathlib.Path, about: dict[str, Any]) -> bool:
    count = len(chunk_indices(int(file.stem), about)) * (2 if about["flips"] else 1)
    try:
        return sum(1 for _ in array_record_data_source.ArrayRecordDataSource([str(file)])) == count
    except RuntimeError:
        return False


def _damaged(what: str, error: Exception) -> str:
    reason = str(error).splitlines()[0][:200]
    return (
        f"{what} is damaged ({reason}). `python -m fsmde_jax.cache_teacher ... --verify=1` names "
        "every damaged file; delete those and run it without --verify"
    )


def check(directory: pathlib.Path, about: dict[str, Any], command: str) -> None:
    """Refuses a cache that is absent, of something else, or incomplete.

    `about` is what the config would make; `command` makes it.
    """
    if not (directory / _ABOUT).is_file():
        raise TeacherCacheError(
            f"There are no stored teacher outputs in {directory}. Run {command}"
        )
    check_same(directory, about)
    if missing := missing_chunks(directory, about):
        ranges = [chunk_indices(chunk, about) for chunk in missing]
        named = ", ".join(f"{r.start} to {r.stop - 1}" for r in ranges[:8])
        more = f" and {len(ranges) - 8} more files" if len(ranges) > 8 else ""
        raise TeacherCacheError(
            f"{directory} lacks the samples {named}{more} (files are missing, cut short, or not "
            f"in {_CHUNKS}). Resume it: {command}"
        )


def check_same(directory: pathlib.Path, about: dict[str, Any]) -> None:
    """Refuses a cache of another teacher, resolution, dataset or objective; names each."""
    if wrong := differences(_about(directory), about, "there"):
        raise TeacherCacheError(
            f"The stored teacher outputs in {directory} are of something else: {wrong}. "
            "Set config.teacher.cache_dir to another folder, or delete that one."
        )


def write_about(directory: pathlib.Path, about: dict[str, Any]) -> None:
    """Begins a cache, or checks that the one that is there is the same.

    Raises `UserError` where the folder holds other files.
    """
    if (directory / _ABOUT).is_file():
        check_same(directory, about)
    else:
        files.refuse_foreign(directory, _ABOUT, lambda _: False)
        files.write_json(directory / _ABOUT, about, indent=2)


def locked(directory: pathlib.Path):  # -> a context
    """Held while a cache is written: by one process at a time."""
    return files.locked(directory / ".lock", f"storing the teacher's outputs in {directory}")


def write_chunk(
    directory: pathlib.Path, chunk: int, entries: Iterator[dict[str, np.ndarray]]
) -> None:
    """Writes a file whole or not at all; `entries` by sample, mirror image after the sample."""
    file = _file(directory, chunk)
    with files.replacing(file) as partial:
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        for entry in entries:
            arrays = (np.asarray(entry[name], _DTYPES[name]) for name in FIELDS)
            writer.write(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
        writer.close()
    _record(directory, file)
