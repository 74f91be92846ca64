"""What could any teacher give? The true relative depth teaches, all streets labelled.

    python -m fsmde_jax.study --config=configs/study_oracle.py --workdir=runs/study_oracle

`supervised` has sparse LiDAR, `dense` the true depth of every pixel; `ckd_truth` has LiDAR and a
teacher that cannot be better: the truth of the training streets in bins of log depth.
"""

from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.study.plan import default_study


def get_config():
    """The study: nothing is tuned; the divergence's weight is shown at three values."""
    study = default_study()
    study.name = "study_oracle"
    study.base = "bench:oracle"
    study.test = "bench:test"
    study.seeds = (0, 1, 2)
    without = {f"objective.{term}": 0.0 for term in DISTILLATION}
    without["optimizer.learning_rate"] = 16e-3  # what supervision was tuned to in study_demo
    study.arms = {
        "supervised": without,
        "dense": without | {"objective.supervision": "dense"},
        **{
            f"ckd_truth_{weight}": without
            | {"objective.ckd_divergence": weight, "objective.ckd_crossing": 0.4}
            for weight in (0.1, 0.3, 1.0)
        },
    }
    study.comparisons = tuple(("dense", arm) for arm in study.arms if arm.startswith("ckd_truth"))
    return study
