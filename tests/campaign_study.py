"""A study of two arms on `campaign_config.py`."""

import pathlib

from fsmde_jax.study.plan import default_study


def get_config():
    """One seed of each, a few steps."""
    study = default_study()
    study.name = "campaign_study"
    study.base = str(pathlib.Path(__file__).with_name("campaign_config.py")) + ":cached"
    study.test = study.base
    study.arms = {
        "supervised": {
            "objective.ckd_divergence": 0.0,
            "objective.ckd_crossing": 0.0,
            "objective.vrkd": 0.0,
        },
        "ckd_vrkd": {"objective.ckd_divergence": 1.0},
    }
    study.seeds = (0,)
    return study
