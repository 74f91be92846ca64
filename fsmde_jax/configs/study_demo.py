"""Does distillation help? All arms on world bench v3 (`configs/bench.py`), five seeds each.

    python -m fsmde_jax.study --config=configs/study_demo.py --workdir=runs/study

Every arm was tuned by three runs on the tuning split: of the learning rate and of its own weights,
together; arms without weights, of the learning rate. `TAKEN` is what came out. Added after that:
`response_3` and `response_9`, with weights that no trial had, and `ckd_vrkd_sharp`, which compares
similarity matrices at half the temperature. Arms that distil also see the pictures of the streets
without LiDAR.

`configs/study_demo.py:tuning` tunes first, 24 runs more (for another folder);
`configs/study_demo.py:vrkd` asks of ten seeds what VRKD brings on top of CKD (in the same folder it
takes over the five that are there; its report replaces the other until that is made again);
`configs/study_demo.py:smoke` tries that path: two arms, two trials, one seed, a few steps.
"""

from fsmde_jax.config import ConfigError
from fsmde_jax.losses.arms import ARMS
from fsmde_jax.losses.objective import DISTILLATION
from fsmde_jax.study.plan import default_study

LEARNING_RATES = (4e-3, 8e-3, 16e-3)  # of the arms without weights
TRIALS = ((8e-3, 1.0), (16e-3, 1.0), (8e-3, 3.0))  # learning rate, factor of the arm's weights
# By arm, the best of its trials: fsmde_jax/reports/distillation.md, section 18, has them all.
TAKEN = {
    "supervised": 2,
    "response": 2,
    "feature": 2,
    "pairwise": 2,
    "bin_kl": 2,
    "ckd": 1,
    "vrkd": 2,
    "ckd_vrkd": 1,
}
# What no trial had: larger weights, for the baseline that gained most by them, and the form of VRKD
# that looked best on the tuning split.
BEYOND = {
    "response_3": ("response", {"optimizer.learning_rate": 8e-3, "objective.response": 3.0}),
    "response_9": ("response", {"optimizer.learning_rate": 8e-3, "objective.response": 9.0}),
    "ckd_vrkd_sharp": ("ckd_vrkd", {"objective.vrkd_temperature": 0.05}),
}


def get_config(variant: str = ""):
    """The study, or `tuning`, `vrkd` or `smoke`."""
    if variant not in ("", "tuning", "vrkd", "smoke"):
        raise ConfigError(
            f"configs/study_demo.py has no variant {variant!r}; use one of "
            "['', 'smoke', 'tuning', 'vrkd']"
        )
    study = default_study()
    study.name = "study_demo"
    study.base = "bench"
    study.test = "bench:test"
    study.seeds = (0, 1, 2, 3, 4)
    without = {f"objective.{term}": 0.0 for term in DISTILLATION}
    weights = {
        arm: {f"objective.{term}": weight for term, weight in own.items()}
        for arm, own in ARMS.items()
    }
    study.arms = {
        arm: without | {"data.keep_unlabelled": bool(own)} | own for arm, own in weights.items()
    }
    trials = {arm: _trials(own) for arm, own in weights.items()}
    if variant in ("tuning", "smoke"):
        study.trials = trials
    else:
        study.arms = {arm: keys | trials[arm][TAKEN[arm]] for arm, keys in study.arms.items()}
        study.arms |= {arm: study.arms[of] | keys for arm, (of, keys) in BEYOND.items()}
        baselines = ("ckd", "bin_kl", "response", "response_3", "response_9")
        study.comparisons = (
            ("bin_kl", "ckd"),
            *((arm, "ckd_vrkd") for arm in baselines),
            *((arm, "ckd_vrkd_sharp") for arm in (*baselines, "ckd_vrkd")),
        )
    if variant == "vrkd":
        study.baseline, study.comparisons = "ckd", ()
        study.seeds = tuple(range(10))
        study.arms = {arm: study.arms[arm] for arm in ("ckd", "ckd_vrkd_sharp")}
    if variant == "smoke":
        study.base += ":smoke"
        study.test = "bench:smoke_test"
        study.seeds = (0,)
        study.arms = {arm: study.arms[arm] for arm in ("supervised", "ckd_vrkd")}
        study.trials = {arm: study.trials[arm][:2] for arm in study.arms}
    return study


def _trials(own: dict[str, float]) -> list[dict[str, float]]:
    if not own:
        return [{"optimizer.learning_rate": rate} for rate in LEARNING_RATES]
    return [
        {"optimizer.learning_rate": rate}
        | {key: round(weight * factor, 6) for key, weight in own.items()}
        for rate, factor in TRIALS
    ]
