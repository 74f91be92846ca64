"""The short form of `campaign.py`: three kills, and one flipped bit in files of five kinds."""

import random
import subprocess

import campaign
import pytest


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """With an uninterrupted run of every stage, and its stored teacher."""
    bench = campaign.Bench(tmp_path_factory.mktemp("campaign"))
    bench.uninterrupted(["prepare", "rig world", "train"])
    return bench


@pytest.mark.parametrize(
    ("name", "at_save"), [("train", True), ("prepare", False), ("rig world", False)]
)
def test_a_killed_command_goes_on_and_ends_as_if_it_had_not_been(bench, name, at_save):
    number = list(campaign.JOBS).index(name)
    row = campaign.kill_once(bench, campaign.JOBS[name], number, random.Random(0), at_save)
    assert row["good"], row


def test_a_flipped_bit_is_named_or_borne(bench):
    rows = campaign.damage(bench, seed=0, only=campaign.SHORT, kinds=("bit flipped",))
    assert len(rows) == 5
    assert all(row["good"] for row in rows), [row for row in rows if not row["good"]]


@pytest.mark.skipif(
    subprocess.run(["sh", "-c", "test $(id -u) = 0 && unshare -m true"], check=False).returncode
    != 0,
    reason="only root may mount a small disk",
)
@pytest.mark.parametrize("name", ["prepare", "rig world"])
def test_a_full_disk_is_one_line_and_nothing_half_written_is_taken_for_whole(bench, name):
    row = campaign.full_disk_once(bench, campaign.JOBS[name], 0.6)
    assert row["good"] and row["first"] == "one line", row
