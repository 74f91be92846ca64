"""The house: where things are is written down, and nothing imports upward."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fsmde_jax"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
MODULES = sorted(PACKAGE.rglob("*.py"))
# CONTRIBUTING.md has the same as a table; lowest first. What stands side by side is apart.
LAYERS = (
    ("errors", "markdown"),
    ("files",),
    ("precision",),
    ("rig",),
    ("config",),
    ("cli",),
    ("models",),
    ("data",),
    ("losses",),
    ("pictures",),
    ("world", "prepare"),
    ("tasks",),
    ("run",),
    ("evaluate",),
    ("train",),
    ("cache_teacher", "export"),
    ("make",),
    ("predict",),
    ("study", "benchmark"),
    ("main", "api", "configs", "__main__"),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
DOOR = "__init__"  # of the package: what `import fsmde_jax` gives


def part_of(path: tuple[str, ...]) -> str:
    """The folder of the package that a module is in, or its own name if it is no part of one."""
    return "__main__" if "__main__" in path else path[0]


def imported(module: pathlib.Path) -> set[str]:
    """The package's parts that a module imports, also within functions."""
    paths = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            paths += [(*node.module.split("."), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            paths += [tuple(alias.name.split(".")) for alias in node.names]
    within = [path[1:] for path in paths if path[0] == "fsmde_jax" and len(path) > 1]
    return {part_of(path) for path in within if not path[0].startswith("__")}  # no __version__


def modules_in_the_tree() -> dict[str, str]:
    """What CONTRIBUTING.md's tree says of each module, by its path in the package."""
    block = CONTRIBUTING.read_text().split("    fsmde_jax/\n")[1].split("    tfds_builders/")[0]
    found, folders = {}, []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 3
        name, _, what = line.strip().partition(" ")
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            found["".join(folders) + name] = what.strip()
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_nothing_imports_upward(module):
    own = part_of(module.relative_to(PACKAGE).with_suffix("").parts)
    if own == DOOR:
        return
    assert own in HEIGHT, f"give {own} a layer, here and in CONTRIBUTING.md"
    above = {name for name in imported(module) - {own} if HEIGHT[name] >= HEIGHT[own]}
    assert not above, f"{own} imports {above}, which stands above or beside it"


def test_the_layers_are_written_down():
    rows = re.findall(r"^\| \d+ \| (.+) \|$", CONTRIBUTING.read_text(), flags=re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", row)) for row in rows] == list(LAYERS)


def test_the_tree_lists_every_module():
    modules = {str(m.relative_to(PACKAGE)) for m in MODULES if m.name != "__init__.py"}
    listed = modules_in_the_tree()
    assert modules == listed.keys()
    assert all(listed.values())
