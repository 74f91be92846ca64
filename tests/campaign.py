"""Kills, damage and full disks at random: what can a user lose?

    python tests/campaign.py kills --count=20 --out=kills.md
    python tests/campaign.py damage --out=damage.md
    python tests/campaign.py full_disk --out=full_disk.md     (as root: it mounts small disks)

`kills` ends every command by SIGKILL at a random instant, looks for processes that live on, runs
the same command again and compares with an uninterrupted one. `damage` cuts, flips a bit of, and
removes one file of every kind that a run, its data and its caches have, and sees whether what reads
them names the fault or bears it. `full_disk` runs every command that writes on a disk that is too
small, then again on one that is not. `test_campaign.py` is the short form.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = HERE / "campaign_config.py"
STUDY = HERE / "campaign_study.py"
MARK = "FSMDE_CAMPAIGN"  # in the environment of all processes of a command
SECONDS_TO_END = 3.0  # that a child may outlive its parent
CHECKPOINT_BEING_WRITTEN = "*orbax-checkpoint-tmp*"


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, what it needs from the uninterrupted run, and what it leaves.

    Attributes:
      arguments: of `python`, with {ref} and {out} for the folders.
      after: a job of `BASES` that must have run, or "".
      needs: parts of its folder that are copied into this job's before it.
      watch: what appears in {out} when the work begins; a glob.
      result: of the folder, everything that must equal an uninterrupted run's.
    """

    name: str
    arguments: tuple[str, ...]
    after: str
    needs: tuple[str, ...]
    watch: str
    result: Callable[[pathlib.Path], dict]


def digests(folder: pathlib.Path, pattern: str) -> dict[str, str]:
    """SHA-256 of the files that match, by relative path."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob(pattern))
        if file.is_file()
    }


def arrays(folder: pathlib.Path, pattern: str) -> dict[str, str]:
    """SHA-256 of the arrays of the .npz files that match."""
    found = {}
    for file in sorted(folder.glob(pattern)):
        with np.load(file) as content:
            for name in content.files:
                digest = hashlib.sha256(np.ascontiguousarray(content[name]).tobytes())
                found[f"{file.relative_to(folder)}:{name}"] = digest.hexdigest()
    return found


def curve(run: pathlib.Path) -> list[dict]:
    """The training lines of metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def figures(report: pathlib.Path) -> dict:
    """The figures of a results.json."""
    return json.loads((report / "results.json").read_text())["methods"]


def of_training(out: pathlib.Path) -> dict:
    """What a run is: its curves and figures."""
    run = out / "run"
    return {
        "curve": curve(run),
        "head": curve(run / "teacher_head"),
        "figures": figures(run / "report"),
    }


def of_study(out: pathlib.Path) -> dict:
    """The figures of each run of a study."""
    return {
        arm: figures(out / f"study/runs/{arm}/seed0/test") for arm in ("supervised", "ckd_vrkd")
    }


_WHOLE = "all stages"
BASES = ("world", _WHOLE)  # what the others are run on; into one folder
_MAIN = ("-m", "fsmde_jax.main", f"--config={CONFIG}", "--workdir={out}/run")
_DATA = "--config.data.data_dir={out}/data"
JOBS = {
    job.name: job
    for job in (
        Job(
            "world",
            ("-m", "fsmde_jax.world", "--out={out}/world", "--train_scenes=6",
             "--val_scenes=2", "--samples_per_scene=1"),
            "",
            (),
            "world/*",
            lambda out: digests(out / "world", "**/*"),
        ),
        Job(
            "rig world",
            ("-m", "fsmde_jax.world", "--out={out}/world", "--train_scenes=3",
             "--val_scenes=1", "--samples_per_scene=1", "--layout=rig"),
            "",
            (),
            "*world*/*",
            lambda out: digests(out / "world", "**/*"),
        ),
        Job(
            "prepare",
            ("-m", "fsmde_jax.prepare", "--dataset=world",
             "--source={ref}/world", "--data_dir={out}/prepared", "--image_size=96x160",
             "--num_workers=2"),
            "world",
            (),
            "prepared/world/*/*",
            lambda out: digests(out / "prepared", "**/*.array_record*"),
        ),
        Job("train", (*_MAIN, _DATA), _WHOLE, ("data",), "run/metrics.jsonl", of_training),
        Job(_WHOLE, (*_MAIN, _DATA), "", (), "data/*", of_training),
        Job(
            "cache",
            ("-m", "fsmde_jax.cache_teacher", f"--config={CONFIG}:cached",
             "--workdir={out}/cached", _DATA),
            _WHOLE,
            ("data",),
            "cached/*",
            lambda out: digests(out / "data", "**/teacher_cache/*.array_record"),
        ),
        Job(
            "study",
            ("-m", "fsmde_jax.study", f"--config={STUDY}", "--workdir=study"),
            _WHOLE,
            ("data",),
            "study/*",
            of_study,
        ),
        Job(
            "export",
            ("-m", "fsmde_jax.export", "--checkpoint={ref}/run", "--format=orbax",
             "--out={out}/exported"),
            _WHOLE,
            (),
            "*exported*",
            lambda out: arrays(out / "exported", "self_test.npz"),
        ),
        Job(
            "predict",
            ("-m", "fsmde_jax.predict", "--checkpoint={ref}/run", "--out={out}/predicted",
             "--save=depth,npz,cloud"),
            _WHOLE,
            (),
            "*predicted*",
            lambda out: arrays(out / "predicted", "npz/**/*.npz")
            | digests(out / "predicted", "depth/**/*.png"),
        ),
        Job(
            "evaluate",
            ("-m", "fsmde_jax.evaluate", "--checkpoint={ref}/run", "--out={out}/evaluated"),
            _WHOLE,
            (),
            "*evaluated*",
            lambda out: figures(out / "evaluated"),
        ),
    )
}  # fmt: skip


class Bench:
    """Folders of a campaign, and running its commands."""

    def __init__(self, root: pathlib.Path):
        self.root, self.reference = root, root / "reference"
        self.cache = root / "compiled"
        self.reference.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        self.written: dict[str, int] = {}  # bytes
        self.expected: dict[str, dict] = {}

    def command(self, job: Job, out: pathlib.Path) -> list[str]:
        """The job's command for a folder."""
        names = {"ref": self.reference, "out": out}
        return [sys.executable, *(part.format(**names) for part in job.arguments)]

    def environment(self, mark: str) -> dict[str, str]:
        """One device, little optimising, and a mark to find the processes by."""
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        return {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            MARK: mark,
        }

    def start(self, job: Job, out: pathlib.Path) -> subprocess.Popen:
        """The command, its output in a file beside the folder."""
        out.mkdir(parents=True, exist_ok=True)
        with self._log(out).open("a") as log:
            return subprocess.Popen(
                self.command(job, out),
                env=self.environment(str(out)),
                cwd=out,
                stdout=log,
                stderr=log,
            )

    def run(self, job: Job, out: pathlib.Path) -> tuple[int, str]:
        """The command to its end: exit code and what it said."""
        log = self._log(out)
        before = log.stat().st_size if log.exists() else 0
        code = self.start(job, out).wait()
        return code, log.read_bytes()[before:].decode(errors="replace")

    def _log(self, out: pathlib.Path) -> pathlib.Path:
        return self.root / f"{out.name}.log"

    def place(self, job: Job, out: pathlib.Path) -> None:
        """What the job needs, copied from the uninterrupted run."""
        for name in job.needs:
            shutil.copytree(self.reference / name, out / name)

    def uninterrupted(self, names: Iterable[str]) -> None:
        """Runs each job once, and before them what they are run on."""
        before = {JOBS[name].after for name in names} - {""}
        for name in dict.fromkeys([*sorted(before), *names]):
            if name in self.expected:
                continue
            job, out = JOBS[name], self.root / f"whole_{name}"
            if name in BASES:
                out = self.reference
            self.place(job, out)
            there = size_of(out)
            started = time.monotonic()
            code, text = self.run(job, out)
            if code:
                raise SystemExit(f"{name} fails without any fault:\n{text[-3000:]}")
            self.seconds[name] = time.monotonic() - started
            self.written[name] = size_of(out) - there
            self.expected[name] = job.result(out)


def processes_of(mark: str) -> list[int]:
    """Processes that still run with a mark in their environment."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            content = (folder / "environ").read_bytes()
            alive = "\nState:\tZ" not in (folder / "status").read_text()
            if f"{MARK}={mark}\0".encode() in content and alive:
                found.append(int(folder.name))
    return found


# Kills


def kill_once(bench: Bench, job: Job, number: int, rng: random.Random, at_save: bool) -> dict:
    """Kills the job once, runs it again, and says how that ended."""
    out = bench.root / f"kill_{number}"
    bench.place(job, out)
    child = bench.start(job, out)
    started = time.monotonic()
    while child.poll() is None and not any(out.glob(job.watch)):
        time.sleep(0.01)
    began = time.monotonic() - started
    if at_save:
        while child.poll() is None and not any((out / "run").rglob(CHECKPOINT_BEING_WRITTEN)):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
    else:
        left = max(bench.seconds[job.name] - began, 0.5)
        deadline = time.monotonic() + rng.uniform(0, left)
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    early = child.poll() is None
    after = time.monotonic() - started
    child.kill()
    child.wait()
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := processes_of(str(out))) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, 9)
    code, text = (0, "") if not early else bench.run(job, out)
    row = {"job": job.name, "after_s": round(after, 1), "while": "saving" if at_save else "any"}
    row["killed"] = "yes" if early else "it had ended"
    row["left_running"] = len(left)
    if code:
        row["again"] = f"exit {code}: {text.strip().splitlines()[-1][:200]}"
    elif "Traceback" in text:
        row["again"] = "a traceback"
    else:
        row["again"] = "equal" if job.result(out) == bench.expected[job.name] else "DIFFERENT"
    row["good"] = row["again"] == "equal" and not left
    if row["good"]:
        shutil.rmtree(out)
    return row


# Twelve trainings in twenty, some of them while they save.
_PLAN = ("train", "world", "train!", "prepare", "train", "cache", "train!", "study", "train",
         "export", "train!", "predict", "train", "all stages", "train!", "rig world", "train",
         "train!", "train", "train!")  # fmt: skip


def kills(bench: Bench, count: int, seed: int) -> list[dict]:
    """`count` kills at random instants."""
    rng = random.Random(seed)
    plan = [_PLAN[i % len(_PLAN)] for i in range(count)]
    bench.uninterrupted(sorted({name.rstrip("!") for name in plan}))
    rows = []
    for number, name in enumerate(plan):
        job = JOBS[name.rstrip("!")]
        rows.append(kill_once(bench, job, number, rng, at_save=name.endswith("!")))
        print(rows[-1], flush=True)
    return rows


# Damage


def kind_of(path: pathlib.Path) -> str:
    """A file's kind: its relative path without numbers and digests."""
    text = re.sub(r"[0-9a-f]{16,}", "#", str(path))
    return re.sub(r"\d+", "#", text)


def one_of_each_kind(folder: pathlib.Path) -> list[pathlib.Path]:
    """Of every kind of file the newest, and of those the largest."""
    kinds: dict[str, pathlib.Path] = {}

    def rank(file: pathlib.Path) -> tuple:
        numbers = re.findall(r"\d+", str(file.relative_to(folder).parent))
        return [int(number) for number in numbers], file.stat().st_size

    for file in sorted(folder.rglob("*")):
        if file.is_file():
            kind = kind_of(file.relative_to(folder))
            kinds[kind] = max(kinds.get(kind, file), file, key=rank)
    return list(kinds.values())


def cut(path: pathlib.Path, _: random.Random) -> None:
    """Leaves the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path, rng: random.Random) -> None:
    """Flips one bit."""
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def remove(path: pathlib.Path, _: random.Random) -> None:
    """Removes the file."""
    path.unlink()


DAMAGES = {"cut": cut, "bit flipped": flip, "removed": remove}


def read_all(folder: pathlib.Path) -> dict:
    """All that commands read of a run, its data and its caches; digests by what was read."""
    import jax
    from flax import nnx

    from fsmde_jax import config as config_lib
    from fsmde_jax.data import prepared, teacher_cache
    from fsmde_jax.evaluate import results
    from fsmde_jax.prepare.folder import prepare
    from fsmde_jax.run.load import load_student
    from fsmde_jax.train import loop

    run, data = folder / "run", folder / "data"
    found = {}
    for name in ("run", "run/teacher_head"):
        config = config_lib.load_config(folder / name)
        config.data.data_dir = str(data)
        loop.train(config, folder / name)  # it is done: reads the state, or makes it again
        found[f"curve of {name}"] = curve(folder / name)
    config = config_lib.load_config(run)
    leaves = jax.tree.leaves(nnx.state(load_student(config, run)))
    found["student"] = _digest(np.asarray(leaf) for leaf in leaves)
    found["results"] = results.read(run)["methods"]
    raw = data / "world_raw" / "campaign"
    prepare("world", raw, data, (32, 64), config_name="campaign")
    for split in ("train", "val"):
        source = prepared.open_split(data, "world", "campaign", split)
        for index in range(len(source)):
            sample = sorted(source[index].items())
            found[f"{split} {index}"] = _digest(np.asarray(value) for _, value in sample)
    cache = teacher_cache.TeacherCache(data / "world" / "campaign" / "teacher_cache")
    for index in range(cache.about["samples"]):
        found[f"cache {index}"] = _digest(cache.entry(index, False).values())
    return found


def _digest(values: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value.shape} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def damage_once(
    bench: Bench, file: pathlib.Path, kind: str, expected: dict, rng: random.Random
) -> dict:
    """Damages one file of a copy of the uninterrupted run and reads everything."""
    from fsmde_jax.errors import UserError

    relative = file.relative_to(bench.reference)
    folder = bench.root / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bench.reference, folder)
    DAMAGES[kind](folder / relative, rng)
    row = {"file": kind_of(relative), "damage": kind, "outcome": "borne", "said": ""}
    try:
        found = read_all(folder)
        if found != expected:
            wrong = [name for name in expected if found.get(name) != expected[name]]
            row |= {"outcome": "UNNOTICED", "said": f"{', '.join(wrong[:3])} differ"}
    except (UserError, FloatingPointError) as error:
        row |= {"outcome": "named", "said": str(error)}
        parts = {relative.name, *(part.name for part in relative.parents if part.name)}
        if not any(part in str(error) for part in parts):
            row["outcome"] = "BLAMED WRONGLY"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        row |= {"outcome": "TRACEBACK", "said": f"{error!r} in {last.filename}:{last.lineno}"}
    row["said"] = row["said"].replace(str(folder), "").splitlines()[0][:160] if row["said"] else ""
    row["good"] = row["outcome"] in ("borne", "named")
    return row


def damage(bench: Bench, seed: int, only: str = "") -> list[dict]:
    """Every kind of damage to one file of every kind whose path matches `only`."""
    rng = random.Random(seed)
    bench.uninterrupted([_WHOLE])
    code, text = bench.run(JOBS["cache"], bench.reference)
    if code:
        raise SystemExit(f"cache fails without any fault:\n{text[-3000:]}")
    expected = read_all(bench.reference)
    rows = []
    for file in one_of_each_kind(bench.reference):
        relative = file.relative_to(bench.reference)
        # The run that stored the cache is one more of the same kind, which `read_all` leaves out.
        if relative.parts[0] in ("run", "data") and re.search(only, str(relative)):
            for kind in DAMAGES:
                rows.append(damage_once(bench, file, kind, expected, rng))
                print(rows[-1], flush=True)
    return rows


# Full disks


@contextlib.contextmanager
def disk(folder: pathlib.Path, size: int) -> Iterator[None]:
    """A disk of so many bytes at `folder`; only root may do that."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def size_of(folder: pathlib.Path) -> int:
    """Bytes of its files, in blocks."""
    files = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return sum(-(-size // 4096) * 4096 for size in files)


def full_disk_once(bench: Bench, job: Job, share: float) -> dict:
    """Runs the job where only a share of what it writes fits, then where all does."""
    out = bench.root / f"disk_{job.name}_{share}"
    needed = sum(size_of(bench.reference / name) for name in job.needs)
    written = bench.written[job.name]
    row = {"job": job.name, "fits": f"{share:.0%}"}
    with disk(out, needed + int(share * written) + 2**16):
        bench.place(job, out)
        code, text = bench.run(job, out)
        last = text.strip().splitlines()[-1] if text.strip() else ""
        row["said"] = last.replace(str(out), "")[-160:]
        if not code:
            row["first"] = "it fitted"
        else:
            clear = last.startswith("error:") and "Traceback" not in text
            row["first"] = "one line" if clear else "UNCLEAR"
        subprocess.run(
            ["mount", "-o", f"remount,size={needed + 8 * written + 2**26}", out], check=True
        )
        code, text = bench.run(job, out)
        if code:
            row["again"] = f"exit {code}: {text.strip().splitlines()[-1][:160]}"
        else:
            row["again"] = "equal" if job.result(out) == bench.expected[job.name] else "DIFFERENT"
    row["good"] = row["first"] != "UNCLEAR" and row["again"] == "equal"
    return row


# A finished export, prediction or report is not made again over itself, so these stop before.
_DISK_JOBS = ("world", "prepare", "all stages", "train", "cache", "study", "export", "predict",
              "evaluate")  # fmt: skip


def full_disk(bench: Bench, names: Sequence[str] = _DISK_JOBS) -> list[dict]:
    """Every command that writes, on disks of three sizes."""
    bench.uninterrupted(list(names))
    rows = []
    for name in names:
        for share in (0.2, 0.6, 0.9):
            rows.append(full_disk_once(bench, JOBS[name], share))
            print(rows[-1], flush=True)
    return rows


# The command


def table(rows: list[dict]) -> str:
    """Markdown."""
    from fsmde_jax import markdown

    names = [name for name in rows[0] if name != "good"]
    cells = [[str(row[name]).replace("|", "/") for name in names] for row in rows]
    return markdown.table(names, cells)


def main() -> int:
    """Runs one campaign; 1 if anything was lost or went unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=("kills", "damage", "full_disk"))
    parser.add_argument("--count", type=int, default=20, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="damage: files whose path matches")
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file for the table")
    parser.add_argument("--keep", type=pathlib.Path, help="an empty folder to work in, kept")
    values = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((values.keep or pathlib.Path(temporary)).resolve())
        if values.campaign == "kills":
            rows = kills(bench, values.count, values.seed)
        elif values.campaign == "damage":
            rows = damage(bench, values.seed, values.only)
        else:
            rows = full_disk(bench)
    good = sum(row["good"] for row in rows)
    text = f"{good} of {len(rows)} good (`python tests/campaign.py {' '.join(sys.argv[1:])}`)"
    if values.out:
        values.out.write_text(f"{text}\n\n{table(rows)}\n")
    print(text)
    return int(good < len(rows))


if __name__ == "__main__":
    sys.exit(main())
