"""Every key a run understands, with its default; a key that is not here is refused.

The files of `fsmde_jax/configs` start from `default_config()`, which is locked: a misspelt key is
an error there and on the command line.
"""

import fnmatch
import importlib.util
import json
import os
import pathlib
import traceback
from typing import Any

import ml_collections
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fsmde_jax import files
from fsmde_jax.errors import UserError, did_you_mean, differences


class ConfigError(UserError):
    """A value of the config cannot work; the text names the key and what to do."""


SHIPPED = pathlib.Path(__file__).with_name("configs")
CONFIG_FILE = "config.json"
_FORMAT = 2  # of config.json; in format 1 `student.canonical_focal_px` was of the shrunk images
_MEND = "Bring it back from a copy, or remove it and give the command with the run's own config"
HEAD_FOLDER = "teacher_head"  # in a run's folder: the run that trained its teacher's head
_PATHS_IN_RUN = ("head_weights", "cache_dir")  # of `teacher`
# What a run may go on with changed. The weights behind paths are compared by their fingerprints.
MAY_CHANGE = (
    "name",
    *(f"data.{key}" for key in ("data_dir", "eval_split", "eval_batch_size")),
    *("data.num_threads", "data.num_workers"),
    *("teacher.cache_dir", "teacher.head_weights"),
    *(f"train.{key}" for key in ("steps", "log_every", "checkpoint_every", "keep_checkpoints")),
    "train.eval_every",
    "evaluation.*",
    "mesh.*",
)
# How a prediction meets the truth: as it is; times the ratio of medians of the image, or of the
# camera's images of a scene (or of the protocol's pool); or by the scale and shift of inverse depth
# that fit the image's truth best (least squares, MiDaS).
SCALINGS = ("metric", "median_image", "median_camera", "affine")
# By protocol (fsmde_jax/evaluate/protocols.py), whether it averages predictions with those of the
# mirrored image: "asked" is as `evaluation.flip_average` says.
PROTOCOLS = {"ssdepth": "never", "surrounddepth": "always", "vfdepth": "never", "packnet": "asked"}
# What is the mean over the bins; fsmde_jax/models/binned_depth.py computes it.
MEANS = ("depth", "log_depth", "inverse_depth")
TRUTH = "truth"  # a teacher that knows: the miniature world's dense depth
DTYPES = ("float32", "bfloat16", "float16")  # that networks compute in
_POSITIVE = {  # whole numbers from 1
    "train": ("steps", "log_every", "checkpoint_every", "keep_checkpoints"),
    "data": ("batch_size", "eval_batch_size", "downscale"),
    "bins": ("num_bins",),
}
DDAD_CAMERAS = ("CAMERA_01", "CAMERA_05", "CAMERA_07", "CAMERA_09", "CAMERA_08", "CAMERA_06")


def default_config() -> ConfigDict:
    """The configuration of a student's training run, locked against unknown keys."""
    config = ConfigDict()
    config.name = "default"
    # What is trained: "student", "teacher_head" (the binning head on a frozen foundation model)
    # or "foundation" (a relative-depth model on dense truth of the miniature world).
    config.task = "student"
    config.seed = 0
    config.data = _data()
    config.world = _world()
    config.student = _student()
    config.bins = _bins()
    config.teacher = _teacher()
    config.objective = _objective()
    config.optimizer = _optimizer()
    config.train = _train()
    config.evaluation = _evaluation()
    # Devices along `data` hold different samples; along `fsdp` they also share the teacher's
    # parameters. -1: all that are left.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.lock()
    return config


def from_file(text: str) -> ConfigDict:
    """The config that a text names, as `--config=` takes it.

    Args:
      text: a Python file with `get_config` ("mine.py"), or the name of a config of the package
        ("demo"). After a colon a variant, which `get_config` gets ("demo:supervised").

    Raises `ConfigError` with the file's line where that has a fault.
    """
    name, _, variant = text.partition(":")
    file = _config_file(name)
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(*([variant] if variant else []))
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error


def _config_file(name: str) -> pathlib.Path:
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("[!_]*.py"))}
    if name in shipped:
        return shipped[name]
    file = pathlib.Path(name)
    hint = did_you_mean(file.stem, shipped)
    if file.suffix != ".py":
        raise ConfigError(
            f"there is no config {name!r}: name a .py file, or one of {', '.join(shipped)}{hint}"
        )
    if not file.is_file():
        raise ConfigError(f"there is no file {name}{hint}")
    return file


def load_config(workdir: pathlib.Path) -> ConfigDict:
    """The configuration a run in `workdir` was made with; its teacher's head is trained.

    Paths into the run are there wherever it was moved, also those of runs from before, which name
    the folder that the head was trained in.
    """
    file = workdir / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"{workdir} is no run's folder: there is no {file}")
    config, values = default_config(), read_config(file)
    values["teacher"].pop("head_stage", None)
    try:
        config.update(values)
        if missing := [key for key, value in flatten(values).items() if value is None]:
            raise ValueError(f"{missing[0]!r} has no value")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"{file} was written by another version of fsmde_jax: {what}. Mend that key in the "
            "file, or make the run again"
        ) from error
    for key in _PATHS_IN_RUN:
        if (named := config.teacher[key]) and (workdir / named).is_dir():
            config.teacher[key] = str(workdir / named)
    head = config.teacher.head_weights
    if head and not pathlib.Path(head).is_dir() and (workdir / HEAD_FOLDER).is_dir():
        config.teacher.head_weights = str(workdir / HEAD_FOLDER)
    return config


def save_config(config: ConfigDict, folder: pathlib.Path, run: pathlib.Path | None = None) -> None:
    """Writes config.json into `folder`; paths into the run are relative to that folder.

    Args:
      run: the run's folder if that is not `folder` itself.
    """
    files.write_text(folder / CONFIG_FILE, as_json(config, folder, run) + "\n")


def as_json(config: ConfigDict, folder: pathlib.Path, run: pathlib.Path | None = None) -> str:
    """The text of config.json; arguments as of `save_config`."""
    config, root = config.copy_and_resolve_references(), (run or folder).resolve()
    for key in _PATHS_IN_RUN:
        named = pathlib.Path(config.teacher[key])
        if config.teacher[key] and named.resolve().is_relative_to(root):
            config.teacher[key] = os.path.relpath(named.resolve(), folder.resolve())
    values = json.loads(config.to_json_best_effort())
    return json.dumps({"format": _FORMAT, **values}, indent=2)


def refuse_other_config(config: ConfigDict, workdir: pathlib.Path, started: bool) -> None:
    """Refuses a `workdir` whose config.json is damaged, or is not that of a run.

    Where that run has `started`, also if `config` differs in what makes its result another one. A
    key that an older config.json lacks had its default.
    """
    if not (workdir / CONFIG_FILE).is_file():
        return
    saved = flatten(read_config(workdir / CONFIG_FILE))
    if not started:
        return
    defaults, wanted = (
        flatten(json.loads(c.to_json_best_effort())) for c in (default_config(), config)
    )
    may_change = lambda key: any(fnmatch.fnmatch(key, known) for known in MAY_CHANGE)  # noqa: E731
    wanted = {key: value for key, value in wanted.items() if not may_change(key)}
    if what := differences(defaults | saved, wanted, "there"):
        raise ConfigError(
            f"{workdir} holds a run of another config: {what}. Go on with the config it was made "
            "with, or start a new run from its weights with --fork=NEW_WORKDIR"
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a config by dotted key, without the stage before: the run names its result."""
    found = {}
    for key, value in values.items():
        if prefix + key == "teacher.head_stage":
            continue
        nested = isinstance(value, dict)
        found |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def input_focal_px(config: ConfigDict) -> float:
    """`student.canonical_focal_px` in pixels of what the networks get: of the shrunk images."""
    return config.student.canonical_focal_px / config.data.downscale


def read_config(file: pathlib.Path, do: str = _MEND) -> dict[str, Any]:
    """The values in a run's config.json, as this version means them.

    Raises `UserError` where it is missing or damaged, which tells the user what to `do`.
    """
    values = files.read_json(file, "the run's config", do)
    sections = [key for key, value in default_config().items() if isinstance(value, ConfigDict)]
    if not isinstance(values, dict) or not isinstance(values.get("teacher"), dict):
        raise ConfigError(f"{file} is not the config of a run of fsmde_jax. {do}")
    if wrong := [key for key in sections if not isinstance(values.get(key, {}), dict)]:
        raise ConfigError(f"{file} is damaged: {wrong[0]!r} is no section of keys. {do}")
    focal_px = values.get("student", {}).get("canonical_focal_px")
    downscale = values.get("data", {}).get("downscale")
    is_old = values.pop("format", 1) == 1
    if is_old and isinstance(focal_px, float) and isinstance(downscale, int):
        values["student"]["canonical_focal_px"] = focal_px * downscale
    return values


def _data() -> ConfigDict:
    data = ConfigDict()
    data.dataset = "ddad"  # a folder of tfds_builders/
    data.data_dir = "data"  # prepared datasets lie in <data_dir>/<dataset>/<config_name>/
    data.config_name = "384x640"
    data.train_split = "train"
    data.eval_split = "val"
    # Only so many scenes of the training split, its first ones, have their LiDAR used; 0: all.
    # The other ones are left out, or kept for distillation.
    data.labelled_scenes = 0
    data.keep_unlabelled = False
    data.labelled_share = 0.5  # then, of what is drawn: labelled samples are repeated as needed
    # The rig, in ring order; a dataset with others is refused. (): as the dataset has them.
    data.cameras = DDAD_CAMERAS
    data.downscale = 1  # trains on prepared images shrunk by this whole number
    data.batch_size = 8  # samples (rings of images) over all devices
    data.eval_batch_size = 8
    data.min_depth_m = 0.1
    data.max_depth_m = 200.0
    # Folder of masks of the ego vehicle (fsmde_jax/data/masks.py). LiDAR on it does not supervise,
    # and LiDAR outside the depth range never does. "": no masks. Evaluation has its own.
    data.masks = ""
    data.points_per_image = 8192  # LiDAR points drawn at random for training; evaluation uses all
    data.num_threads = 8
    data.num_workers = 0  # processes; 0 reads with threads of this process
    data.flip_probability = 0.5
    data.jitter = 0.2  # strength of brightness, contrast and saturation changes; 0 is none
    data.jitter_per_camera = False  # False: the rig shares one draw
    data.zoom = 1.0  # each camera zooms in on a random window, by up to this factor; 1 is none
    return data


def _world() -> ConfigDict:
    """The miniature world, made when `data.dataset` is "world" and not prepared yet."""
    world = ConfigDict()
    world.seed = 0
    world.train_scenes = 32
    world.val_scenes = 8
    world.samples_per_scene = 6
    world.sample_stride = 10
    world.height = 200
    world.width = 320
    world.varied_rigs = False
    world.lidar_beams = 44
    world.image_size = (96, 160)
    world.dense_depth = False
    return world


def _student() -> ConfigDict:
    student = ConfigDict()
    # "tiny", "small", "resnet18", "resnet34", "mobilenetv2" or "efficientnet_lite0"
    # (fsmde_jax/models/student.py).
    student.size = "resnet18"
    # A hub id, folder or .safetensors file of the size's encoder (fsmde_jax/models/README.md has
    # them); "" starts from scratch.
    student.encoder_weights = ""
    # The focal length for which depth is predicted, in pixels of the prepared images; a camera of
    # another one has its depth scaled by the ratio.
    student.canonical_focal_px = 715.0873
    # What is the mean over the bins: "depth", or "log_depth" or "inverse_depth", which are nearer
    # where bins doubt.
    student.mean_of = "depth"
    return student


def _bins() -> ConfigDict:
    """The binning head; teacher and student share its design and number of bins."""
    # centers_of: "image" or "rig"; centers_kind: "widths" or "unbounded".
    return ConfigDict({"num_bins": 64, "centers_of": "image", "centers_kind": "widths"})


def _teacher() -> ConfigDict:
    teacher = ConfigDict()
    # Foundation weights: a hub id, a folder with config.json and model.safetensors (a "foundation"
    # run makes one, RUN/weights), or the shipped "mini-world". "random" is for tests and
    # --dry_run; "truth" is the miniature world's dense depth, a bound for all teachers. For task
    # "foundation", "" trains; one that is named is measured.
    teacher.weights = "Intel/dpt-large"
    # Only for task "foundation" that trains: the weights it goes on from; "" starts from scratch.
    teacher.start_weights = ""
    # The architecture: "" is that of the weights' config.json; for models trained or drawn here
    # a name of `FOUNDATION_SIZES` in fsmde_jax/tasks/foundation.py.
    teacher.size = ""
    # The foundation model's input. image: "student" (the image the student sees, colour jitter
    # and all) or "prepared" (as prepared: not shrunk, not jittered). resize: "patch" (up to the
    # next multiple of the patch) or "processor" (as the checkpoint's image processor does).
    teacher.image = "student"
    teacher.resize = "patch"
    # "online" runs the teacher in every step; "cached" reads what `fsmde_jax.cache_teacher` stored
    # in cache_dir ("": beside the prepared dataset).
    teacher.source = "online"
    teacher.cache_dir = ""
    # 0.1 resizes DINOv2's position embedding as the official code does, 0 as transformers does.
    teacher.position_offset = 0.0
    # For binning "head": the folder of a "teacher_head" run; "" makes it as head_stage says.
    teacher.head_weights = ""
    teacher.train_neck = False  # a "teacher_head" run also trains what feeds the head
    teacher.binning = "head"  # how bin probabilities come about: "head" or "soft"
    # "soft": range of the bins in the logarithm of the normalised prediction, and the softness.
    teacher.soft_range = (-3.0, 1.5)
    teacher.soft_temperature = 0.15
    # A "teacher_head" run made before this one, a whole config; its folder becomes head_weights.
    # Bins, range, canonical focal length and foundation model are this run's, and so is the data
    # where its data.config_name is "" or the same.
    teacher.head_stage = placeholder(ConfigDict)
    teacher.dtype = "float32"
    return teacher


def _objective() -> ConfigDict:
    """Weights of the terms, and what shapes them."""
    objective = ConfigDict()
    objective.silog = 1.0  # SILog on LiDAR of the student's depth, or of a head in training
    objective.silog_variance_focus = 0.85
    objective.supervision = "lidar"  # or "dense": the miniature world's truth, as an upper bound
    objective.ckd_divergence = 1.0  # KL(teacher || student) of bin probabilities
    objective.ckd_crossing = 0.4  # SILog of teacher probabilities on student centers
    # On every picture, LiDAR or not: the crossed depth has the teacher's structure, up to scale.
    objective.ckd_structure = 0.0
    objective.ckd_temperature = 1.0
    objective.vrkd = 1.0  # similarity between cameras
    objective.vrkd_on = "features"  # or "probabilities", of the bins
    objective.vrkd_pairs = "adjacent"  # neighbours whose views overlap; or "all"
    objective.vrkd_form = "kl"  # or "squared"
    objective.vrkd_temperature = 0.05
    # Tokens a camera (rows, columns), also those of `feature` and `pairwise`.
    objective.vrkd_grid = (6, 10)
    # The baselines (fsmde_jax/losses/baselines.py).
    objective.response = 0.0  # the teacher's depth, up to scale
    objective.feature = 0.0  # the teacher's features, through a trained 1x1 adapter
    objective.pairwise = 0.0  # similarity within a view
    # Only for task "teacher_head": likelihood of the LiDAR under the bins, which makes their width
    # say how sure the head is. SILog alone leaves that open.
    objective.bin_likelihood = 0.0
    # Only for task "foundation": weight of the multi-scale gradient term, and the share of the loss
    # where the scale alone is aligned: a fresh model needs it, a trained one may go on without.
    objective.foundation_gradient = 0.5
    objective.foundation_scale = 0.5
    # Log residuals well beyond it count hardly more; 0: all count alike.
    objective.foundation_saturation = 0.0
    return objective


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    # "adamw", or "muon": orthogonal updates of the kernels, far fewer steps for the same loss.
    optimizer.name = "adamw"
    optimizer.learning_rate = 3e-4
    optimizer.warmup_fraction = 0.05  # linear from 0; then cosine to final_fraction of the peak
    optimizer.final_fraction = 0.01
    optimizer.weight_decay = 0.01  # on kernels only
    optimizer.clip_norm = 1.0
    # 0: no moving average of weights and batch statistics; evaluation uses it where there is one.
    optimizer.ema_decay = 0.0
    return optimizer


def _train() -> ConfigDict:
    # checkpoint_every also bounds what a killed run repeats; eval_every=0: only at the end.
    return ConfigDict(
        {
            "steps": 30_000,
            "log_every": 50,
            "checkpoint_every": 1_000,
            "keep_checkpoints": 2,
            "eval_every": 5_000,
            "dtype": "float32",
        }
    )


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    # Or "surrounddepth", "vfdepth", "packnet" (fsmde_jax/evaluate/protocols.py).
    evaluation.protocol = "ssdepth"
    # How predictions meet the truth: "metric", "median_image", "median_camera" or "affine".
    evaluation.scaling = "metric"
    evaluation.max_depth_m = 0.0  # where the evaluated range ends; 0: data.max_depth_m
    # Folder of self-occlusion masks, "estimate" (fsmde_jax/data/masks.py), or "" for none.
    evaluation.masks = ""
    # Average disparity with the mirror image's, where the protocol leaves that open ("packnet").
    evaluation.flip_average = False
    evaluation.references = True  # also measure the trivial predictor and the teacher
    evaluation.pictures = 3  # rings drawn into report/
    evaluation.picture_max_depth_m = 80.0  # end of the one fixed colour range
    return evaluation


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuses combinations that would fail or mislead later; names the keys."""
    teacher, bins, data, objective = config.teacher, config.bins, config.data, config.objective
    if config.task not in ("student", "teacher_head", "foundation"):
        raise ConfigError(
            f"config.task is {config.task!r}; use 'student', 'teacher_head' or 'foundation'"
        )
    if teacher.binning not in ("head", "soft"):
        raise ConfigError(f"config.teacher.binning is {teacher.binning!r}; use 'head' or 'soft'")
    choices = {
        ("teacher", "image"): ("student", "prepared"),
        ("teacher", "resize"): ("patch", "processor"),
        ("teacher", "source"): ("online", "cached"),
        ("teacher", "dtype"): DTYPES,
        ("train", "dtype"): DTYPES,
        ("optimizer", "name"): ("adamw", "muon"),
        ("student", "mean_of"): MEANS,
        ("objective", "supervision"): ("lidar", "dense"),
        ("objective", "vrkd_on"): ("features", "probabilities"),
        ("objective", "vrkd_pairs"): ("adjacent", "all"),
    }
    for (section, key), allowed in choices.items():
        if (value := config[section][key]) not in allowed:
            raise ConfigError(
                f"config.{section}.{key} is {value!r}; use {' or '.join(map(repr, allowed))}"
            )
    if teacher.start_weights and (config.task != "foundation" or teacher.weights):
        raise ConfigError(
            f"config.teacher.start_weights={teacher.start_weights!r} is where a foundation model's "
            "training starts: it needs config.task='foundation' and config.teacher.weights=''"
        )
    if not 0 <= objective.foundation_scale <= 1:
        raise ConfigError(
            f"config.objective.foundation_scale={objective.foundation_scale} is a share of the "
            "loss: use 0 to 1"
        )
    if objective.foundation_saturation < 0:
        raise ConfigError(
            f"config.objective.foundation_saturation={objective.foundation_saturation} must be a "
            "log residual, or 0 for none"
        )
    if teacher.source == "cached" and teacher.image == "student" and data.jitter > 0:
        raise ConfigError(
            "config.teacher.source='cached' cannot follow colour jitter: set "
            "config.teacher.image='prepared' (the teacher sees images without it), or "
            "config.data.jitter=0"
        )
    if not 0 < data.labelled_share < 1:
        raise ConfigError(
            f"config.data.labelled_share={data.labelled_share} must be between 0 and 1; without "
            "unlabelled samples (config.data.keep_unlabelled) it has no effect"
        )
    if data.masks and not pathlib.Path(data.masks).is_dir():
        raise ConfigError(
            f"config.data.masks={data.masks!r} is no folder of self-occlusion masks "
            "(fsmde_jax/data/masks.py); '' trains without"
        )
    if data.zoom < 1:
        raise ConfigError(f"config.data.zoom={data.zoom} must be at least 1, which is none")
    if teacher.source == "cached" and data.zoom > 1:
        raise ConfigError(
            f"config.teacher.source='cached' knows nothing of the windows that config.data.zoom="
            f"{data.zoom} draws: set that to 1, or config.teacher.source='online'"
        )
    if config.task == "student" and teacher.binning == "soft" and bins.centers_of == "rig":
        raise ConfigError(
            "config.bins.centers_of='rig' needs config.teacher.binning='head': soft bins are "
            "normalised per image, so one set of centers cannot serve all cameras"
        )
    no_features = {"feature": objective.feature, "pairwise": objective.pairwise}
    if objective.vrkd_on == "features":
        no_features["vrkd"] = objective.vrkd
    if teacher.weights == TRUTH and (used := [name for name in no_features if no_features[name]]):
        raise ConfigError(
            f"config.teacher.weights='truth' has no features, which config.objective.{used[0]} "
            "compares: set that to 0 (config.objective.vrkd works on 'probabilities', too)"
        )
    if not 0 < data.min_depth_m < data.max_depth_m:
        raise ConfigError(
            f"config.data.min_depth_m={data.min_depth_m} must be positive and below "
            f"config.data.max_depth_m={data.max_depth_m}"
        )
    evaluation = {"protocol": tuple(PROTOCOLS), "scaling": SCALINGS}
    for key, allowed in evaluation.items():
        if config.evaluation[key] not in allowed:
            raise ConfigError(
                f"config.evaluation.{key} is {config.evaluation[key]!r}; use one of "
                f"{', '.join(allowed)}"
            )
    protocol = config.evaluation.protocol
    if config.evaluation.flip_average and PROTOCOLS[protocol] == "never":
        raise ConfigError(
            f"config.evaluation.flip_average is true, but protocol {protocol!r} has no mirror "
            "images: use 'surrounddepth', which is 'ssdepth' with them, or 'packnet', which has "
            "both variants"
        )
    if config.seed < 0:
        raise ConfigError(f"config.seed is {config.seed}; it must be 0 or more")
    if not 0 <= config.optimizer.ema_decay < 1:
        raise ConfigError(
            f"config.optimizer.ema_decay is {config.optimizer.ema_decay}; use 0, which keeps no "
            "average, to below 1"
        )
    if data.num_workers < 0:
        raise ConfigError(
            f"config.data.num_workers is {data.num_workers}; 0 reads with threads, 1 or more are "
            "processes"
        )
    for section, keys in _POSITIVE.items():
        for key in keys:
            if (value := config[section][key]) < 1:
                raise ConfigError(f"config.{section}.{key} is {value}; it must be at least 1")
