"""One progress bar with its ETA over the teacher's and all students' epochs."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm  # type: ignore[import-untyped]

from training.data import DataSet
from training.given_teacher import GivenTeacher
from training.state import Row, State
from training.teacher import Teacher

TEACHER_COST = 1.5
"""Time of a teacher's training image, in those of a student's (measured on a CPU; for the ETA alone)."""
TEST_COST = 0.15
"""Time of a test image, likewise."""


class Progress:
    """A bar that counts work, not epochs: a teacher's epoch takes many times a student's."""

    def __init__(
        self, images: DataSet, teacher: Teacher | GivenTeacher, state: State, *, is_shown: bool = True
    ) -> None:
        settings = state.settings
        self.teacher_epochs = teacher.epochs
        self.student_epochs: int = settings["epochs"]
        self.students = settings["seeds"] * len(settings["methods"])
        self.teacher_cost = TEACHER_COST * len(images.train_labels)
        self.student_cost = settings["train_images"] + TEST_COST * len(images.test_labels)
        self.rows_done = len(state.rows)
        students_left = self.students * self.student_epochs - self.rows_done
        teacher_left = teacher.epochs - teacher.epochs_done
        self.bar = tqdm(
            total=round(students_left * self.student_cost + teacher_left * self.teacher_cost),
            bar_format="{l_bar}{bar}| {elapsed}, {remaining} left{postfix}",
            mininterval=0.1 if sys.stderr.isatty() else 10,
            dynamic_ncols=True,
            disable=not is_shown,
        )
        self.bar.set_description("teacher" if teacher_left else "students")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()

    def teacher_epoch(self, epoch: int) -> None:
        """The teacher has finished another epoch."""
        self.bar.set_description(f"teacher, epoch {epoch}/{self.teacher_epochs}", refresh=False)
        self.bar.update(self.teacher_cost)

    def student_epoch(self, row: Row) -> None:
        """A student has finished another epoch."""
        self.rows_done += 1
        number = -(-self.rows_done // self.student_epochs)
        epoch = f"epoch {row['epoch']}/{self.student_epochs}"
        self.bar.set_description(f"student {number}/{self.students} ({row['method']}), {epoch}", refresh=False)
        self.bar.set_postfix_str(f"top-1 {row['test_top1']:.1f} %", refresh=False)
        self.bar.update(self.student_cost)
