"""Evaluation: `python -m fsmde_jax.evaluate --checkpoint=RUN`, or of anyone's depth maps
`python -m fsmde_jax.evaluate --config=configs/ddad.py --predictions=DIR`.

Writes `results.json`, `results.md` and pictures into `--out` (RUN/report by default): the figures
of a protocol (`fsmde_jax/evaluate/protocols.py`) with intervals over scenes. For a run's student
also, from the same pass, those of two references: the trivial predictor and the teacher.
`python -m fsmde_jax.evaluate.compare A B` says whether two results differ.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from fsmde_jax import cli
from fsmde_jax import config as config_lib
from fsmde_jax.evaluate import measure, protocols, report
from fsmde_jax.evaluate.depth_maps import Predictions


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Data to evaluate on.", lock_config=True)
    flags.DEFINE_string("checkpoint", None, "Folder of a run of fsmde_jax.main.")
    flags.DEFINE_string(
        "predictions", None, "Folder of depth maps (fsmde_jax/evaluate/depth_maps.py)."
    )
    flags.DEFINE_float("unit_m", None, "Metres of a value of 1 in --predictions.")
    flags.DEFINE_enum("protocol", None, list(protocols.PROTOCOLS), "Instead of the config's.")
    flags.DEFINE_enum("scaling", None, config_lib.SCALINGS, "Instead of the config's.")
    flags.DEFINE_float("max_depth_m", None, "Where the evaluated range ends.")
    flags.DEFINE_string("masks", None, "Folder of self-occlusion masks, or 'estimate'.")
    flags.DEFINE_bool(
        "flip_average", None, "Average with the mirror image's prediction (protocol packnet)."
    )
    flags.DEFINE_enum("on_error", "stop", ("stop", "skip"), "What a bad prediction leads to.")
    flags.DEFINE_string("out", None, "Folder of the report; RUN/report, or DIR_report.")


def main(argv: Sequence[str]) -> None:
    """Reads the run's own config, or measures predictions on the data of `--config`."""
    cli.set_up()
    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options start with --")
    if (values.checkpoint is None) == (values.predictions is None):
        raise app.UsageError("give --checkpoint=RUN or --predictions=DIR (with --config)")
    if values.predictions and not values.config:
        raise app.UsageError("--predictions needs --config, whose `data` says what they are of")
    with cli.errors_as_lines():
        print(_run(values))


def _run(values: flags.FlagValues) -> str:
    folder = pathlib.Path(values.checkpoint or values.predictions)
    # Not into the folder of predictions, where pictures would be taken for some.
    default = folder / "report" if values.checkpoint else folder.with_name(f"{folder.name}_report")
    out = pathlib.Path(values.out or default)
    config = config_lib.load_config(folder) if values.checkpoint else values.config
    on = config.copy_and_resolve_references()
    if values.config:
        on.data, on.evaluation = values.config.data, values.config.evaluation
    for key in ("protocol", "scaling", "max_depth_m", "masks", "flip_average"):
        if getattr(values, key) is not None:
            on.evaluation[key] = getattr(values, key)
    config_lib.validate(on)
    if values.checkpoint:
        found = measure.evaluate_run(config, folder, out, on)
    else:
        predictions = Predictions(folder, values.unit_m, skip=values.on_error == "skip")
        found = measure.evaluate_predictions(on, predictions, out)
    return f"{report.summary(on, found)}\n\nReport and pictures: {out}"


if __name__ == "__main__":
    _define_flags()
    cli.start(main)
