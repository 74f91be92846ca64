"""The short form of `campaign.py`: kills and full disks of what makes data, without models.

Kills of a training, flipped bits in checkpoints and shards, and other full disks are in the tests
of those; all of it together, at random, is the long form.
"""

import os
import random
import subprocess
import sys

import campaign
import pytest

JOBS = ("prepare", "rig world")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """With each job done once, uninterrupted."""
    bench = campaign.Bench(tmp_path_factory.mktemp("campaign"))
    bench.uninterrupted(JOBS)
    return bench


def small_disks_can_be_mounted():
    if sys.platform != "linux" or os.geteuid():
        return False
    return not subprocess.run(["unshare", "-m", "true"], check=False).returncode


@pytest.mark.parametrize("name", JOBS)
def test_a_killed_command_goes_on_and_ends_as_if_it_had_not_been(bench, name):
    row = campaign.kill_once(bench, campaign.JOBS[name], 0, random.Random(0), at_save=False)
    assert row["good"], row


@pytest.mark.skipif(not small_disks_can_be_mounted(), reason="only root may mount a small disk")
@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_one_line_and_nothing_half_written_is_taken_for_whole(bench, name):
    row = campaign.full_disk_once(bench, campaign.JOBS[name], 0.6)
    assert row["good"] and row["first"] == "one line", row
