"""Stored teacher outputs: the same losses as online, resumed, verified, refused by name."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import prepare_recording, read_metrics, tiny_config

from fsmde_jax import files
from fsmde_jax.cache_teacher import fill
from fsmde_jax.config import ConfigError, validate
from fsmde_jax.data import teacher_cache
from fsmde_jax.data.teacher_cache import TeacherCacheError
from fsmde_jax.errors import UserError
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.train import loop


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Samples are flipped, the teacher sees no jitter."""
    config = tiny_config(prepare_recording(tmp_path_factory.mktemp("cache")))
    config.teacher.binning = "soft"
    config.teacher.image = "prepared"
    config.data.downscale = 2
    config.objective.vrkd_grid = (2, 4)
    config.objective.update({name: 0.1 for name in DISTILLATION})
    config.train.steps = 4
    return config


@pytest.fixture(scope="module")
def cached(config):
    fill.build(config)
    cached = config.copy_and_resolve_references()
    cached.teacher.source = "cached"
    return cached


def test_encoding_keeps_probabilities_to_half_a_step_of_their_root():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 16)) * 3, jnp.float32)
    probabilities = jax.nn.softmax(logits)
    stored = jnp.exp(teacher_cache.decode(teacher_cache.encode(logits)))
    step = 1 / 255
    bound = jnp.sqrt(probabilities) * step + step**2 / 4 + 1e-6
    assert (jnp.abs(stored - probabilities) <= bound).all()


def test_cached_training_has_the_losses_of_online_training(config, cached, tmp_path):
    """Flips included; jitter does not reach the teacher."""
    assert loop.train(config, tmp_path / "online") is None
    assert loop.train(cached, tmp_path / "cached") is None
    records = [read_metrics(tmp_path / name) for name in ("online", "cached")]
    for online, stored in zip(*records, strict=True):
        for name in ("silog", *DISTILLATION):
            assert stored[name] == pytest.approx(online[name], rel=5e-3, abs=2e-4), name


def test_verification_passes_and_notices_a_wrong_entry(cached, capsys):
    fill.verify(cached, 6)
    assert "6 entries recomputed; largest differences: probability" in capsys.readouterr().out
    directory = teacher_cache.directory_of(cached)
    file = directory / "000000.array_record"
    content = file.read_bytes()
    cache = teacher_cache.TeacherCache(directory)
    entries = [cache.entry(i, flip) for i in range(6) for flip in (False, True)]
    wrong = [{**entry, "teacher_roots": 255 - entry["teacher_roots"]} for entry in entries]
    written = (directory / "chunks.json").read_bytes()
    teacher_cache.write_chunk(directory, 0, iter(wrong))
    with pytest.raises(TeacherCacheError, match="is not what this teacher says"):
        fill.verify(cached, 6)
    (directory / "chunks.json").write_bytes(written)
    file.write_bytes(_flipped(content))
    with pytest.raises(TeacherCacheError, match=r"000000\.array_record: damaged since they were w"):
        fill.verify(cached, 6)
    file.write_bytes(content)


def _flipped(content):
    """One bit of the first record's data (behind a block's and a chunk's header)."""
    at = 2000
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


ABOUT = {
    "samples": 4,
    "flips": False,
    "shapes": {"teacher_roots": [40, 50], "teacher_tokens": [2, 3], "teacher_log_depth": [40]},
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A cache of four samples in two files, of no teacher."""
    monkeypatch.setattr(teacher_cache, "CHUNK", 2)
    folder = tmp_path / "cache"
    teacher_cache.write_about(folder, ABOUT)
    rng = np.random.default_rng(0)
    for chunk in range(2):
        entries = [
            {name: rng.integers(0, 255, shape) for name, shape in ABOUT["shapes"].items()}
            for _ in range(2)
        ]
        teacher_cache.write_chunk(folder, chunk, iter(entries))
    teacher_cache.check(folder, ABOUT, "MAKE")
    return folder


def test_a_flipped_bit_is_noticed_when_it_is_read(small):
    file = small / "000001.array_record"
    file.write_bytes(_flipped(file.read_bytes()))
    teacher_cache.check(small, ABOUT, "MAKE")  # which looks at sizes only
    cache = teacher_cache.TeacherCache(small)
    cache.entry(0, False)
    with pytest.raises(TeacherCacheError, match=r"000001\.array_record is damaged \(.*hash mism"):
        cache.entry(2, False)
    assert teacher_cache.damaged_files(small) == [file]


def test_a_file_cut_short_is_named_and_made_again(small):
    file = small / "000000.array_record"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TeacherCacheError, match=r"lacks the samples 0 to 1 \(.*cut short.*: MAKE"):
        teacher_cache.check(small, ABOUT, "MAKE")
    teacher_cache.adopt(small, ABOUT)
    assert teacher_cache.missing_chunks(small, ABOUT) == [0]


def test_files_of_before_there_were_checksums_are_kept(small):
    expected = (small / "chunks.json").read_bytes()
    (small / "chunks.json").unlink()
    assert teacher_cache.missing_chunks(small, ABOUT) == [0, 1]
    teacher_cache.adopt(small, ABOUT)
    assert teacher_cache.missing_chunks(small, ABOUT) == []
    assert (small / "chunks.json").read_bytes() == expected


@pytest.mark.parametrize("name", ["cache.json", "chunks.json"])
def test_a_damaged_list_is_one_line(small, name):
    (small / name).write_text("{")
    with pytest.raises(UserError, match=rf"{name}: .* is damaged .*") as raised:
        teacher_cache.check(small, ABOUT, "MAKE")
    assert "\n" not in str(raised.value)
    if name == "cache.json":  # chunks without it may be of anything
        with pytest.raises(UserError, match=r"cache\.json: .* is damaged"):
            teacher_cache.write_about(small, ABOUT)
        (small / name).unlink()
        with pytest.raises(UserError, match=r"holds 000000\.array_record, .*and no cache\.json"):
            teacher_cache.write_about(small, ABOUT)


def test_one_process_at_a_time_writes_a_cache(small):
    with (
        teacher_cache.locked(small),
        pytest.raises(files.BusyError, match=r"process \d+ on .* is storing the teacher's outputs"),
        teacher_cache.locked(small),
    ):
        pass


def test_a_chunk_that_the_disk_has_no_room_for_leaves_nothing(tmp_path):
    """The writer tells it in C++, when it is closed; in a process of its own, which has a limit."""
    code = (
        "import pathlib, resource, numpy as np\n"
        "from fsmde_jax import cli; from fsmde_jax.data import teacher_cache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "fields = teacher_cache.FIELDS\n"
        "noise = np.random.default_rng(0).integers(0, 255, 50_000)\n"
        "with cli.errors_as_lines():\n"
        f"    teacher_cache.write_chunk(pathlib.Path({str(tmp_path)!r}), 0, "
        "iter([dict.fromkeys(fields, noise)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith("error: the file is larger than allowed. Once that is mended,")
    assert "Traceback" not in done.stderr and not any(tmp_path.iterdir())


def test_a_cache_cut_in_half_is_named_and_resumed(cached, monkeypatch, tmp_path):
    monkeypatch.setattr(teacher_cache, "CHUNK", 2)
    halved = cached.copy_and_resolve_references()
    halved.teacher.cache_dir = str(tmp_path / "cache")
    fill.build(halved)
    chunks = sorted((tmp_path / "cache").glob("*.array_record"))
    assert len(chunks) == 3
    kept = chunks[0].stat().st_mtime_ns
    expected = chunks[1].read_bytes()
    chunks[1].unlink()
    chunks[2].rename(chunks[2].with_suffix(".incomplete"))  # as an interruption leaves it
    with pytest.raises(TeacherCacheError, match=r"lacks the samples 2 to 3, 4 to 5 .*Resume it"):
        loop.train(halved, tmp_path / "run")
    fill.build(halved)
    assert chunks[0].stat().st_mtime_ns == kept
    assert chunks[1].read_bytes() == expected
    fill.verify(halved, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(seed=7), "teacher is 'dpt_tiny/soft"),
        (lambda c: c.data.update(downscale=1), "shapes is"),
        (lambda c: c.data.update(flip_probability=0.0), "flips is True there, False"),
        (lambda c: c.objective.update(vrkd_grid=(1, 2)), r"vrkd_grid is \[2, 4\] there"),
        (lambda c: c.teacher.update(soft_temperature=0.1), r"soft_bins is .*0\.15\] there"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name(cached, change, message, tmp_path):
    other = cached.copy_and_resolve_references()
    change(other)
    with pytest.raises(TeacherCacheError, match=message):
        loop.train(other, tmp_path)
    with pytest.raises(TeacherCacheError, match=message):
        fill.build(other)


def test_a_cache_without_what_the_objective_reads_is_refused_by_name(cached, tmp_path):
    """As they were stored before there was a term on depth."""
    other = cached.copy_and_resolve_references()
    other.teacher.cache_dir = str(tmp_path / "cache")
    shutil.copytree(teacher_cache.directory_of(cached), other.teacher.cache_dir)
    file = tmp_path / "cache" / "cache.json"
    about = json.loads(file.read_text())
    del about["shapes"]["teacher_log_depth"]
    file.write_text(json.dumps(about))
    with pytest.raises(TeacherCacheError, match=r"there, .*'teacher_log_depth'.* in the config"):
        loop.train(other, tmp_path / "run")


def test_a_missing_cache_says_how_to_make_it(cached, tmp_path):
    other = cached.copy_and_resolve_references()
    other.teacher.cache_dir = str(tmp_path / "nowhere")
    with pytest.raises(TeacherCacheError, match=r"python -m fsmde_jax\.cache_teacher"):
        loop.train(other, tmp_path / "run")


def test_jitter_the_cache_cannot_follow_is_refused(cached):
    other = cached.copy_and_resolve_references()
    other.teacher.image = "student"
    with pytest.raises(ConfigError, match="cannot follow colour jitter"):
        validate(other)


def test_zoom_the_cache_cannot_follow_is_refused(cached):
    other = cached.copy_and_resolve_references()
    other.data.zoom = 1.5
    with pytest.raises(ConfigError, match=r"config\.data\.zoom=1\.5"):
        validate(other)


def test_the_command_builds_and_verifies(cached, tmp_path):
    """In a process of its own, with another number of devices."""
    (tmp_path / "values.json").write_text(cached.to_json_best_effort())
    (tmp_path / "config.py").write_text(
        "import json, pathlib\n"
        "from fsmde_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    values = json.loads(pathlib.Path(__file__).with_name('values.json').read_text())\n"
        "    del values['teacher']['head_stage']\n"
        "    config.update(values)\n"
        "    return config\n"
    )
    command = [sys.executable, "-m", "fsmde_jax.cache_teacher"]
    command += [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path}"]
    command += [f"--config.teacher.cache_dir={tmp_path / 'cache'}"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert "6 samples" in built.stdout and "kB a sample" in built.stdout
    about = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert about["dataset"] == "ddad/32x64_png/1.0.0"
    verified = subprocess.run([*command, "--verify=2"], capture_output=True, text=True, timeout=300)
    assert verified.returncode == 0 and "2 entries recomputed" in verified.stdout, verified.stderr
