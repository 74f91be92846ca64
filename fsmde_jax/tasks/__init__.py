"""What a run trains: the student, the teacher's binning head, or a small foundation model.

A task names the model, which of its parameters learn, the frozen teacher beside it, the loss and
the depth that evaluation measures. `train/loop.py` is the same for all.
"""

from ml_collections import ConfigDict

from fsmde_jax.tasks import foundation, student, teacher_head
from fsmde_jax.tasks.student import build_student, student_inputs
from fsmde_jax.tasks.task import Task
from fsmde_jax.tasks.teacher_head import build_teacher, teacher_inputs

__all__ = [
    "Task",
    "build_student",
    "build_teacher",
    "make_task",
    "student_inputs",
    "teacher_inputs",
]


def make_task(config: ConfigDict) -> Task:
    """The task that `config.task` names."""
    makers = {
        "student": student.make,
        "teacher_head": teacher_head.make,
        "foundation": foundation.make,
    }
    return makers[config.task](config)
