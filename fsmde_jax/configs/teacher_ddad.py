"""The binning head of a frozen foundation model, trained on DDAD's LiDAR.

    python -m fsmde_jax.main --config=configs/teacher_ddad.py
    python -m fsmde_jax.main --config=configs/ddad.py \
        --config.teacher.head_weights=runs/teacher_ddad

`configs/ddad.py` makes this stage itself; run it alone to try other foundation models:
`--config.teacher.weights=depth-anything/Depth-Anything-V2-Large-hf`. For accelerators; what
is chosen here was measured on the miniature world alone.
"""

from fsmde_jax.config import default_config


def get_config():
    """A short run: all but the head is frozen."""
    config = default_config()
    config.name = "teacher_ddad"
    config.task = "teacher_head"
    config.teacher.dtype = "bfloat16"
    # Bins that say how sure the head is; CKD gains from it (fsmde_jax/reports/distillation.md, 6).
    config.objective.bin_likelihood = 0.1
    # The bench's heads have it, too; the rate as in configs/ddad.py. No moving average there.
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-4
    config.train.steps = 5_000
    config.train.eval_every = 0
    return config
