"""Files that are whole or not there: written aside and renamed, locked, checked, never lost.

Whatever is being made is called `.unfinished-<name>`. A kill leaves that behind, and the same
command makes it anew. What has its final name is whole.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fsmde_jax.errors import UserError

log = logging.getLogger(__name__)

UNFINISHED = ".unfinished-"
_MARK = ".made_by_fsmde_jax"  # in an unfinished folder: it is ours to remove
_OWNER = "process "  # a lock file begins so
_CHECKSUM = "checksum"  # the key of it in sealed JSON
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system can only be read",
    errno.EFBIG: "the file is larger than allowed",
    errno.EACCES: "permission denied",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "symbolic links lead in a circle",
}
# Libraries that write by C++ (Orbax, array_record) put the system's message into theirs.
_DISK_TEXTS = {os.strerror(number): text for number, text in _DISK_ERRORS.items()}


class BusyError(UserError):
    """Another process is at work there; the text names it."""


def unfinished(path: Path) -> Path:
    """What `path` is called while it is being made."""
    return path.with_name(f"{UNFINISHED}{path.name}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` if all goes well, and is removed otherwise."""
    _make_parent(path)
    partial = unfinished(path)
    try:
        yield partial
        _to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all: UTF-8, also where a file's name in it is not."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Content for a JSON file, with a checksum that `read_json` compares and leaves out again."""
    return {**content, _CHECKSUM: _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, what: str, do: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The content of a JSON file that this package wrote.

    Raises `UserError` where it is missing or damaged; a flipped bit that leaves JSON is noticed
    where the content was `sealed`.

    Args:
      what: what the file is, for the error.
      do: what the user can do, for the error.
      keys: what it must have.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no keys")
        if lacking := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {lacking[0]!r}")
        if _CHECKSUM in content:
            stated = content.pop(_CHECKSUM)
            if stated != _digest(content):
                raise ValueError("its checksum is that of other content")
        return content
    except FileNotFoundError:
        raise UserError(f"{path}: {what} is missing. {do}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: {what} is damaged ({reason}). {do}") from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` if all goes well, and is removed otherwise.

    Raises `UserError` where `path` has something in it, since nothing is overwritten, and where it
    cannot be written.
    """
    path = path.resolve()
    refuse_occupied(path)
    partial = unfinished(path)
    _make_parent(path)
    with locked(partial.with_name(f"{partial.name}.lock"), f"writing {path}", remove=True):
        claim(partial)
        remove_claimed(partial)
        try:
            if path.is_dir():
                path.rmdir()  # empty, or refused above; what cannot go is told before the work
            claim(partial)
            yield partial
            os.rename(partial, path)
        except BaseException as error:
            if is_claimed(partial):
                remove_claimed(partial)
            problem = None if isinstance(error, UserError) else disk_problem(error)
            if problem or isinstance(error, OSError):
                raise UserError(f"{path} cannot be written ({problem or error})") from error
            raise
        (path / _MARK).unlink()


def refuse_occupied(path: Path) -> None:
    """Raises `UserError` where `path` is a file or a folder with something in it."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} is there already; remove it, or choose another --out")


def refuse_foreign(folder: Path, index: str, is_ours: Callable[[Any], bool]) -> None:
    """Raises `UserError` where `folder` has something in it, and no report of ours.

    It is ours if its file `index` is: that may be written anew, with the files that belong to it.
    One that was cut short is renamed.

    Args:
      index: a JSON file, the first that is written of a report.
      is_ours: of its content.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if names and not any(name.startswith(index) for name in names):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"{folder} holds {', '.join(names[:3])}{more}, and no {index} of fsmde_jax: nothing is "
            "written between other files. Choose another folder, or move them away"
        )
    file = folder / index
    if file.is_file() and not _is_json(file):
        aside = set_aside(file, "unreadable")
        log.warning("%s was cut short or damaged; it is called %s now", file, aside.name)
    refuse_other(file, is_ours)


def refuse_other(file: Path, is_ours: Callable[[Any], bool]) -> None:
    """Raises `UserError` where something is there that is no JSON file of ours.

    Args:
      is_ours: of its content.
    """
    if not file.exists():
        return
    try:
        ours = file.is_file() and is_ours(json.loads(file.read_bytes()))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise UserError(
            f"{file} is there already and is nothing that this command wrote of the same: move it "
            "away, or choose another --out"
        )


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def claim(folder: Path) -> None:
    """Makes a folder that is marked as ours to remove, or finds it made.

    Raises `UserError` where it has something in it and no mark.
    """
    if is_claimed(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in the way and was not made by fsmde_jax; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def is_claimed(folder: Path) -> bool:
    """Whether a folder has the mark of ours."""
    return (folder / _MARK).is_file()


def remove_claimed(folder: Path) -> None:
    """Removes a folder of ours, the mark last, so that a kill leaves no stranger."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARK:
            path.unlink()
    (folder / _MARK).unlink()
    folder.rmdir()


@contextlib.contextmanager
def locked(path: Path, what: str, remove: bool = False) -> Iterator[None]:
    """Holds the lock file `path`, which names its owner; the system frees it when that dies.

    Raises `BusyError` with the owner's host and process where another process holds it, and
    `UserError` where the file is none of ours.

    Args:
      what: what the owner is doing, for the error of others.
      remove: also removes the file in the end.
    """
    _make_parent(path)
    owner = f"{_OWNER}{os.getpid()} on {socket.gethostname()}"
    while True:
        file = path.open("a+", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "another process"
            file.close()
            raise BusyError(
                f"{path}: {other} is {what}. Wait for it, or end it, and try again"
            ) from None
        # A lock on a file that its last owner has just removed holds nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    file.seek(0)
    if (there := file.read()) and not there.startswith(_OWNER):
        file.close()
        raise UserError(f"{path} is in the way and was not made by fsmde_jax; move it away")
    try:
        file.truncate(0)
        file.write(owner + "\n")
        file.flush()
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        file.close()


@contextlib.contextmanager
def owned(folder: Path, what: str, lock: str = ".lock") -> Iterator[None]:
    """A folder that no other process writes into; one that is made here and stays empty goes again.

    Raises as `locked`.

    Args:
      what: what the owner is doing, for the error of others.
      lock: the name of the lock file.
    """
    new = not folder.exists()
    try:
        with locked(folder / lock, what, remove=True):
            yield
    finally:
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path, why: str) -> Path:
    """Renames what cannot be used to `<name>.<why>`, or `<name>.<why>.2`; returns the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{why}" + (f".{number}" * (number > 1)))).exists():
        number += 1
    os.rename(path, aside)
    return aside


def disk_problem(error: BaseException) -> str | None:
    """In words, what keeps the disk from being written, if `error` or its cause says that."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        filename = getattr(error, "filename", None)
        where = f"{filename}: " if filename else ""
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return f"{where}{_DISK_ERRORS[error.errno]}"
        for text, meaning in _DISK_TEXTS.items():
            if text in str(error):
                return f"{where}{meaning}"
        error = error.__cause__ or error.__context__
    return None


def end_with_parent(parent: int | None = None) -> None:
    """This process is killed when the one that started it ends, however that ends (Linux).

    Args:
      parent: that one's id, in case it has ended by now.
    """
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent_process() -> None:
    """This process, which multiprocessing started, ends within a moment when its parent does.

    The signal of `end_with_parent` comes at once, but already when the *thread* ends that started
    the process, and never where the parent has ended before.
    """
    parent = multiprocessing.parent_process()
    if not parent.is_alive():
        os._exit(1)
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({disk_problem(error) or error})") from error


def _to_disk(path: Path) -> None:
    """Flushes a file's bytes, so that a power cut cannot leave an empty file of its final name."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
