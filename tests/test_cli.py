"""How many processes a command starts by itself."""

import os

import pytest

from fsmde_jax import cli


@pytest.mark.parametrize(
    ("membership", "groups", "cores"),
    [
        ("0::/\n", {}, []),
        ("0::/\n", {"cpu.max": "max 100000"}, []),
        ("0::/\n", {"cpu.max": "200000 100000"}, [2]),
        ("0::/\n", {"cpu.max": "150000 100000"}, [2]),
        ("0::/\n", {"cpu.max": "10000 100000"}, [1]),
        # Of all the groups it is in.
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 100000"}, [1, 3]),
        # v1; a container's own group is mounted at the top, whatever the host calls it.
        (
            "4:cpu,cpuacct:/docker/1f\n3:memory:/x\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            [4],
        ),
        (
            "1:cpu:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            [],
        ),
    ],
)
def test_a_quota_of_cores_is_read_from_the_cgroup(tmp_path, membership, groups, cores):
    (tmp_path / "self").write_text(membership)
    for name, content in groups.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert list(cli._quotas(tmp_path / "self", tmp_path / "cgroup")) == cores
    assert list(cli._quotas(tmp_path / "none", tmp_path / "cgroup")) == []


def test_affinity_and_quota_limit_the_number_of_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    for quotas, cores in (([], 3), ([7, 2], 2)):
        monkeypatch.setattr(cli, "_quotas", lambda *_, quotas=quotas: quotas)
        assert cli.num_cores() == cores
