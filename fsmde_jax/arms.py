"""The arms of an ablation: one objective, weighed in eight ways.

An arm replaces the weights of all distillation terms of a config; supervision stays as it is.

The weights are starts, not yet tuned against each other, for the demo's weak teacher. Of SILog's
gradient at the first step (one batch of the demo) response has 22 %, feature 18 %, pairwise 17 %;
the terms of CKD and VRKD, as the demo has always weighed them, have 2, 5 and 3 %.
"""

from ml_collections import ConfigDict

from fsmde_jax.losses.objective import DISTILLATION

_CKD = {"ckd_divergence": 0.02, "ckd_crossing": 0.1}
_VRKD = {"vrkd": 0.02}

ARMS = {
    "supervised": {},
    "response": {"response": 0.2},
    "feature": {"feature": 0.3},
    "pairwise": {"pairwise": 1.0},
    "bin_kl": {"ckd_divergence": 0.02},  # plain: without the crossing
    "ckd": _CKD,
    "vrkd": _VRKD,
    "ckd_vrkd": _CKD | _VRKD,
}


def set_arm(config: ConfigDict, arm: str) -> None:
    """Gives a run's config the distillation weights of `arm`; ValueError for an unknown one."""
    if arm not in ARMS:
        raise ValueError(f"there is no arm {arm!r}; use one of {', '.join(ARMS)}")
    config.objective.update(dict.fromkeys(DISTILLATION, 0.0) | ARMS[arm])
