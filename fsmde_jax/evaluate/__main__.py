"""Measures a run's student, or anyone's depth maps, by a public protocol.

    python -m fsmde_jax.evaluate --checkpoint=runs/demo
    python -m fsmde_jax.evaluate --config=ddad --predictions=DIR --unit_m=0.00390625

Writes results.json, results.md and pictures into --out: figures with intervals over
scenes (`fsmde_jax/evaluate/protocols.py`). Of a run, the same pass measures two
references, too: the trivial predictor and the teacher.
"""

import pathlib

from absl import flags

from fsmde_jax import cli
from fsmde_jax import config as config_lib
from fsmde_jax.errors import UserError


def define_flags() -> None:
    """The command's flags."""
    cli.define_config("Its data and evaluation instead of the run's.", required=False)
    flags.DEFINE_string("checkpoint", None, "Folder of a run.")
    flags.DEFINE_string("predictions", None, "Folder of depth maps, of the data of --config.")
    flags.DEFINE_float("unit_m", None, "Metres of a value of 1 in --predictions.")
    flags.DEFINE_enum("protocol", None, list(config_lib.PROTOCOLS), "Instead of the config's.")
    flags.DEFINE_enum("scaling", None, config_lib.SCALINGS, "Instead of the config's.")
    flags.DEFINE_float("max_depth_m", None, "Where the evaluated range ends.")
    flags.DEFINE_string("masks", None, "Folder of self-occlusion masks, or 'estimate'.")
    flags.DEFINE_bool(
        "flip_average", None, "Average with the mirror image's prediction (protocol packnet)."
    )
    flags.DEFINE_enum("on_error", "stop", ("stop", "skip"), "What a bad prediction leads to.")
    flags.DEFINE_string("out", None, "Folder of the report; RUN/report, or DIR_report.")


def main(_) -> None:
    """Reads the run's own config, or measures predictions on the data of `--config`."""
    cli.set_up()
    values = flags.FLAGS
    if (values.checkpoint is None) == (values.predictions is None):
        raise UserError("give --checkpoint=RUN or --predictions=DIR (with --config)")
    if values.predictions and not values.config:
        raise UserError("--predictions needs --config, whose `data` says what they are of")
    print(_run(values))


def _run(values: flags.FlagValues) -> str:
    # Slow to import; --help and a misspelt flag do without.
    from fsmde_jax.evaluate import measure, report
    from fsmde_jax.evaluate.depth_maps import Predictions

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
    cli.start(__name__)
