"""Checkpoints of a run, behind one door: the only module that knows Orbax.

Each step's folder holds the items `params`, `batch_stats`, `ema`, `optimizer` (state, step),
`iterator` (Grain's position) and `identity` (what was trained, with which teacher).
"""

import hashlib
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from grain.checkpoint import CheckpointRestore, CheckpointSave

from fsmde_jax.errors import UserError, differences

log = logging.getLogger(__name__)

FOLDER = "checkpoints"


class CheckpointError(UserError):
    """A checkpoint is missing or belongs to another model or teacher; the text names both."""


class Checkpoints:
    """Saves and restores the state of one run.

    Args:
      workdir: the run's folder.
      keep: number of latest checkpoints kept.
      identity: what this run trains; a checkpoint of something else is refused.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, identity: dict[str, Any]):
        self.identity = identity
        self.directory = workdir.resolve() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: dict[str, Any], iterator: Any) -> None:
        """Saves in the background; a step that is there already is not saved again."""
        if step in self._manager.all_steps():
            return
        # From the host: of replicated arrays Orbax would save a slice per device, and first
        # compile that slicing, array by array.
        state = jax.device_get(state)
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **items,
                iterator=CheckpointSave(iterator),
                identity=ocp.args.JsonSave(self.identity),
            ),
        )

    def restore(self, state: dict[str, Any], iterator: Any) -> tuple[int, dict[str, Any]] | None:
        """The newest step that can be read: (step, state); sets the iterator. None: no checkpoint.

        A step whose data is damaged is reported, deleted and the one before it is taken.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            _check_identity(self._manager, step, self.directory, self.identity)
            items = {
                name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
                for name, tree in state.items()
            }
            try:
                restored = self._manager.restore(
                    step, args=ocp.args.Composite(**items, iterator=CheckpointRestore(iterator))
                )
                return step, {name: restored[name] for name in state}
            except Exception as error:  # Orbax raises bare exceptions on truncated data
                log.warning(
                    "The checkpoint %s cannot be read (%s); going back to the one before.",
                    self.directory / str(step),
                    str(error).splitlines()[0],
                )
                self._manager.delete(step)
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_params(
    workdir: pathlib.Path, params: Any, identity: dict[str, Any], item: str = "params"
) -> Any:
    """One item of a run's newest checkpoint, on the host.

    `params` says which of its arrays, by their paths and shapes: all, or some of them.
    """
    directory = workdir.expanduser().resolve() / FOLDER
    if not directory.is_dir():
        raise CheckpointError(f"{workdir} holds no run: there is no folder {FOLDER!r} in it")
    with ocp.CheckpointManager(directory) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{directory} has no checkpoint: the run did not get that far")
        _check_identity(manager, step, directory, identity)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
            ),
            params,
        )
        if not jax.tree.leaves(abstract):
            return params
        restore = ocp.args.PyTreeRestore(
            abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        args = ocp.args.Composite(**{item: restore})
        try:
            restored = manager.restore(step, args=args)[item]
        except Exception as error:  # Orbax raises bare exceptions, on other shapes a page of text
            raise CheckpointError(
                f"{directory / str(step)}: its {item} do not fit the model of the run's "
                "config.json in this version of fsmde_jax, or are damaged: "
                f"{str(error).splitlines()[0][:200]}"
            ) from error
        missing = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
            if isinstance(leaf, jax.ShapeDtypeStruct)  # Orbax leaves what it did not find
        ]
        if missing:
            raise CheckpointError(f"{directory / str(step)} has no {item} {', '.join(missing)}")
        return jax.device_get(restored)


def save_tree(path: pathlib.Path, tree: Any) -> None:
    """A tree of arrays alone, which `orbax.checkpoint.StandardCheckpointer` reads anywhere."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.resolve(), jax.device_get(tree))


def latest_step(workdir: pathlib.Path) -> int | None:
    """The newest step saved in a run's folder."""
    directory = workdir.resolve() / FOLDER
    if not directory.is_dir():
        return None
    with ocp.CheckpointManager(directory) as manager:
        return manager.latest_step()


def _check_identity(
    manager: ocp.CheckpointManager, step: int, directory: pathlib.Path, expected: dict[str, Any]
) -> None:
    """Refuses a checkpoint that differs from `expected` in one of its keys."""
    args = ocp.args.Composite(identity=ocp.args.JsonRestore())
    saved = manager.restore(step, args=args)["identity"]
    if wrong := differences(saved, expected, "in the checkpoint"):
        raise CheckpointError(
            f"The checkpoint {directory / str(step)} belongs to another run: "
            f"{wrong}. Use another --workdir, or the config it was made with."
        )


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
