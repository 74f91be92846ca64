import errno
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from fsmde_jax import cli, files
from fsmde_jax.data import prepared
from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import results
from fsmde_jax.run import fork


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(RuntimeError), files.new_folder(path) as partial:
        (partial / "half").touch()
        raise RuntimeError
    assert not any(tmp_path.iterdir())
    with files.new_folder(path) as partial:
        (partial / "whole").touch()
    assert [p.name for p in path.iterdir()] == ["whole"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="out is there already"), files.new_folder(path):
        pass
    assert [p.name for p in path.iterdir()] == ["whole"]


def test_what_a_kill_left_is_made_anew_and_a_stranger_is_left_alone(tmp_path):
    code = (
        "import os, pathlib; from fsmde_jax import files\n"
        f"with files.new_folder(pathlib.Path({str(tmp_path / 'out')!r})) as partial:\n"
        "    (partial / 'half').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / ".unfinished-out" / "half").exists()
    with files.new_folder(tmp_path / "out") as partial:
        assert not (partial / "half").exists()
    stranger = tmp_path / ".unfinished-other"
    stranger.mkdir()
    (stranger / "mine").touch()
    with pytest.raises(UserError, match="was not made by fsmde_jax"):
        files.new_folder(tmp_path / "other").__enter__()
    assert (stranger / "mine").exists()


def test_a_lock_names_its_owner_and_ends_with_it(tmp_path):
    code = (
        "import pathlib, time; from fsmde_jax import files\n"
        f"with files.locked(pathlib.Path({str(tmp_path / 'lock')!r}), 'training'):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"process {owner.pid} on \S+ is training"):
        files.locked(tmp_path / "lock", "training").__enter__()
    owner.kill()
    owner.wait()
    with files.locked(tmp_path / "lock", "training"):
        pass


def test_a_lock_is_put_on_no_file_of_others(tmp_path):
    lock = tmp_path / "lock"
    lock.write_bytes(b"mine \xff")
    with pytest.raises(UserError, match="lock is in the way and was not made by fsmde_jax"):
        files.locked(lock, "training").__enter__()
    assert lock.read_bytes() == b"mine \xff"


def test_a_folder_has_one_owner_and_stays_only_with_something_in_it(tmp_path):
    folder = tmp_path / "report"
    busy = pytest.raises(files.BusyError, match="is writing it")
    with files.owned(folder, "writing it"), busy:
        files.owned(folder, "writing it").__enter__()
    assert not any(tmp_path.iterdir())
    with files.owned(folder, "writing it"):
        (folder / "results.json").touch()
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_what_is_set_aside_keeps_its_content(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "a").write_text(content)
        files.set_aside(tmp_path / "a", "unreadable")
    assert (tmp_path / "a.unreadable").read_text() == "one"
    assert (tmp_path / "a.unreadable.2").read_text() == "two"


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: the disk is full"), cli.errors_as_lines():
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ValueError("Orbax says something") from error
    with pytest.raises(SystemExit, match="disk is full"), cli.errors_as_lines():
        raise RuntimeError("write: No space left on device [tensorstore]")
    with pytest.raises(KeyError), cli.errors_as_lines():
        raise KeyError("a bug keeps its traceback")


def test_a_name_that_cannot_be_used_is_one_line(tmp_path):
    circle, folder = tmp_path / "circle", tmp_path / "folder"
    circle.symlink_to(circle)
    folder.mkdir()
    for use, text in (
        (lambda: files.refuse_occupied(tmp_path / ("x" * 300)), "x: the name is too long"),
        (lambda: files.new_folder(circle).__enter__(), "symbolic links lead in a circle"),
        (lambda: files.write_text(folder, ""), "Is a directory: .*folder"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{text}"), cli.errors_as_lines():
            use()


def test_an_interruption_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, cli.errors_as_lines():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"


def _sleep(ready) -> None:
    files.end_with_parent()
    ready.set()
    time.sleep(60)


def _parent(pipe) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=_sleep, args=(ready,))
    child.start()
    ready.wait()
    pipe.send(child.pid)
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="by prctl, which Linux has")
def test_a_child_ends_with_its_parent():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_parent, args=(theirs,))
    parent.start()
    child = ours.recv()
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    for _ in range(100):
        status = pathlib.Path(f"/proc/{child}/stat")
        if not status.exists() or " Z " in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} is alive")


@pytest.mark.parametrize("text", ["[]", "3", '"a"', "null", "{}"])
def test_json_of_another_shape_is_damaged(text, tmp_path):
    """As after somebody's own edit."""
    for name in (prepared.RIG_FILE, "results.json", "forked_from/about.json"):
        files.write_text(tmp_path / name, text)
    with pytest.raises(UserError, match=r"rig\.json: the list of what is prepared is damaged"):
        prepared.read_rig(tmp_path)
    with pytest.raises(UserError, match=r"results\.json is no results file of this version"):
        results.read(tmp_path)
    with pytest.raises(UserError, match=r"about\.json: where the run was forked from is damaged"):
        fork.fork(tmp_path / "old", tmp_path)


def test_a_sealed_file_tells_a_flipped_bit(tmp_path):
    path = tmp_path / "a.json"
    content = {"b": [1, 2.5], "a": {"c": None}}
    files.write_json(path, files.sealed(content))
    assert files.read_json(path, "it", "") == content
    path.write_text(path.read_text().replace("2.5", "3.5"))
    with pytest.raises(UserError, match=r"a\.json: it is damaged .*checksum.*\. Do this"):
        files.read_json(path, "it", "Do this")
