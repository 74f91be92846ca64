"""What a checkpoint must share with the config that reads it or goes on with it."""

from typing import Any

from ml_collections import ConfigDict

from fsmde_jax.config import TRUTH, input_focal_px


def of_run(config: ConfigDict, teacher: str | None) -> dict[str, Any]:
    """What a checkpoint must share with a config to go on with it, in words a user can compare.

    `teacher` is the third that `load.place_model` returns.
    """
    dataset = {"dataset": config.data.dataset}
    if config.task == "teacher_head":
        return of_head(config, teacher) | dataset
    if config.task == "foundation":
        return {"task": "foundation", "foundation": config.teacher.size} | dataset
    sizes = {"student": of_student(config), "bins": config.bins.to_dict()}
    # None where there is none, as in a checkpoint from before there were adapters.
    adapter = {"feature_adapter": True if config.objective.feature else None}
    if config.teacher.weights == TRUTH:
        teacher = TRUTH
    return {"task": "student"} | sizes | dataset | {"teacher": teacher} | adapter


def of_student(config: ConfigDict) -> dict[str, Any]:
    """`config.student` with the focal length that the network works for, in its own pixels."""
    return config.student.to_dict() | {"canonical_focal_px": input_focal_px(config)}


def of_head(config: ConfigDict, foundation_fingerprint: str | None) -> dict[str, Any]:
    """What a trained binning head must share with the teacher that takes it."""
    return {
        "task": "teacher_head",
        "bins": config.bins.to_dict(),  # how centers are made, too
        "min_depth_m": config.data.min_depth_m,
        "max_depth_m": config.data.max_depth_m,
        "canonical_focal_px": input_focal_px(config),
        "neck": config.teacher.train_neck,
        "foundation": foundation_fingerprint,
    }
