"""`prepare --check`: what looks wrong with a recording, in words and pictures."""

from pathlib import Path

from fsmde_jax.prepare import scenes
from fsmde_jax.prepare.check_rig import report

_MARK = ".made_by_check"  # in the folder of pictures: only then are they drawn again


def check(dataset: str, source: Path, data_dir: Path, splits: tuple[str, ...]) -> int:
    """Prints what looks wrong with a recording and draws its rig; returns 1 if anything does."""
    scenes.find_source(dataset, source)
    pictures = data_dir / f"{dataset}_check"
    mark = pictures / _MARK
    if pictures.is_dir() and any(pictures.iterdir()) and not mark.is_file():
        raise scenes.PrepareError(
            f"{pictures} is in the way of the pictures and was not made by --check; move it away"
        )
    pictures.mkdir(parents=True, exist_ok=True)
    mark.touch()
    faults = report.check(scenes.READERS[dataset], source, splits, pictures)
    print(faults or f"{source}: nothing looks wrong", f"Pictures: {pictures}", sep="\n")
    return 1 if faults else 0
