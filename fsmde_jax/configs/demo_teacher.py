"""The small foundation model that the package ships: relative depth of the miniature world.

    python -m fsmde_jax.main --config=configs/demo_teacher.py

renders 2,000 streets, each with a rig, light and haze of its own, and trains a small network on
their dense truth, right up to the scale and shift of each image: a *relative* model, like MiDaS.
`runs/demo_teacher/weights` then is the checkpoint. Batches are for an accelerator with many cores
beside it (`--config.data.num_workers=15`; an H100 does 5,400 images a second so, two CPU cores 27).
The shipped one began like this and went on in smaller batches, as its card says,
fsmde_jax/assets/mini-world/README.md: nobody has let this run to its end yet. Its last piece,

    python -m fsmde_jax.main --config=configs/demo_teacher.py:finish

goes on from `runs/demo_teacher/weights`, on other streets. The shipped one is measured by

    python -m fsmde_jax.main --config=configs/demo_teacher.py:unseen
    python -m fsmde_jax.main --config=configs/demo_teacher.py:other_rig

on streets of another seed: with rigs as varied, and with the demo's own rig.
"""

from fsmde_jax.config import ConfigError, default_config


def get_config(variant: str = ""):
    """Pretraining, or a measurement."""
    config = default_config()
    config.task = "foundation"
    config.data.dataset = "world"
    config.data.batch_size = 2
    config.data.eval_batch_size = 4
    config.data.points_per_image = 64  # LiDAR is not used
    config.data.num_threads = 2
    config.world.samples_per_scene = 3
    config.world.sample_stride = 15
    config.world.height = 160
    config.world.width = 256
    config.world.dense_depth = True
    config.evaluation.references = False
    variants = {"": _pretraining, "finish": _finish, "unseen": _unseen, "other_rig": _other_rig}
    if variant not in variants:
        raise ConfigError(
            f"configs/demo_teacher.py has no variant {variant!r}; use one of {sorted(variants)}"
        )
    variants[variant](config)
    return config


def _pretraining(config):
    config.name = "demo_teacher"
    config.teacher.weights = ""
    config.teacher.size = "mini"
    config.data.config_name = "pretrain_96x160"
    config.data.batch_size = 16
    config.data.jitter_per_camera = True
    config.data.zoom = 1.5
    config.world.seed = 1
    config.world.train_scenes = 2000
    config.world.val_scenes = 16
    config.world.varied_rigs = True
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.012
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 0.3
    config.optimizer.ema_decay = 0.999
    config.objective.foundation_gradient = 0.2
    config.train.dtype = "bfloat16"  # faster with jax 0.12 on a CPU that multiplies it
    config.train.steps = 11_500
    config.train.log_every = 100
    config.train.checkpoint_every = 1_000


def _finish(config):
    _pretraining(config)
    config.name = "demo_teacher_finish"
    config.teacher.start_weights = "runs/demo_teacher/weights"
    config.data.config_name = "pretrain21_96x160"
    config.data.batch_size = 2
    config.data.jitter = 0.1
    config.data.zoom = 1.0
    config.world.seed = 21
    config.world.train_scenes = 1200
    config.optimizer.learning_rate = 0.0015
    # What is measured: alignment by scale and shift, and how many pixels are nearly right.
    config.objective.foundation_scale = 0.0
    config.objective.foundation_saturation = 0.25
    config.objective.foundation_gradient = 0.0
    config.train.steps = 600


def _unseen(config):
    config.name = "demo_teacher_unseen"
    config.teacher.weights = "mini-world"
    config.data.config_name = "unseen_96x160"
    config.world.seed = 2
    config.world.train_scenes = 1  # of no use, but a recording has both splits
    config.world.val_scenes = 30
    config.world.varied_rigs = True


def _other_rig(config):
    _unseen(config)
    config.name = "demo_teacher_other_rig"
    config.data.config_name = "other_rig_96x160"
    config.world.seed = 3
    config.world.varied_rigs = False
