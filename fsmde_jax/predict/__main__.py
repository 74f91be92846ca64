"""Depth, confidence, pictures and point clouds by a trained student.

    python -m fsmde_jax.predict --demo --out=first_look
    python -m fsmde_jax.predict --checkpoint=runs/demo --out=DIR
    python -m fsmde_jax.predict --checkpoint=RUN --input=drive.mp4 --focal_px=1060 --out=DIR

--input is a prepared dataset, a recording in the layout of DDAD, nuScenes or an own
rig (with --split), a folder of photos, a photo or a video; without it, the run's data.
--save chooses what is written:

    depth       depth/*.png        z-depth, 16 bit, 1/256 m
    npz         npz/*.npz          depth in metres, confidence, calibration
    confidence  confidence/*.png   8 bit; 255 is certain
    pictures    pictures/*.png     depth in colours of one range, to --max_depth_m
    panel       panel/*.png        image, LiDAR, depth, confidence of all cameras
    cloud       cloud/*.ply        all cameras fused and coloured, in metres
    birds_eye   birds_eye/*.png    that cloud from above
    rerun       recording.rrd      cameras, images, depth, LiDAR, clouds
    video       video.mp4          images and depth

* is the photo's name, or SCENE/INDEX of a ring, then /CAMERA for the first four.
What is broken is left out and named, also in DIR/problems.txt; the exit code is then 1.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from fsmde_jax import cli

_LISTED = 20  # problems that the terminal gets
_SAY_WHAT = "give --checkpoint=RUN; or --demo, which takes no --input, --split and --focal_px"


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "Folder of a run.")
    flags.DEFINE_bool("demo", False, "The shipped student, on the street that comes with it.")
    flags.DEFINE_string("input", None, "Dataset, recording, photos or video; the run's data.")
    flags.DEFINE_string("out", None, "Folder to write; must be empty or absent.", required=True)
    flags.DEFINE_string("split", None, "Of a dataset or recording; the run's eval_split.")
    flags.DEFINE_float(
        "focal_px", None, "Of photos and videos, in their pixels; EXIF's or a guess."
    )
    flags.DEFINE_integer("max_samples", None, "Only so many items, the first ones.", 1)
    flags.DEFINE_list("save", None, "Some of the above; what suits the input.")
    flags.DEFINE_float("min_confidence", 0.0, "Of points in clouds, 0 to 1; 0 keeps all.")
    flags.DEFINE_float("max_depth_m", None, "End of the colour range and of clouds.", 2.0)
    flags.register_multi_flags_validator(
        ["demo", "checkpoint", "input", "split", "focal_px"], _say_what, _SAY_WHAT
    )


def _say_what(given: dict[str, Any]) -> bool:
    if given["demo"]:
        return all(value is None for name, value in given.items() if name != "demo")
    return given["checkpoint"] is not None


def main(_) -> None:
    """Predicts as the flags say; 1 if anything was left out."""
    # Slow to import; --help and a misspelt flag do without.
    from fsmde_jax.predict import writer

    cli.set_up()
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    options = {
        "max_samples": values.max_samples,
        "saves": values.save,
        "min_confidence": values.min_confidence,
        "max_depth_m": values.max_depth_m,
    }
    if values.demo:
        problems = writer.first_look(out, **options)
    else:
        problems = writer.predict(
            pathlib.Path(values.checkpoint),
            out,
            pathlib.Path(values.input) if values.input else None,
            split=values.split,
            focal_px=values.focal_px,
            **options,
        )
    print(f"{values.out}: what the files mean is in about.json")
    for problem in problems[:_LISTED]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(problems) > _LISTED:
        more = (
            f"{len(problems) - _LISTED} more in {pathlib.Path(values.out) / writer.PROBLEMS_FILE}"
        )
        print(f"left out: {more}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    cli.start(__name__)
