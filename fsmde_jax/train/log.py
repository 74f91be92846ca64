"""What a run tells while it trains: metrics.jsonl, TensorBoard, lines on the terminal."""

import contextlib
import json
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from fsmde_jax import files
from fsmde_jax.run.state import count_parameters

log = logging.getLogger(__name__)


class MetricsWriter:
    """Writes metrics.jsonl and TensorBoard events into a run's folder.

    A resumed run drops what was written after `first_step`, its checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int):
        self._path = workdir / "metrics.jsonl"
        self._main = jax.process_index() == 0
        if not self._main:
            return
        self._keep(first_step)
        # tensorboardX's SummaryWriter would hang on a full disk: its thread ends and it waits.
        self._events = EventsWriter(str(workdir / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._event(first_step + 1, session_log=start)  # hides events after `first_step`

    def _keep(self, first_step: int) -> None:
        """Drops the lines after `first_step`.

        The file is set aside where lines can't be read, and where this run begins at step 0: then
        they are of a run whose checkpoints are gone.
        """
        content = self._path.read_bytes() if self._path.exists() else b""
        whole, _, _ = content.rpartition(b"\n")  # a kill cuts the last line short
        lines = whole.split(b"\n") if whole else []
        steps = [_step_of(line) for line in lines]
        if first_step and not lines:
            log.warning("%s is missing: the lines before step %d are lost", self._path, first_step)
        if None in steps:
            aside = files.set_aside(self._path, "damaged")
            log.warning("%d lines of %s cannot be read", steps.count(None), aside)
        elif lines and not first_step:
            aside = files.set_aside(self._path, "earlier")
            log.warning("This run begins at step 0; the lines of before are in %s", aside)
        pairs = zip(lines, steps, strict=True)
        kept = [line + b"\n" for line, step in pairs if step is not None and step <= first_step]
        with files.replacing(self._path) as partial:
            partial.write_bytes(b"".join(kept))

    def write(self, step: int, kind: str, scalars: dict[str, Any]) -> None:
        """One line; `kind` is "train", "speed" or "eval"."""
        if not self._main:
            return
        values = {name: float(value) for name, value in scalars.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            self._event(step, summary=summary.scalar(f"{kind}/{name}", value))
        self._events.flush()

    def show(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture for TensorBoard."""
        if self._main:
            self._event(step, summary=summary.image(name, picture, dataformats="HWC"))
            self._events.flush()

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Flushes the event file."""
        if self._main:
            self._events.close()


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None for one that is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class Timer:
    """Measures images per second since the last log, and estimates the time to go."""

    def __init__(self, steps: int, images_per_step: int):
        self.steps, self.images_per_step = steps, images_per_step
        self._since, self._count, self._rate = None, 0, 0.0
        self._step = 0

    def tick(self, step: int) -> None:
        """Counts a step; the first one, which compiles, starts the clock."""
        self._step = step
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._count += 1

    def speed(self) -> dict[str, float]:
        """Images per second and seconds to go; starts the next interval."""
        elapsed = time.monotonic() - self._since
        if self._count:
            self._rate = self._count * self.images_per_step / max(elapsed, 1e-9)
            self._since, self._count = time.monotonic(), 0
        left = (self.steps - self._step) * self.images_per_step
        return {
            "images_per_second": self._rate,
            "eta_s": left / self._rate if self._rate else float("nan"),
        }

    def line(self, step: int, scalars: dict[str, Any]) -> str:
        """A line for people: the step, its terms, images per second and the time to go."""
        named = "  ".join(f"{name} {float(value):.4g}" for name, value in scalars.items())
        left = (self.steps - step) * self.images_per_step / self._rate if self._rate else 0.0
        return f"step {step}/{self.steps}  {named}  {self._rate:.0f} images/s  ETA {left:.0f} s"


@contextlib.contextmanager
def announce_compiling(name: str) -> Iterator[None]:
    """Says that the step is being compiled, which is silent, and then how long it took."""
    log.info("%s: compiling the training step, once: seconds to minutes of silence", name)
    began = time.monotonic()
    yield
    log.info("%s: compiled in %.0f s", name, time.monotonic() - began)


def parameter_text(tree: Any) -> str:
    """How many parameters a tree of arrays has, in words."""
    return f"{count_parameters(tree) / 1e6:.2f} M parameters"


def device_text(mesh: Mesh) -> str:
    """The devices of a mesh, in words."""
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{mesh.size} {jax.devices()[0].device_kind} device(s), {shape}"
