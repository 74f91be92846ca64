"""The front door: `fsmde`, how every command begins, and how its errors end."""

import contextlib
import ctypes
import functools
import importlib
import io
import itertools
import logging
import math
import os
import re
import signal
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

import fsmde_jax
from fsmde_jax import config as config_lib
from fsmde_jax import files
from fsmde_jax.config import ConfigError
from fsmde_jax.errors import UserError, did_you_mean

# The exit code of a command that another process keeps from working (sysexits.h).
BUSY = 75
# In a process that another command started: the id of that one, with which it ends.
PARENT = "FSMDE_JAX_PARENT"


COMMANDS = {  # of `fsmde`: the module that `start` runs, and what it does
    "train": ("main", "Train a student by a config, then evaluate it."),
    "prepare": ("prepare.__main__", "Turn a raw recording into a prepared dataset."),
    "evaluate": ("evaluate.__main__", "Measure a run, or depth maps of any method."),
    "compare": ("evaluate.compare", "Say whether two results differ."),
    "sparsification": ("evaluate.sparsification", "Measure what a student's confidence is worth."),
    "predict": ("predict.__main__", "Depth, pictures and point clouds by a trained student."),
    "export": ("export.__main__", "Write a trained student that stands alone."),
    "study": ("study.__main__", "Train many arms and seeds, and report on them."),
    "benchmark": ("benchmark.__main__", "Measure how fast a config is on this device."),
    "cache_teacher": ("cache_teacher.__main__", "Store a teacher's outputs for many runs."),
    "world": ("world.__main__", "Write a miniature world as a raw recording."),
}
_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")
_REQUIRED = re.compile(r"Flag (--\w+) must have a value")  # absl's words for one that lacks
_WIDTH = 88  # of help


def fsmde() -> None:
    """The console script: `fsmde train ...` is `python -m fsmde_jax.main ...`, and so on."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(f"fsmde_jax {fsmde_jax.__version__}")
    elif name in _HELP:
        print(fsmde_jax.__doc__.splitlines()[0] + "\n")
        for command, (_, does) in COMMANDS.items():
            print(f"  fsmde {command:<15} {does}")
        print("\nfsmde COMMAND --help shows how to use one; fsmde --version says which this is.")
    elif name not in COMMANDS:
        sys.exit(f"error: fsmde has no command {name!r}{did_you_mean(name, COMMANDS)}")
    else:
        sys.argv = [f"fsmde {name}", *sys.argv[2:]]
        start(f"fsmde_jax.{COMMANDS[name][0]}")


def start(name: str) -> None:
    """Runs a module as a command; a user's mistake is one line.

    It has `define_flags()`, `main(argv)`, and a docstring, which `--help` shows. Where it takes
    arguments without a flag, `ARGUMENTS` says what they are called.

    Args:
      name: the module's, "__main__" for the one that Python was started with.
    """
    with errors_as_lines():
        module, others = importlib.import_module(name), set(flags.FLAGS)
        module.define_flags()
        defined = itertools.chain(*flags.FLAGS.flags_by_module_dict().values())
        own = [flag for flag in defined if flag.name not in others]
        app.run(module.main, flags_parser=functools.partial(_parse, module, own))


def define_config(what: str, required: bool = True, key: str = "task") -> None:
    """Declares `--config`, which gets what `config.from_file` takes, and `--config.KEY=VALUE`.

    Args:
      what: what the config is for, a sentence.
      key: one that the config has; others are for another command.
    """
    more = "A .py file or a name (demo), and :VARIANT. --config.KEY=VALUE changes a key."
    config_flags.DEFINE_config_file("config", None, f"{what} {more}")
    flags.FLAGS["config"].parser = _ConfigParser(key)
    if required:
        flags.mark_flag_as_required("config")


class _ConfigParser(flags.ArgumentParser):
    def __init__(self, key: str):
        self.key = key

    def parse(self, argument: str) -> ConfigDict:
        config = config_lib.from_file(argument)
        if self.key not in config:
            raise ConfigError(f"a config without {self.key!r} is not for {_typed()}")
        return config.lock()


def _parse(module: types.ModuleType, own: list[flags.Flag], argv: list[str]) -> list[str]:
    """Reads the flags and returns the other arguments; `--help` and mistakes end the process."""
    if asked := [argument for argument in argv[1:] if argument in _HELP]:
        print(_help(module, own))
        if "--helpfull" in asked:
            print(flags.FLAGS.get_help())
        sys.exit()
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        if name.startswith("config.") and "config" in flags.FLAGS:
            sys.exit(f"error: --{name} changes a config: name that first, by --config")
        hint = did_you_mean(f"--{name}", ["--help", *(f"--{flag.name}" for flag in own)])
        sys.exit(f"error: {_typed()} has no flag --{name}{hint}")
    except flags.Error as error:
        if missing := _REQUIRED.findall(str(error)):
            sys.exit(f"error: {_typed()} needs {' and '.join(missing)}; see {_typed()} --help")
        sys.exit(f"error: {' '.join(str(error).split())}")
    except (AttributeError, KeyError) as error:
        what = error.args[0]
        what = what.args[0] if isinstance(what, Exception) else what  # ml_collections wraps it
        sys.exit("error: --config has no key " + " ".join(str(what).split()))
    wanted = getattr(module, "ARGUMENTS", ())
    if len(rest) - 1 > len(wanted):
        sys.exit(f"error: unexpected argument {rest[len(wanted) + 1]!r}; options start with --")
    if len(rest) - 1 < len(wanted):
        sys.exit(f"error: {_typed()} needs {' and '.join(wanted)}; see {_typed()} --help")
    return rest


def _help(module: types.ModuleType, own: list[flags.Flag]) -> str:
    """The module's docstring, with commands as the user calls them, and its own flags."""
    text = module.__doc__.rstrip()
    if _typed().startswith("fsmde "):
        for command, (name, _) in COMMANDS.items():
            called = f"python -m fsmde_jax.{name.removesuffix('.__main__')}"
            text = re.sub(rf"{re.escape(called)}(?![.\w])", f"fsmde {command}", text)
    about = {flag.name: flag.help for flag in own}
    for flag in own:
        if flag.default:
            listed = isinstance(flag.default, list)
            about[flag.name] += f" Default: {','.join(flag.default) if listed else flag.default}."
        if any(_REQUIRED.match(validator.message) for validator in flag.validators):
            about[flag.name] += " Needed."
    about["helpfull"] = "Lists the flags of the libraries, too."
    text, width = f"{text}\n", max(map(len, about))
    for name, words in about.items():
        first, rest = f"  --{name:<{width}}  ", " " * (width + 6)
        wrapped = textwrap.wrap(words, _WIDTH, initial_indent=first, subsequent_indent=rest)
        text += "\n".join(["", *wrapped])
    return text


def _typed() -> str:
    """What the user called this command by."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:  # a script, as `fsmde` is
        return sys.argv[0]
    return f"python -m {spec.name.removesuffix('.__main__')}"


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
