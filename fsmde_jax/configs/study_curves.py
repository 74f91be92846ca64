"""What are labels worth? Supervision against CKD + VRKD, with more labels or another LiDAR.

    python -m fsmde_jax.study --config=configs/study_curves.py:labels60 --workdir=runs/labels60

Variants: `labels20`, `labels60` and `labels200` (a tenth, 30 % and all of the streets labelled; ten
are those of `configs/study_demo.py`), and with all labelled `beams64`, `beams16` and `beams4`. Both
arms are as they were tuned for ten labelled streets; nothing is tuned for a variant. `labels200`
has two arms more: CKD + VRKD with small weights, which v2 spoke for where every image has LiDAR,
and with the lower temperature.
"""

from fsmde_jax.configs import study_demo
from fsmde_jax.study.plan import default_study

SMALL = {"objective.ckd_divergence": 0.1, "objective.ckd_crossing": 0.5, "objective.vrkd": 0.1}


def get_config(variant: str):
    """The study of one variant of the benchmark."""
    study = default_study()
    study.name = f"study_{variant}"
    study.base = f"bench:{variant}"
    study.test = "bench:test"
    arms = study_demo.get_config().arms
    study.arms = {arm: arms[arm] for arm in ("supervised", "ckd_vrkd")}
    if variant == "labels200":
        study.arms["ckd_vrkd_small"] = arms["ckd_vrkd"] | SMALL
        study.arms["ckd_vrkd_sharp"] = arms["ckd_vrkd_sharp"]
    return study
