"""An own rig (tfds_builders/rig/README.md); as it stands for the miniature one, minutes on a CPU.

    python -m fsmde_jax.world --out=rig_raw --layout=rig
    python -m fsmde_jax.prepare --dataset=rig --source=rig_raw --data_dir=data --image_size=96x160
    python -m fsmde_jax.main --config=configs/rig.py

The cameras are those of the prepared dataset. For a rig of your own, prepare at a larger size, take
a teacher that knows real streets and a student to match, and train longer:

    python -m fsmde_jax.main --config=configs/rig.py --config.data.config_name=384x640 \
        --config.teacher.weights=Intel/dpt-large --config.student.size=resnet18 \
        --config.student.canonical_focal_px=715 --config.train.steps=30000
"""

from fsmde_jax.config import default_config


def get_config():
    """A tiny student and the shipped teacher with soft bins, so without a stage before."""
    config = default_config()
    config.name = "rig"
    config.data.dataset = "rig"
    config.data.config_name = "96x160"
    config.data.cameras = ()
    config.data.batch_size = 2
    config.data.eval_batch_size = 2
    config.data.points_per_image = 1024
    config.data.num_threads = 2
    config.data.flip_probability = 0.0
    config.data.jitter = 0.1
    config.student.size = "tiny"
    config.student.canonical_focal_px = 178.77  # 715.0873 px at 640 px of width
    config.bins.num_bins = 32
    config.bins.centers_kind = "unbounded"
    config.teacher.weights = "mini-world"
    config.teacher.binning = "soft"
    # The shipped teacher is a weak one; the defaults are for a real foundation model.
    config.objective.ckd_divergence = 0.02
    config.objective.ckd_crossing = 0.1
    config.objective.vrkd = 0.02
    config.optimizer.learning_rate = 4e-3
    config.optimizer.clip_norm = 0.3
    config.optimizer.ema_decay = 0.98
    config.train.steps = 400
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.train.eval_every = 0
    return config
