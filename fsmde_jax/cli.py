"""How every command begins, and how its errors end."""

import contextlib
import ctypes
import io
import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging

from fsmde_jax import files
from fsmde_jax.errors import UserError

# The exit code of a command that another process keeps from working (sysexits.h).
BUSY = 75
# In a process that another command started: the id of that one, with which it ends.
PARENT = "FSMDE_JAX_PARENT"


def start(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run`; a config file or `--config.KEY=` that is not there is one line of error."""
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = app.parse_flags_with_usage(argv)
        hasattr(flags.FLAGS.config, "name")  # a file that could not be read is told when it is used
    except OSError as error:
        sys.exit(f"error: --config: {str(error).splitlines()[-1].strip()}")
    except (AttributeError, KeyError) as error:
        if any(frame.name == "get_config" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # a fault of the config file, whose place is worth knowing
        what = error.args[0]
        what = what.args[0] if isinstance(what, Exception) else what  # ml_collections wraps it
        sys.exit("error: --config has no key " + " ".join(str(what).split()))
    return rest


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """What a user can mend, files that cannot be used, and Ctrl-C end the command with one line.

    The exit code is 1, `BUSY` where another process is at work, 130 on Ctrl-C.
    """
    try:
        yield
    except files.BusyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BUSY)
    except (UserError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if problem := files.disk_problem(error):
            sys.exit(f"error: {problem}. Once that is mended, the same command goes on")
        if isinstance(error, OSError):
            sys.exit(f"error: {error}")
        raise
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # the shell's convention


def set_up() -> None:
    """Says what this package does at INFO; compiled functions last over runs, memory over steps.

    JAX_COMPILATION_CACHE_DIR is honoured. A process that another command started ends with it.
    """
    import jax  # slow to import, and what only reads files does without

    if parent := os.environ.pop(PARENT, None):
        files.end_with_parent(int(parent))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not know a δ, or a file's name
        sys.stdout.reconfigure(errors="backslashreplace")
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells much at INFO
    # Its threads tell of a full disk with tracebacks, and the error comes out of it as well.
    absl_logging.get_absl_logger().addFilter(
        lambda record: not (record.exc_info and files.disk_problem(record.exc_info[1]))
    )
    logging.getLogger("fsmde_jax").setLevel(logging.INFO)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/fsmde_jax/xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    _keep_freed_memory()


def num_cores() -> int:
    """How many cores this process may use: by its affinity and its cgroups' CPU quota (Linux)."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([usable, *_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _quotas(membership: Path, mount: Path) -> Iterator[int]:
    """Cores by each CPU quota of the process's cgroups (v1 or v2), rounded up.

    In a container the path in `membership` may be the host's; what counts then is at `mount`.
    """
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        for folder in (mount / controllers / part for part in (group, *group.parents)):
            try:
                if controllers:
                    quota, period = (
                        (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
                    )
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
            except OSError:
                continue
            if quota != "max" and int(quota) > 0:
                yield math.ceil(int(quota) / int(period))


def _keep_freed_memory() -> None:
    """Tells glibc not to give large blocks back to the system; elsewhere nothing.

    On CPUs XLA frees its temporaries after each call. The system clears their pages before the
    next one gets them: a fifth of the demo's training step on two cores. What a worker takes in one
    piece of more than 64 MB is mapped anew all the same; in huge pages, which only the environment
    can ask for (GLIBC_TUNABLES=glibc.malloc.hugetlb=1), that costs half.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never, however much is free


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
