"""The forward as three launches from the same tasks: pool, project, Gram. For a GPU to decide whether they are faster.

Each has its own registers, and begins while the one before it ends (programmatic dependent launch): it waits until what
that one wrote can be read. Not measured on a GPU yet; `configs.LAUNCHES` says which is taken. All kernels take
the arguments of `icd_loss_kernel`.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from icd_kernels.backends.triton.exponential import INTERPRETS
from icd_kernels.backends.triton.gram_stage import gram_task, reduce_losses
from icd_kernels.backends.triton.kernels import BATCH_NUMBERS
from icd_kernels.backends.triton.pool import pool_task, pool_tasks
from icd_kernels.backends.triton.project import divided, project_task
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset


@triton.jit
def let_the_next_begin():
    """The next launch may take the place that this one leaves."""
    if not INTERPRETS:
        gdc_launch_dependents()


@triton.jit
def wait_for_the_one_before():
    """Returns when the launch before has ended and what it wrote can be read."""
    if not INTERPRETS:
        gdc_wait()


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def pool_kernel(
    student, teacher, student_logits, teacher_logits, work, counters, batch, student_group, student_splits,
    teacher_group, teacher_splits, wants_gradient, temperature: tl.float64, STUDENT: tl.constexpr,
    TEACHER: tl.constexpr, FORM: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """Pools the teacher's maps, then the student's. The first launch: what came before it has ended."""
    let_the_next_begin()
    task = tl.program_id(0)
    first_student = batch * pool_tasks(teacher, TEACHER)
    if task < first_student:
        pool_task(task, teacher, counters.p_teacher_pooled, teacher_group, TEACHER)
    if task >= first_student:
        pool_task(task - first_student, student, counters.p_student_pooled, student_group, STUDENT)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def project_kernel(
    student, teacher, student_logits, teacher_logits, work, counters, batch, student_group, student_splits,
    teacher_group, teacher_splits, wants_gradient, temperature: tl.float64, STUDENT: tl.constexpr,
    TEACHER: tl.constexpr, FORM: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """Projects the teacher's cells, then the student's."""
    let_the_next_begin()
    wait_for_the_one_before()
    task = tl.program_id(0)
    student_division = divided(student, student_group, student_splits, STUDENT)
    teacher_division = divided(teacher, teacher_group, teacher_splits, TEACHER)
    first = tl.cdiv(batch, teacher_group) * teacher_division[2]
    if task < first:
        project_task(
            task, teacher, counters.p_teacher_pooled, counters.p_teacher_logits, batch, teacher_division, TEACHER
        )
    if task >= first:
        project_task(
            task - first, student, counters.p_student_pooled, counters.p_student_logits, batch, student_division,
            STUDENT,
        )  # fmt: skip


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def gram_kernel(
    student, teacher, student_logits, teacher_logits, work, counters, batch, student_group, student_splits,
    teacher_group, teacher_splits, wants_gradient, temperature: tl.float64, STUDENT: tl.constexpr,
    TEACHER: tl.constexpr, FORM: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """The Gram stage, whose tasks wait for each other and are drawn therefore."""
    wait_for_the_one_before()
    student_division = divided(student, student_group, student_splits, STUDENT)
    teacher_division = divided(teacher, teacher_group, teacher_splits, TEACHER)
    gram_task(
        draw_task(counters), student_logits, teacher_logits, student_division, teacher_division, work, counters,
        batch, temperature, wants_gradient, FORM,
    )  # fmt: skip
    if is_last_task(counters, 0):
        reduce_losses(work, batch, FORM)
        reset(counters, SLOT)
