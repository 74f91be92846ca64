"""Checkpoints of a run, behind one door: the only module that knows Orbax.

Each step's folder holds the items `params`, `batch_stats`, `ema` and `ema_batch_stats` (their
moving averages), `optimizer` (state, step) and `identity` (what was trained, with which teacher),
and `checksums.json` of all their files. Nothing here deletes a checkpoint but the rotation that
`train.keep_checkpoints` asks for.
"""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from fsmde_jax import files
from fsmde_jax.errors import UserError, differences

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
CHECKSUMS = "checksums.json"  # of a step: {file: {"bytes": size, "sha256": digest}}
_METADATA = "_CHECKPOINT_METADATA"  # Orbax's, of a step
# Checkpoints from before statistics were averaged: the average starts from them.
_STAND_INS = {"ema_batch_stats": "batch_stats"}
# Not compared where an identity from before lacks them: the trees and config.json tell.
_LATER_KEYS = ("optimizer", "ema", "data")
_NOT_TREES = ("identity", "iterator")  # older checkpoints hold Grain's position, too
_UNREADABLE = "unreadable"
_LISTED = 3  # differing arrays that an error names


class CheckpointError(UserError):
    """A checkpoint is missing or belongs to another model or teacher; the text names both."""


class DamagedError(CheckpointError):
    """Files of a checkpoint are missing, or are not what was written."""


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
      workdir: the run's folder.
      keep: number of latest checkpoints kept.
      identity: what this run trains; a checkpoint of something else is refused.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, identity: dict[str, Any]):
        self.identity, self.keep = identity, keep
        self.directory = workdir.resolve() / FOLDER
        self._unreadable: tuple[int, ...] = ()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made for the first save: it tidies the folder, which a refused start leaves alone."""
        if jax.process_index() == 0:
            for step in self._unreadable:
                files.set_aside(self.directory / str(step), _UNREADABLE)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            cleanup_tmp_directories=True,
            # An error while writing ends the save that it belongs to.
            enable_async_checkpointing=False,
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Saves, and is done when all is on disk; a step that is there already is kept."""
        if step in self._manager.all_steps():
            return
        # From the host: of replicated arrays Orbax would save a slice per device, and first
        # compile that slicing, array by array.
        state = jax.device_get(state)
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        identity = ocp.args.JsonSave(self.identity)
        _need_space(self.directory, state)
        with _one_error():
            saved = self._manager.save(step, args=ocp.args.Composite(**items, identity=identity))
        if not saved:
            raise CheckpointError(
                f"{self.directory} has a newer checkpoint than step {step}, which is not saved"
            )
        if jax.process_index() == 0:
            _write_checksums(self.directory / str(step))

    def restore(self, state: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The newest step that can be read: (step, state); None where there never was one.

        Steps that cannot be read are named, and set aside by the first save. Raises
        `CheckpointError` where a step belongs to another run or does not fit, or none can be read.

        Args:
          state: arrays, or their shapes.
        """
        if not self.directory.is_dir():
            return None
        damaged: dict[int, DamagedError] = {}
        with _reader(self.directory) as manager:
            for step in sorted(manager.all_steps(), reverse=True):
                folder = self.directory / str(step)
                verified = False
                try:
                    verified = _verify(folder)
                    _check_identity(manager, step, folder, self.identity, {})
                    _check_fits(folder, state)
                    found = _restore_items(manager, step, folder, state)
                    _check_step(step, folder, found)
                except DamagedError as error:
                    if verified:  # not by the disk, but by memory, another version or a bug
                        raise CheckpointError(f"{error}, although it is as written") from error
                    damaged[step] = error
                    continue
                for number, error in damaged.items():
                    log.warning(
                        "%s. Going on from step %d; step %d is kept as %s.%s", error, step, number,
                        number, _UNREADABLE,
                    )  # fmt: skip
                self._unreadable = tuple(damaged)
                return step, found
        if damaged or any(self.directory.glob(f"*.{_UNREADABLE}*")):
            reason = next(iter(damaged.values()), "they were set aside before")
            raise CheckpointError(
                f"{self.directory}: no checkpoint can be read ({reason}). Bring those files back, "
                "or start anew with another --workdir"
            )
        return None

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()


def load_params(
    workdir: pathlib.Path,
    params: Any,
    identity: dict[str, Any],
    item: str = "params",
    told: dict[str, Any] | None = None,
) -> Any:
    """One item of a run's newest checkpoint, on the host.

    Args:
      workdir: the run's folder.
      params: which of its arrays, by their paths and shapes: all, or some of them.
      identity: what it must have been trained as.
      item: of the checkpoint.
      told: by the run's config.json, for keys of `identity` that came after the checkpoint.
    """
    directory = workdir.expanduser().resolve() / FOLDER
    if not directory.is_dir():
        raise CheckpointError(f"{workdir} holds no run: there is no folder {FOLDER!r} in it")
    with _reader(directory) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{directory} has no checkpoint: the run did not get that far")
        folder = directory / str(step)
        item = item if (folder / item).is_dir() else _STAND_INS.get(item, item)
        try:
            _verify(folder, ("identity", item))
            _check_identity(manager, step, folder, identity, told or {})
            if not jax.tree.leaves(params):
                return params
            wanted = _arrays(params, item)
            saved = _saved_arrays(folder, item)
            if what := _differing({k: v for k, v in saved.items() if k in wanted}, wanted):
                raise CheckpointError(
                    f"{folder} does not fit the model of the run's config.json in this version of "
                    f"fsmde_jax: {what}"
                )
            return jax.device_get(_restore_item(manager, step, folder, params, item))
        except DamagedError as error:
            raise DamagedError(
                f"{error}. Bring that file back, or train on: that goes back to the checkpoint "
                "before"
            ) from error


def save_tree(path: pathlib.Path, tree: Any) -> None:
    """A tree of arrays alone, which `orbax.checkpoint.StandardCheckpointer` reads anywhere."""
    with _one_error(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), jax.device_get(tree))


def read_tree(path: pathlib.Path, like: Any) -> Any:
    """What `save_tree` wrote, on the host.

    Args:
      like: the tree's arrays, or their shapes.

    Raises `CheckpointError` where the tree is missing or of other arrays, `DamagedError` where it
    cannot be read.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is missing")
    if what := _differing(_saved_arrays(path.parent, path.name), _arrays(like, path.name)):
        raise CheckpointError(f"{path} does not fit this version of fsmde_jax: {what}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return jax.device_get(checkpointer.restore(path.resolve(), like))
    except Exception as error:  # Orbax raises bare exceptions on truncated data
        raise DamagedError(f"{path} cannot be read: {_first_line(error)}") from error


def latest_step(workdir: pathlib.Path) -> int | None:
    """The newest step saved in a run's folder; None where there never was one."""
    directory = workdir.resolve() / FOLDER
    if not directory.is_dir():
        if os.path.lexists(directory):
            raise CheckpointError(
                f"{directory} is a file, or a link to what is not there (a disk that is not "
                "mounted?): bring its folder back, or move it away"
            )
        return None
    with _reader(directory) as manager:
        return manager.latest_step()


def copy_newest(workdir: pathlib.Path, to: pathlib.Path) -> int:
    """Copies a run's newest checkpoint into the folder of another; returns its step."""
    step = latest_step(workdir)
    if step is None:
        raise CheckpointError(f"{workdir} has no checkpoint")
    folder = workdir / FOLDER / str(step)
    _verify(folder)
    shutil.copytree(folder, to / FOLDER / str(step))
    return step


def fingerprint(state: nnx.State) -> str:
    """Names the weights: the first 16 hex digits of a SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    ):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{path} {array.shape} {array.dtype}".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()[:16]


def _reader(directory: pathlib.Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(create=False))


def _need_space(directory: pathlib.Path, state: Any) -> None:
    """Raises `OSError` before anything is written where the disk has no room for it."""
    if shutil.disk_usage(directory).free < sum(leaf.nbytes for leaf in jax.tree.leaves(state)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Where a write fails, Orbax's other writes come too late and would each print a traceback."""
    before = sys.unraisablehook

    def without_late_ones(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = without_late_ones
    yield
    sys.unraisablehook = before  # not after an error: they are still to come


# ---------------------------------------------------------------- checksums


def _write_checksums(folder: pathlib.Path) -> None:
    found = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": files.sha256(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    files.write_json(folder / CHECKSUMS, found)


def _verify(folder: pathlib.Path, items: Iterable[str] = ()) -> bool:
    """Compares a step's files (of all items, or of some) with what was written.

    False for a step without checksums: it is from before there were some, or was finished in the
    moment of a kill; Orbax gives its folder its name only when it is whole. A copy of it, made
    while the rotation removed it, may lack items all the same.
    """
    items = tuple(items)
    if not (folder / CHECKSUMS).exists():
        _need_items(folder, items)
        return False
    try:
        checksums = files.read_json(folder / CHECKSUMS, "the checkpoint's list of files", "")
        listed = [(name, about["bytes"], about["sha256"]) for name, about in checksums.items()]
    except (UserError, AttributeError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / CHECKSUMS} is damaged") from error
    for name, size, digest in listed:
        file = folder / name
        if items and "/" in name and name.split("/")[0] not in items:
            continue
        if not file.is_file():
            raise DamagedError(f"{file} is missing")
        if file.stat().st_size != size:
            raise DamagedError(f"{file} has {file.stat().st_size} bytes instead of {size}")
        if files.sha256(file) != digest:
            raise DamagedError(f"{file} is damaged: its SHA-256 is not that of what was written")
    return True


def _need_items(folder: pathlib.Path, items: tuple[str, ...]) -> None:
    """Raises `DamagedError` where an item (any, or of some) that Orbax wrote has no folder."""
    if not (folder / _METADATA).exists():
        return
    try:
        written = files.read_json(folder / _METADATA, "", "", ("item_handlers",))["item_handlers"]
    except UserError as error:
        raise DamagedError(f"{folder / _METADATA} is damaged") from error
    for name in written:
        if name in (items or written) and not (folder / name).is_dir():
            raise DamagedError(f"{folder / name} is missing")


# ---------------------------------------------------------------- what a step holds


def _check_identity(
    manager: ocp.CheckpointManager,
    step: int,
    folder: pathlib.Path,
    expected: dict[str, Any],
    told: dict[str, Any],
) -> None:
    """Refuses a checkpoint that differs from `expected` in one of its keys."""
    args = ocp.args.Composite(identity=ocp.args.JsonRestore())
    try:
        saved = told | dict(manager.restore(step, args=args)["identity"])
    except Exception as error:  # Orbax raises bare exceptions
        raise DamagedError(f"{folder / 'identity'} is damaged: {_first_line(error)}") from error
    expected = {k: v for k, v in expected.items() if k in saved or k not in _LATER_KEYS}
    if wrong := differences(saved, expected, "in the checkpoint"):
        raise CheckpointError(
            f"The checkpoint {folder} belongs to another run: {wrong}. Use the config it was made "
            "with, another --workdir, or --fork=NEW_WORKDIR, which starts a new run from its "
            "weights"
        )


def _check_fits(folder: pathlib.Path, state: dict[str, Any]) -> None:
    """Refuses a step whose arrays are not those of `state`, by name, shape and dtype."""
    names = {path.name for path in folder.iterdir() if path.is_dir()} - set(_NOT_TREES)
    saved, wanted = {}, {}
    for name in sorted(names):
        saved |= _saved_arrays(folder, name)
    for name, tree in state.items():
        if name in names or name not in _STAND_INS:
            wanted |= _arrays(tree, name)
    if what := _differing(saved, wanted):
        raise CheckpointError(
            f"The checkpoint {folder} does not fit the config: {what}. Use the config it was made "
            "with, or --fork=NEW_WORKDIR, which starts a new run from its weights"
        )


def _check_step(step: int, folder: pathlib.Path, state: dict[str, Any]) -> None:
    """Refuses a step whose folder was renamed: its schedule and batches would be another's."""
    if (held := int(state["optimizer"]["step"])) != step:
        raise CheckpointError(f"{folder} holds step {held}: give it that name, or move it away")


def _arrays(tree: Any, item: str) -> dict[str, str]:
    """Shape and dtype of each array of a tree, or of Orbax's metadata of one, by name."""
    return {
        "/".join(map(str, (item, *path))): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in ocp.tree.to_flat_dict(tree).items()
    }


def _saved_arrays(folder: pathlib.Path, item: str) -> dict[str, str]:
    try:
        return _arrays(ocp.StandardCheckpointHandler().metadata(folder / item).tree, item)
    except Exception as error:  # Orbax raises bare exceptions
        raise DamagedError(f"{folder / item} cannot be read: {_first_line(error)}") from error


def _differing(saved: dict[str, str], wanted: dict[str, str]) -> str:
    """In words, what differs; "" where nothing does."""
    absent = "absent"
    keys = [key for key in sorted(saved | wanted) if saved.get(key) != wanted.get(key)]
    if not keys:
        return ""
    listed = "; ".join(
        f"{key} is {saved.get(key, absent)} in the checkpoint, {wanted.get(key, absent)} here"
        for key in keys[:_LISTED]
    )
    more = f"; {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return f"{listed}{more}"


def _restore_items(
    manager: ocp.CheckpointManager, step: int, folder: pathlib.Path, state: dict[str, Any]
) -> dict[str, Any]:
    there = {name for name in state if (folder / name).is_dir()}
    shapes = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, state[name]) for name in there}
    items = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises bare exceptions on truncated data
        raise DamagedError(f"{folder} cannot be read: {_first_line(error)}") from error
    found = {name: restored[name] for name in there}
    for name in set(state) - there:
        found[name] = jax.tree.map(jnp.copy, found[_STAND_INS[name]])
    return found


def _restore_item(
    manager: ocp.CheckpointManager, step: int, folder: pathlib.Path, params: Any, item: str
) -> Any:
    """Those arrays of an item that `params` has."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), params
    )
    restore = ocp.args.PyTreeRestore(
        abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: restore}))[item]
    except Exception as error:  # Orbax raises bare exceptions
        raise DamagedError(f"{folder / item} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
