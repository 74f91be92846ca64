"""The whole path on the embedded miniature world, in minutes on two CPU cores.

    python -m fsmde_jax.main --config=configs/demo.py

Renders streets, prepares them, trains the binning head of the shipped relative-depth teacher on
LiDAR, distils both into a tiny student and measures that on unseen streets.

Other objectives (`fsmde_jax/losses/arms.py`) by name, with the head that the first run trained:

    python -m fsmde_jax.main --config=configs/demo.py:feature \
        --config.teacher.head_weights=runs/demo/teacher_head
"""

from fsmde_jax.config import default_config
from fsmde_jax.losses import arms


def get_config(arm: str = ""):
    """The student's run, and the teacher's head before it."""
    config = small_config()
    config.name = f"demo_{arm}" if arm else "demo"
    config.teacher.head_stage = head_config()
    config.train.steps = 1200
    # Two looks on the way, figures and the first ring in TensorBoard; each costs 15 steps.
    config.train.eval_every = 400
    config.optimizer.ema_decay = 0.98
    arms.set_arm(config, arm or "ckd_vrkd")
    return config


def small_config():
    """What the demo's runs have in common: the world, small models, short runs."""
    config = default_config()
    config.data.dataset = "world"
    config.data.config_name = "96x160"
    config.data.batch_size = 2
    config.data.eval_batch_size = 4
    config.data.points_per_image = 1024
    config.data.num_threads = 2
    # A short run underfits: the world always drives on the right, so nothing is mirrored.
    config.data.flip_probability = 0.0
    config.data.jitter = 0.1
    config.world.train_scenes = 100
    config.world.val_scenes = 15
    config.world.samples_per_scene = 2
    config.world.sample_stride = 20
    config.world.height = 160
    config.world.width = 256
    config.student.size = "tiny"
    config.student.canonical_focal_px = 178.77  # 715.0873 px at 640 px of width
    config.bins.num_bins = 32
    config.bins.centers_kind = "unbounded"
    config.teacher.weights = "mini-world"
    config.teacher.binning = "head"
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.clip_norm = 0.3
    config.train.log_every = 100
    config.train.checkpoint_every = 200
    config.train.eval_every = 0
    config.evaluation.protocol = "ssdepth"
    return config


def head_config():
    """The teacher's binning head on LiDAR of the student's streets."""
    config = small_config()
    config.name = "demo_teacher_head"
    config.task = "teacher_head"
    config.data.config_name = ""  # the student's data
    config.train.steps = 600
    return config
