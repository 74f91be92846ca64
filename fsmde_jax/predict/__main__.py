"""A trained student at work:
`python -m fsmde_jax.predict --checkpoint=RUN --input=WHAT --out=DIR`.

For a first look, without a run and without data, `--demo --out=DIR` takes the student and the
street of the miniature world that come with the package.

WHAT is a prepared dataset, a recording in the layout of DDAD, nuScenes or an own rig (`--split`), a
folder of photos, one photo or a video (`--focal_px`, in pixels of the files; without it EXIF's, or
a guess, and the log says which); without it, the data the run was trained on. An item is one
instant of a ring, a photo or a frame. `--save` chooses what is written of each:

    depth       depth/<item>.png        z-depth, 16 bit, 1/256 m
    npz         npz/<item>.npz          depth_m, confidence, intrinsics, vehicle_from_camera
    confidence  confidence/<item>.png   8 bit; 255 is certain (exp(-s), s of log depth)
    pictures    pictures/<item>.png     depth in colours of one range, 1 m to --max_depth_m
    panel       panel/<item>.png        image, LiDAR, depth, confidence of all cameras
    cloud       cloud/<item>.ply        all cameras fused, coloured; metres, vehicle's frame
    birds_eye   birds_eye/<item>.png    that cloud from above
    rerun       recording.rrd           cameras, images, depth, LiDAR, clouds
    video       video.mp4               images and depth

In a ring the first four are a file a camera, `<scene>/<index>/<camera>`, as `evaluate
--predictions=DIR/depth --unit_m=0.00390625` reads them. All are at the size the network ran at, and
`intrinsics` are of that size. Clouds leave out pixels beyond --max_depth_m, the smear at edges and
what has less than --min_confidence; sky that got some depth stays in.

What is broken is left out and named, at the end and in DIR/problems.txt, and the exit code is 1; so
it is for a ring's image that has not the size its recording says. What stops all is one line: a
checkpoint that does not fit, nothing to read, a folder that cannot be written. DIR has its name
once it is whole; until then it is called `.unfinished-DIR`, which the same command makes anew.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from fsmde_jax import cli
from fsmde_jax.predict import writer

_LISTED = 20  # problems that the terminal gets
_SAY_WHAT = "give --checkpoint=RUN; or --demo, which takes no --input, --split and --focal_px"


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Folder of a run of fsmde_jax.main.")
    flags.DEFINE_bool("demo", False, "The shipped student, on the street that comes with it.")
    flags.DEFINE_string("input", None, "Dataset, recording, photos or video; the run's data.")
    flags.DEFINE_string("out", None, "Folder to write; must be empty or absent.", required=True)
    flags.DEFINE_string("split", None, "Of a dataset or recording; the run's eval_split.")
    flags.DEFINE_float("focal_px", None, "Of photos and videos, in pixels of the files.")
    flags.DEFINE_integer("max_samples", None, "Only so many items, the first ones.", 1)
    flags.DEFINE_list("save", None, f"Some of {','.join(writer.SAVES)}; what suits the input.")
    flags.DEFINE_float("min_confidence", writer.MIN_CONFIDENCE, "Of points in clouds, 0 to 1.")
    flags.DEFINE_float("max_depth_m", None, "End of the colour range and of clouds.", 2.0)
    flags.register_multi_flags_validator(
        ["demo", "checkpoint", "input", "split", "focal_px"], _say_what, _SAY_WHAT
    )


def _say_what(given: dict[str, Any]) -> bool:
    if given["demo"]:
        return all(value is None for name, value in given.items() if name != "demo")
    return given["checkpoint"] is not None


def main(argv: Sequence[str]) -> None:
    """Predicts as the flags say; 1 if anything was left out."""
    cli.set_up()
    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options start with --")
    out = pathlib.Path(values.out)
    options = {
        "max_samples": values.max_samples,
        "saves": values.save,
        "min_confidence": values.min_confidence,
        "max_depth_m": values.max_depth_m,
    }
    with cli.errors_as_lines():
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
    _define_flags()
    app.run(main)
