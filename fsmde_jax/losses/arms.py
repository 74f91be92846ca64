"""The arms of an ablation: one objective, weighed in eight ways.

An arm replaces the weights of all distillation terms of a config; supervision stays as it is.

`configs/study_demo.py` multiplies the weights by what its tuning took.
"""

from ml_collections import ConfigDict

from fsmde_jax.errors import UserError
from fsmde_jax.losses.objective import DISTILLATION

_CKD = {"ckd_divergence": 1.0, "ckd_crossing": 0.4}
_VRKD = {"vrkd": 1.0}

ARMS = {
    "supervised": {},
    "response": {"response": 0.3},
    "feature": {"feature": 1.0},
    "pairwise": {"pairwise": 3.0},
    "bin_kl": {"ckd_divergence": 1.0},  # plain: without the crossing
    "ckd": _CKD,
    "vrkd": _VRKD,
    "ckd_vrkd": _CKD | _VRKD,
}


def set_arm(config: ConfigDict, arm: str) -> None:
    """Gives a run's config the distillation weights of `arm`; UserError for an unknown one."""
    if arm not in ARMS:
        raise UserError(f"there is no arm {arm!r}; use one of {', '.join(ARMS)}")
    config.objective.update(dict.fromkeys(DISTILLATION, 0.0) | ARMS[arm])
