"""Checkpoints of small trees: nothing is lost, and nothing damaged is taken for whole."""

import json
import logging
import resource
import shutil
import sys
import time

import jax
import numpy as np
import pytest

from fsmde_jax import files
from fsmde_jax.run import checkpoints
from fsmde_jax.run.checkpoints import CheckpointError, Checkpoints, DamagedError

IDENTITY = {"task": "student", "optimizer": "adamw", "ema": True}


def state_of(step, width=3):
    """Other values at every step."""
    kernel = np.full((4, width), step, np.float32)
    return {
        "params": {"layer": {"kernel": kernel}},
        "batch_stats": {"norm": {"mean": np.full(width, 10 * step, np.float32)}},
        "ema": {"layer": {"kernel": kernel - 0.5}},
        "ema_batch_stats": {"norm": {"mean": np.full(width, 5 * step, np.float32)}},
        "optimizer": {"opt_state": [{"mu": kernel}], "step": np.array(step, np.int32)},
    }


def write(folder, steps=(2, 4), identity=IDENTITY, without=()):
    saver = Checkpoints(folder, 2, identity)
    for step in steps:
        saver.save(step, {name: v for name, v in state_of(step).items() if name not in without})
    saver.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write(folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def content(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def restore(folder, identity=IDENTITY, state=None):
    return Checkpoints(folder, 2, identity).restore(state or state_of(0))


def load(folder, item="params", identity=None):
    return checkpoints.load_params(folder, state_of(0)[item], identity or {"task": "student"}, item)


def test_the_newest_step_is_restored(run):
    step, found = restore(run)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, dict(found), state_of(4))
    np.testing.assert_array_equal(
        load(run)["layer"]["kernel"], state_of(4)["params"]["layer"]["kernel"]
    )
    assert Checkpoints(run / "nothing", 2, IDENTITY).restore(state_of(0)) is None


@pytest.mark.parametrize(
    ("identity", "state", "message"),
    [
        ({"optimizer": "muon"}, {}, "optimizer is 'adamw' in the checkpoint, 'muon' in the config"),
        ({"ema": False}, {}, "ema is True in the checkpoint, False in the config"),
        (
            {},
            {"optimizer": {"opt_state": [{"nu": np.zeros((4, 3), np.float32)}]}},
            "optimizer/opt_state/0/mu is float32.4, 3. in the checkpoint, absent here.*"
            "optimizer/opt_state/0/nu is absent in the checkpoint, float32.4, 3. here.*--fork",
        ),
        ({}, {"ema": None}, "ema/layer/kernel is float32.4, 3. in the checkpoint, absent here"),
        (
            {},
            state_of(0, width=5),
            r"batch_stats/norm/mean is float32.3. .*float32.5. here.*2 more",
        ),
    ],
)
def test_another_state_is_refused_by_its_keys_and_nothing_is_lost(copy, identity, state, message):
    if not identity:  # as in a checkpoint of before, whose identity says less
        for step in (2, 4):
            file = copy / "checkpoints" / str(step) / "identity" / "metadata"
            file.write_text(json.dumps({"task": "student"}))
            (copy / "checkpoints" / str(step) / checkpoints.CHECKSUMS).unlink()
    before = content(copy)
    wanted = {k: v for k, v in (state_of(0) | state).items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        restore(copy, IDENTITY | identity, wanted)
    assert content(copy) == before


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-2])


def test_a_flipped_bit_in_any_file_of_a_step_is_noticed(copy, caplog):
    newest = copy / "checkpoints" / "4"
    whole = content(newest)
    for name in [name for name, data in whole.items() if data]:
        for damage in (flip, truncate):
            damage(newest / name)
            caplog.clear()
            step, found = restore(copy)
            assert step == 2, name
            assert found["params"]["layer"]["kernel"][0, 0] == 2
            assert "Going on from step 2" in caplog.text
            (newest / name).write_bytes(whole[name])
    (newest / "params" / "manifest.ocdbt").unlink()
    assert restore(copy)[0] == 2
    with pytest.raises(DamagedError, match=r"manifest\.ocdbt is missing.*train on"):
        load(copy)
    flip(max((newest / "ema").rglob("d/*"), key=lambda file: file.stat().st_size))
    with pytest.raises(DamagedError, match=r"ema/.*SHA-256"):
        load(copy, "ema")


def test_unreadable_steps_are_renamed_by_the_next_save_and_kept(copy, caplog):
    flip(copy / "checkpoints" / "4" / "optimizer" / "_METADATA")
    damaged = content(copy / "checkpoints" / "4")
    saver = Checkpoints(copy, 2, IDENTITY)
    with caplog.at_level(logging.WARNING):
        assert saver.restore(state_of(0))[0] == 2
    assert "optimizer/_METADATA is damaged" in caplog.text and "4.unreadable" in caplog.text
    assert content(copy / "checkpoints" / "4") == damaged  # a start may yet be refused
    saver.save(3, state_of(3))
    saver.save(4, state_of(4))
    saver.close()
    assert content(copy / "checkpoints" / "4.unreadable") == damaged
    assert restore(copy)[0] == 4


def test_where_no_step_can_be_read_nothing_starts_at_zero(copy):
    for step in ("2", "4"):
        flip(copy / "checkpoints" / step / "identity" / "metadata")
    before = content(copy)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint can be read.*identity/metadata is dam"
    ):
        restore(copy)
    assert content(copy) == before
    for step in ("2", "4"):
        files.set_aside(copy / "checkpoints" / step, "unreadable")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        restore(copy)


def test_a_link_to_a_disk_that_is_not_there_starts_nothing_at_zero(tmp_path):
    assert checkpoints.latest_step(tmp_path) is None
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk" / "checkpoints")
    with pytest.raises(CheckpointError, match="checkpoints is a file, or a link to what is not"):
        checkpoints.latest_step(tmp_path)
    (tmp_path / "disk" / "checkpoints").mkdir(parents=True)
    assert checkpoints.latest_step(tmp_path) is None


def test_a_step_that_was_copied_while_it_was_removed_is_not_taken_for_whole(copy):
    newest = copy / "checkpoints" / "4"
    (newest / checkpoints.CHECKSUMS).unlink()
    shutil.rmtree(newest / "optimizer")
    assert restore(copy)[0] == 2
    assert load(copy)["layer"]["kernel"][0, 0] == 4  # which is whole
    shutil.rmtree(newest / "params")
    with pytest.raises(DamagedError, match="4/params is missing"):
        load(copy)


def test_a_renamed_step_is_refused_and_kept(copy):
    (copy / "checkpoints" / "4").rename(copy / "checkpoints" / "7")
    with pytest.raises(CheckpointError, match=r"checkpoints/7 holds step 4: give it that name"):
        restore(copy)
    (copy / "checkpoints" / "7").rename(copy / "checkpoints" / "4")
    assert restore(copy)[0] == 4


@pytest.mark.parametrize("text", ["", '{"task": ', "[1]", "[" * 100_000])
def test_a_damaged_identity_is_one_line(text, copy):
    newest = copy / "checkpoints" / "4"
    (newest / checkpoints.CHECKSUMS).unlink()
    (newest / "identity" / "metadata").write_text(text)
    assert restore(copy)[0] == 2
    with pytest.raises(DamagedError, match=r"4/identity is damaged: .") as caught:
        load(copy)
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_before_is_restored_and_loaded(tmp_path):
    """Without checksums, averaged statistics and optimizer in the identity; with an iterator."""
    write(tmp_path, identity={"task": "student"}, without=("ema_batch_stats",))
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / checkpoints.CHECKSUMS).unlink()
        (folder / "iterator").mkdir()
        (folder / "iterator" / "process_0-of-2.json").write_text("{}")
    step, found = restore(tmp_path)
    assert step == 4
    wanted = state_of(4)
    jax.tree.map(np.testing.assert_array_equal, found["ema_batch_stats"], wanted["batch_stats"])
    np.testing.assert_array_equal(load(tmp_path, "ema_batch_stats")["norm"]["mean"], [40, 40, 40])
    told = {"range": 80.0}
    arguments = (tmp_path, state_of(0)["params"], {"task": "student", "range": 80.0})
    checkpoints.load_params(*arguments, told=told)
    with pytest.raises(CheckpointError, match=r"range is None in the checkpoint, 80\.0"):
        checkpoints.load_params(*arguments)


def test_a_disk_that_is_full_while_saving_is_told_and_the_step_before_stays(copy, monkeypatch):
    """A limit of file sizes stands for the disk: the same path through Orbax's C++."""
    noise = np.random.default_rng(0).random((20, 100, 100), np.float32)
    state = state_of(6) | {"params": {f"kernel{i}": kernel for i, kernel in enumerate(noise)}}
    late = []  # errors that would be printed, each with a traceback
    monkeypatch.setattr(sys, "unraisablehook", late.append)
    saver = Checkpoints(copy, 2, IDENTITY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(Exception) as caught:
            saver.save(6, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files.disk_problem(caught.value) == "the file is larger than allowed"
    time.sleep(0.2)
    assert not late
    assert restore(copy)[0] == 4
    saver = Checkpoints(copy, 2, IDENTITY)
    saver.save(6, state_of(6))
    assert restore(copy)[0] == 6


def test_a_disk_without_room_is_told_before_anything_is_written(copy, monkeypatch):
    before = content(copy)
    saver = Checkpoints(copy, 2, IDENTITY)
    usage = shutil.disk_usage(copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(OSError) as caught:
        saver.save(6, state_of(6))
    assert files.disk_problem(caught.value) == f"{copy / 'checkpoints'}: the disk is full"
    assert content(copy) == before
