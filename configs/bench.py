"""World bench v2: the fixed miniature benchmark on which ways to train a student are compared.

    python -m fsmde_jax.study --config=configs/study_demo.py --workdir=runs/study

100 streets to train on, of which ten have LiDAR, 20 for tuning (`val`), and 60 streets of a second
world for the test (`configs/bench.py:test`), which is measured once, at the end. Six cameras of
96x160, LiDAR of 44 beams, three instants a street, two seconds apart. World seeds 0 to 3 are the
demo's and the teacher's, `dpt-mini-world`; that one was pretrained on 500 other streets.

Other variants, on the same streets: `v1`, where all hundred are labelled, `labels30`, `beams64`,
`beams16` and `beams4` (all labelled, another LiDAR), and `oracle` (all labelled, the dense truth
is the teacher: a bound). In v1, the first benchmark, no teacher could show what it is worth: see
fsmde_jax/reports/distillation.md.

Frozen: a change of anything that moves a figure makes another version. `:smoke` and `:smoke_test`
are the same path with two streets to a split, to try a study in minutes on a CPU.
"""

import pathlib
import runpy


def get_config(variant: str = ""):
    """The whole objective on the benchmark, or on what `variant` names."""
    variants = {
        "": _v2,
        "v1": _v1,
        "labels30": _labels30,
        **{f"beams{beams}": _with_beams(beams) for beams in (64, 16, 4)},
        "oracle": _oracle,
        "test": _test,
        "smoke": _smoke,
        "smoke_test": _smoke_test,
    }
    if variant not in variants:
        raise ValueError(
            f"configs/bench.py has no variant {variant!r}; use one of {sorted(variants)}"
        )
    demo = runpy.run_path(str(pathlib.Path(__file__).with_name("demo.py")))
    config = demo["get_config"]()
    config.name = f"world_bench_{variant or 'v2'}"
    config.train.steps = 1000
    # Bins that say how sure the head is: fsmde_jax/reports/distillation.md, section 6.
    config.teacher.head_stage.objective.bin_likelihood = 0.1
    for run in (config, config.teacher.head_stage):
        run.teacher.weights = "dpt-mini-world"  # the shipped teacher of the time
        run.optimizer.update({"name": "adamw", "learning_rate": 4e-3})
        run.data.batch_size = 4
        run.teacher.image = "prepared"
        run.evaluation.references = False
        run.evaluation.pictures = 0
        run.train.log_every = 50
        run.train.checkpoint_every = 500
        variants[variant](run)
    if config.teacher.weights != "truth":
        config.teacher.source = "cached"
    config.train.eval_every = config.train.checkpoint_every
    return config


def _v1(config):
    config.data.config_name = "bench_v1"
    config.world.seed = 10
    config.world.train_scenes = 100
    config.world.val_scenes = 20
    config.world.samples_per_scene = 3


def _v2(config):
    _v1(config)
    config.data.labelled_scenes = 10


def _labels30(config):
    _v1(config)
    config.data.labelled_scenes = 30


def _with_beams(beams):
    def change(config):
        _v1(config)
        config.data.config_name = f"bench_v1_beams{beams}"
        config.world.lidar_beams = beams

    return change


def _oracle(config):
    _v1(config)
    config.data.config_name = "bench_v1_dense"
    config.world.dense_depth = True
    config.teacher.weights = "truth"
    config.teacher.image = "student"


def _test(config):
    _v1(config)
    config.data.config_name = "bench_v2_test"
    config.world.seed = 12  # of 11, v1's, figures were seen while v2 was made
    config.world.train_scenes = 1  # of no use, but a recording has both splits
    config.world.val_scenes = 60
    config.evaluation.pictures = 1


def _smoke(config):
    _v1(config)
    config.data.config_name = "bench_smoke"
    config.data.labelled_scenes = 1
    config.world.train_scenes = config.world.val_scenes = 2
    config.train.steps = 40
    config.train.log_every = 5
    config.train.checkpoint_every = 20


def _smoke_test(config):
    _test(config)
    config.data.config_name = "bench_smoke_test"
    config.world.val_scenes = 2
