"""What are labels worth? Supervision against CKD + VRKD, with more labels or another LiDAR.

    python -m fsmde_jax.study --config=configs/study_curves.py:labels30 --workdir=runs/labels30

Variants: `labels30` and `v1` (30 and all of the hundred streets labelled; ten are those of
`configs/study_demo.py`), and with all labelled `beams64`, `beams16` and `beams4`. Weights are those
of `fsmde_jax/arms.py`; nothing is tuned for a variant.
"""

from fsmde_jax.arms import ARMS
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.study_plan import default_study


def get_config(variant: str):
    """The study of one variant of the benchmark."""
    study = default_study()
    study.name = f"study_{variant}"
    study.base = f"configs/bench.py:{variant}"
    study.test = "configs/bench.py:test"
    without = {f"objective.{term}": 0.0 for term in DISTILLATION}
    own = {f"objective.{term}": weight for term, weight in ARMS["ckd_vrkd"].items()}
    study.arms = {
        "supervised": without,
        "ckd_vrkd": without | {"data.keep_unlabelled": True} | own,
    }
    return study
