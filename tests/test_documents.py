"""The pages: links lead somewhere, what they name exists, and README can be read aloud."""

import pathlib
import re

import numpy as np
import pytest

from fsmde_jax.config import default_config, flatten

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("fsmde_jax", "tfds_builders", "tests", "configs", "colab")
PAGES = [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))]
README = ROOT / "README.md"
JOBS = sorted(ROOT.glob("fsmde_jax/*/README.md"))  # a page a folder that people use
SCRIPTS = {  # `fsmde X` where X is not the module's name
    "train": "main",
    "compare": "evaluate.compare",
    "sparsification": "evaluate.sparsification",
}
FILES = {str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).rglob("*.*")}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
what_people_read = pytest.mark.parametrize(
    "page", [README, *JOBS], ids=lambda page: str(page.relative_to(ROOT))
)


def paragraphs(page: pathlib.Path) -> list[str]:
    """Prose alone: no code, tables, headings, pictures and addresses; a list item is one."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`\n]*(\n[^`\n]+)?`", "code", text)
    text = re.sub(r"^(    .*|\|.*|#.*)$", "", text, flags=re.MULTILINE)
    items = re.sub(r"^(- |\d+\. )", "\n", text, flags=re.MULTILINE)
    return [" ".join(found.split()) for found in re.split(r"\n\s*\n", items) if found.strip()]


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?])[\"*)]*\s+", paragraph)


def commands(page: pathlib.Path) -> list[tuple[str, str]]:
    """Every `python -m fsmde_jax.X ...` or `fsmde X ...` of a page: the module, what follows."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(r"(?:python -m (fsmde_jax[\w.]*)|`fsmde (\w+))([^`\n|&>]*)", text)
    return [
        (module or f"fsmde_jax.{SCRIPTS.get(name, name)}", rest) for module, name, rest in found
    ]


def source_of(module: str) -> pathlib.Path:
    """The file that `python -m MODULE` runs."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def flags_of(module: str) -> set[str]:
    source = source_of(module).read_text()
    config = {"config"} if "cli.define_config(" in source else set()
    return config | set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source))


def anchors(page: pathlib.Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


@what_people_read
def test_sentences_are_short(page):
    every = [sentence for paragraph in paragraphs(page) for sentence in sentences(paragraph)]
    assert not [s for s in every if len([w for w in s.split() if re.search(r"\w", w)]) > 30]


def test_no_paragraph_of_readme_is_full_of_figures():
    figures = {p: re.findall(r"\S*\d\S*", p) for p in paragraphs(README)}
    assert not {p: found for p, found in figures.items() if len(found) > 3}


def test_every_job_has_a_page_that_readme_links_to():
    jobs = {file.parent for file in ROOT.glob("fsmde_jax/*/__main__.py")}
    assert jobs <= {page.parent for page in JOBS}
    assert not [str(p) for p in JOBS if f"({p.relative_to(ROOT)})" not in README.read_text()]


@every_page
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@every_page
def test_files_and_modules_that_are_named_exist(page):
    text = re.sub(r"^```python.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ +\w+\.py  .+$", "", text, flags=re.MULTILINE)  # the tree: test_tree.py
    named = re.findall(r"(?<![\w./<>-])[\w-]+(?:/[\w-]+)*\.py\b", text)
    assert not [name for name in named if not any(f"/{f}".endswith(f"/{name}") for f in FILES)]
    below = rf"(?<![\w./])(?:{'|'.join(FOLDERS)})/[\w./-]*\w\.(?:json|md|ipynb|safetensors)\b"
    assert not [name for name in re.findall(below, text) if name not in FILES]
    if page.name == "CHANGELOG.md":  # it names what was, too
        return
    modules = re.findall(r"(?<![\w./])fsmde_jax(?:\.[a-z_]\w*)+", text)
    assert not [name for name in modules if not source_of(name).is_file() and not is_package(name)]


def is_package(module: str) -> bool:
    return ROOT.joinpath(*module.split("."), "__init__.py").is_file()


@every_page
def test_commands_are_ones_that_can_be_given(page):
    keys = flatten(default_config().to_dict()).keys()
    for module, rest in commands(page):
        assert source_of(module).is_file(), module
        for flag in re.findall(r"(?<!\S)--([\w.]+)", rest):
            name, _, key = flag.partition(".")
            assert name in flags_of(module) | {"help"}, f"{module} --{flag}"
            assert not key or key in keys, f"{module} --{flag}"
        for config in re.findall(r"--config=([\w./-]+)", rest):
            assert {config, f"fsmde_jax/configs/{config}.py"} & FILES, config


def test_the_snippet_of_readme_runs():
    code = README.read_text().split("```python\n")[1].split("```")[0]
    known = {"image": np.zeros((96, 160, 3), np.uint8)}
    exec(code.replace("runs/demo", "student-mini-world"), known)
    assert known["estimate"].depth_m.shape == (96, 160)
    assert len(known["cloud"].points_m)


@what_people_read
def test_flags_are_those_of_a_command(page):
    modules = {".".join(f.parent.relative_to(ROOT).parts) for f in ROOT.rglob("__main__.py")}
    modules |= {"fsmde_jax.main", "fsmde_jax.evaluate.compare", "fsmde_jax.evaluate.sparsification"}
    known = set().union(*map(flags_of, modules)) | {"help", "version"}
    named = set(re.findall(r"(?<![\w-])--([a-z_]+)", page.read_text()))
    assert named <= known
