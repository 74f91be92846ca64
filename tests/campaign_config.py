"""A run of seconds that has every stage: world, prepared data, teacher's head, student, report."""

from fsmde_jax.config import default_config


def get_config(variant: str = ""):
    """The student's run; `cached` reads a stored teacher."""
    config = _common()
    config.name = "campaign"
    config.teacher.head_stage = _common()
    config.teacher.head_stage.name = "campaign_head"
    config.teacher.head_stage.task = "teacher_head"
    config.teacher.head_stage.train.steps = 4
    if variant == "cached":
        config.teacher.source = "cached"
        config.teacher.image = "prepared"
        config.teacher.head_stage.teacher.image = "prepared"
    return config


def _common():
    config = default_config()
    config.data.dataset = "world"
    config.data.config_name = "campaign"
    config.data.batch_size = 2
    config.data.eval_batch_size = 2
    config.data.points_per_image = 64
    config.data.num_threads = 1
    config.world.train_scenes = 4
    config.world.val_scenes = 2
    config.world.samples_per_scene = 2
    config.world.height = 48
    config.world.width = 80
    config.world.image_size = (32, 64)
    config.student.size = "tiny"
    config.student.canonical_focal_px = 60.0
    config.bins.num_bins = 8
    config.teacher.size = "dpt_tiny"
    config.teacher.weights = "random"
    config.objective.vrkd_grid = (4, 8)
    config.optimizer.ema_decay = 0.9
    config.train.steps = 12
    config.train.log_every = 1
    config.train.checkpoint_every = 2
    config.train.eval_every = 0
    config.evaluation.pictures = 1
    config.evaluation.references = False
    return config
