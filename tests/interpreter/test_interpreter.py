"""The Triton backend in Triton's interpreter, on the CPU: small shapes, every option.

Run by tests/test_triton_interpreter.py in a process of its own: Triton decides at import whether it interprets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from cases import (
    CASES_RUN,
    DTYPES,
    GRAMS,
    LAYOUTS,
    REDUCTIONS,
    STUDENT,
    WEIGHT_LAYOUTS,
    Case,
    Limits,
    Network,
    Tensors,
    case_strategy,
    loss_of,
    option_grid,
)
from hypothesis import Phase, given, settings
from judging import assert_no_worse_than_eager, gram_kl_problem, icd_loss_problem, region_logits_problem
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.ten_minutes import changed
from icd_kernels import ICDLoss, available_backends, gram_kl, region_logits
from icd_kernels.backends import choose
from icd_kernels.backends.triton.operators import OPERATORS, interprets
from icd_kernels.options import NORM_FLOOR, make_options
from icd_kernels.problem import lower, lower_gram

if not interprets():
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from programs import bits, interpreted

TRITON = "triton"
LIMITS = Limits(batch=3, channels=6, side=6, classes=8, scale=3, scales=3)
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a failing case would take the interpreter an hour."""
SMALL: dict[str, Any] = {"scales": (1, 2)}


def with_student(tensors: Tensors, student: Sequence[torch.Tensor]) -> Tensors:
    """`tensors` with other student's features, weight and bias."""
    return tensors._replace(**dict(zip(STUDENT, student, strict=True)))


@pytest.fixture(autouse=True)
def _interpreted(poisoned_memory: None, request: pytest.FixtureRequest) -> Iterator[None]:
    with interpreted(checks_overflow=request.cls in (TestDrawnCases, TestManyBlocks)):
        yield


class TestDrawnCases:
    """Any shapes, strides, dtypes, scales and options, against the float64 reference."""

    @given(case=case_strategy(LIMITS))
    @settings(max_examples=40, phases=UNSHRUNK)
    def test_icd_loss(self, case: Case) -> None:
        CASES_RUN["icd_loss by the interpreter"] += 1
        assert_no_worse_than_eager(icd_loss_problem(case), TRITON)

    @given(case=case_strategy(LIMITS))
    @settings(max_examples=20, phases=UNSHRUNK)
    def test_region_logits(self, case: Case) -> None:
        CASES_RUN["region_logits by the interpreter"] += 1
        assert_no_worse_than_eager(region_logits_problem(case), TRITON)

    @given(case=case_strategy(LIMITS))
    @settings(max_examples=20, phases=UNSHRUNK)
    def test_gram_kl(self, case: Case) -> None:
        CASES_RUN["gram_kl by the interpreter"] += 1
        assert_no_worse_than_eager(gram_kl_problem(case), TRITON)


class TestManyBlocks:
    """More than one block of everything that is cut into blocks."""

    CASES: ClassVar[dict[str, Case]] = {
        "channels and splits": Case(student=Network(300, 2, 2), teacher=Network(150, 2, 2), options=SMALL),
        "pixels": Case(student=Network(2, 9, 8), teacher=Network(2, 17, 5), options=SMALL),
        "classes": Case(batch=2, classes=130, options=SMALL),
        "classes beyond one vector": Case(batch=1, classes=1030, student=Network(2, 2, 2), options={"scales": (1,)}),
        "cells": Case(batch=2, student=Network(3, 9, 9), options={"scales": (9, 2), "pyramid": "adaptive"}),
        "folded cells": Case(batch=2, student=Network(3, 9, 9), options={"scales": (2, 9), "pyramid": "nested"}),
        "images": Case(batch=35, student=Network(2, 2, 2), teacher=Network(2, 1, 3), options={"scales": (2,)}),
    }

    @pytest.mark.parametrize("gram", GRAMS)
    @pytest.mark.parametrize("name", sorted(CASES))
    def test_icd_loss(self, gram: str, name: str) -> None:
        case = self.CASES[name]
        heavy = {"class": ("cells", "folded cells", "images"), "sample": ("cells", "folded cells")}
        if name in heavy.get(gram, ()):  # as many tasks as cells and images; one scale holds them all
            case = replace(case, options={**case.options, "scales": (4,), "normalize": "l2"}, batch=min(case.batch, 34))
        networks = (
            replace(n, dtype=torch.float32, weight_dtype=torch.float32, bias_dtype=None)
            for n in (case.student, case.teacher)
        )
        student, teacher = networks
        case = replace(case, student=student, teacher=teacher, options={**case.options, "gram": gram})
        if name == "images" and gram == "class":
            case = replace(case, batch=20, options={**case.options, "scales": (1,)})
        assert_no_worse_than_eager(icd_loss_problem(case, ("student_features", "student_weight")), TRITON)

    def test_bands_of_rows(self) -> None:
        """A head too large for the cache: five row tiles in bands of two, and blocks of classes and of channels."""
        dtypes: dict[str, Any] = {"dtype": torch.float32, "weight_dtype": torch.float32, "bias_dtype": torch.float32}
        student, teacher = Network(70, 2, 2, **dtypes), Network(66, 2, 2, **dtypes)
        options = {"gram": "spatial", "scales": (2,), "normalize": "l2"}
        case = Case(batch=35, classes=130, student=student, teacher=teacher, options=options)
        with changed("CACHED_BYTES", 2 * 32 * 70 * 4):
            assert_no_worse_than_eager(icd_loss_problem(case), TRITON)

    @pytest.mark.parametrize("gram", GRAMS)
    def test_three_launches(self, gram: str) -> None:
        """The forward as a chain of launches."""
        student, teacher = (Network(c, 4, 4, dtype=torch.float32, weight_dtype=torch.float32) for c in (20, 17))
        case = Case(batch=3, classes=18, student=student, teacher=teacher, options={"gram": gram, "scales": (1, 2)})
        with changed("LAUNCHES", 3), interpreted() as run:
            assert_no_worse_than_eager(icd_loss_problem(case), TRITON)
        names = [name for name, _ in run.launches]
        assert names[:3] == ["pool_kernel", "project_kernel", "gram_kernel"]
        assert "icd_loss_kernel" not in names

    @pytest.mark.parametrize("wanted", [STUDENT, ("student_weight",), ("student_bias",)])
    def test_parts_of_the_images(self, wanted: tuple[str, ...]) -> None:
        """Enough rows (image, cell) for the gradients by weight and bias to be summed in parts."""
        student, teacher = (Network(c, 4, 4, dtype=torch.float32, weight_dtype=torch.float32) for c in (3, 2))
        options = {"gram": "spatial", "scales": (4,), "pyramid": "nested"}
        case = Case(batch=18, classes=5, student=student, teacher=teacher, options=options)
        with interpreted() as run:
            assert_no_worse_than_eager(icd_loss_problem(case, wanted), TRITON)
        name, programs = run.launches[-1]
        assert name == "backward_kernel"
        assert programs > 1, "one tile of classes and channels: more programs are parts of it"


class TestInputs:
    @pytest.mark.parametrize(
        ("layout", "weight_layout"), list(zip(sorted(LAYOUTS), 3 * sorted(WEIGHT_LAYOUTS), strict=False))
    )
    def test_layouts(self, layout: str, weight_layout: str) -> None:
        network = Network(3, 4, 2, layout=layout, weight_layout=weight_layout)
        case = Case(student=network, teacher=network, options={**SMALL, "gram": "spatial"})
        assert_no_worse_than_eager(icd_loss_problem(case), TRITON)
        features = case.tensors().requiring_grad("student_features")
        gradient = grad(loss_of(features, TRITON, **case.options), features.student_features)[0]
        if layout in ("channels_last", "token_grid"):
            assert gradient.stride() == features.student_features.stride()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("weight_dtype", DTYPES)
    def test_dtypes(self, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
        student = Network(dtype=dtype, weight_dtype=weight_dtype, bias_dtype=torch.bfloat16)
        teacher = Network(dtype=weight_dtype, weight_dtype=dtype, bias_dtype=None)
        case = Case(student=student, teacher=teacher, options={**SMALL, "gram": "spatial", "normalize": "l2"})
        assert_no_worse_than_eager(icd_loss_problem(case), TRITON)

    @pytest.mark.parametrize("wanted", [(name,) for name in STUDENT])
    @pytest.mark.parametrize("gram", GRAMS)
    def test_one_gradient(self, gram: str, wanted: tuple[str, ...]) -> None:
        case = Case(options={**SMALL, "gram": gram, "reduction": "none"})
        assert_no_worse_than_eager(icd_loss_problem(case, wanted), TRITON)

    @pytest.mark.parametrize("gram", GRAMS)
    def test_student_is_teacher(self, gram: str) -> None:
        student = Case(options=SMALL).tensors()[:3]
        tensors = Tensors(*student, *student).requiring_grad(*STUDENT)
        loss = loss_of(tensors, TRITON, gram=gram, **SMALL)
        assert loss == 0
        assert not any(gradient.any() for gradient in grad(loss, tensors.student))

    @pytest.mark.parametrize("gram", GRAMS)
    def test_no_images(self, gram: str) -> None:
        for reduction, expected in (("mean", torch.nan), ("sum", 0.0)):
            tensors = Case(batch=0).tensors().requiring_grad(*STUDENT)
            loss = loss_of(tensors, TRITON, gram=gram, reduction=reduction)
            torch.testing.assert_close(loss.detach(), torch.tensor(expected, dtype=torch.float64), equal_nan=True)
            assert not any(gradient.any() for gradient in grad(loss, tensors.student))


class TestHardNumbers:
    @pytest.mark.parametrize("gram", GRAMS)
    @pytest.mark.parametrize(("normalize", "magnitude"), [("none", 1e4), ("none", 1e-4), ("l2", 0.0), ("zscore", 0.0)])
    def test_magnitudes(self, gram: str, normalize: str, magnitude: float) -> None:
        case = Case(options={**SMALL, "gram": gram, "normalize": normalize, "reduction": "none"})
        student, teacher = (logits.float() for logits in case.local_logits())
        for inputs in ((student * magnitude, teacher), (student, teacher * magnitude)):
            assert_no_worse_than_eager(replace(gram_kl_problem(case), inputs=inputs), TRITON)

    @pytest.mark.parametrize("magnitude", [3.0, 3e2, 1e4, 1e6])
    def test_columns_of_a_class_gram_keep_their_digits(self, magnitude: float) -> None:
        """Exponents of size magnitude² are differences there, and must round as differences do."""
        generator = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(3, 18, 1, generator=generator) * magnitude for _ in range(2))
        gradients = []
        for backend, dtype in (("reference", torch.float64), (TRITON, torch.float32)):
            leaf = student.to(dtype).requires_grad_()
            loss = gram_kl(leaf, teacher.to(dtype), scales=(1,), gram="class", backend=backend)
            gradients.append(grad(loss, leaf)[0].double())
        exact, found = gradients
        assert (found - exact).abs().max() <= 2e-6 * exact.abs().max()

    @pytest.mark.parametrize("gram", GRAMS)
    @pytest.mark.parametrize("temperature", [1e-2, 1e3])
    def test_temperatures(self, gram: str, temperature: float) -> None:
        case = Case(options={**SMALL, "gram": gram, "temperature": temperature})
        assert_no_worse_than_eager(icd_loss_problem(case), TRITON)

    @pytest.mark.parametrize("gram", GRAMS)
    @pytest.mark.parametrize(
        ("where", "value"), list(zip(Tensors._fields, 2 * (torch.nan, torch.inf, -torch.inf), strict=True))
    )
    def test_not_finite(self, gram: str, where: str, value: float) -> None:
        tensors = Case().tensors()
        getattr(tensors, where).view(-1)[1] = value
        tensors = tensors.requiring_grad(*STUDENT)
        loss = loss_of(tensors, TRITON, gram=gram, normalize="l2", **SMALL)
        assert loss.isnan()
        assert all(gradient.isnan().any() for gradient in grad(loss, tensors.student))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_not_finite_stays_in_its_cells(self, value: float) -> None:
        features, weight, bias = Case().tensors()[:3]
        features[1, 0, 3, 3] = value
        got, expected = (region_logits(features, weight, bias, backend=name) for name in (TRITON, "reference"))
        torch.testing.assert_close(got, expected, equal_nan=True)

    @pytest.mark.parametrize("gram", ["class", "spatial"])
    def test_other_images_are_untouched(self, gram: str) -> None:
        tensors = Case(batch=3).tensors().requiring_grad("student_features")
        options = {**SMALL, "gram": gram, "reduction": "none"}
        clean = grad(loss_of(tensors, TRITON, **options).sum(), tensors.student_features)[0]
        with torch.no_grad():
            tensors.student_features[1, 0, 2, 2] = torch.nan
        gradient = grad(loss_of(tensors, TRITON, **options).sum(), tensors.student_features)[0]
        assert gradient[1].isnan().any()
        torch.testing.assert_close(gradient[[0, 2]], clean[[0, 2]], rtol=0, atol=0)

    def test_floor_is_that_of_the_definition(self) -> None:
        from icd_kernels.backends.triton.logits import NORM_FLOOR as IN_KERNELS

        assert IN_KERNELS.value == NORM_FLOOR


@pytest.mark.parametrize(
    "options",
    [
        *option_grid(pyramid="nested", normalize="l2", reduction="none"),
        *option_grid(pyramid="adaptive", normalize="none", reduction="mean"),
    ],
)
class TestPrograms:
    """Which program does what, and when, changes nothing."""

    def results(self, options: dict[str, Any]) -> list[bytes]:
        case = Case(batch=3, classes=7, student=Network(70, 4, 4), options={**SMALL, **options})
        tensors = case.tensors().requiring_grad(*STUDENT)
        loss = loss_of(tensors, TRITON, **case.options)
        return bits(loss, *grad(loss.sum(), tensors.student))

    def test_any_order(self, options: dict[str, Any]) -> None:
        expected = self.results(options)
        for seed in range(2):
            with interpreted(seed=seed):
                assert self.results(options) == expected

    def test_at_the_same_time(self, options: dict[str, Any]) -> None:
        expected = self.results(options)
        with interpreted(threads=5):
            assert self.results(options) == expected


class _Kernels(TorchDispatchMode):
    """Notes the operations that would launch something on a GPU; `set_` is the interpreter's own."""

    QUIET = (
        "empty",
        "view",
        "split",
        "select",
        "transpose",
        "detach",
        "alias",
        "slice",
        "as_strided",
        "unbind",
        "set_",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1]
        if not name.startswith(self.QUIET) and "empty" not in name:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class TestLaunches:
    @pytest.mark.parametrize("options", option_grid(pyramid="nested", normalize="l2"))
    def test_one_forward_and_at_most_two_backward(self, options: dict[str, Any]) -> None:
        case = Case(student=Network(2, 2, 2, dtype=torch.bfloat16), options={"scales": (1, 2), **options})
        tensors = case.tensors().requiring_grad(*STUDENT)
        with interpreted() as run:
            loss = loss_of(tensors, TRITON, **case.options)
            assert [name for name, _ in run.launches] == ["icd_loss_kernel"]
            grad(loss.sum(), tensors.student)
        backward = [name for name, _ in run.launches[1:]]
        is_mixed = options["gram"] == "sample" and options["reduction"] == "none"
        assert backward == (["gram_kl_kernel"] if is_mixed else []) + ["backward_kernel"]

    def test_without_gradient(self) -> None:
        with interpreted() as run, torch.no_grad():
            loss_of(Case(options=SMALL).tensors().requiring_grad(*STUDENT), TRITON, **SMALL)
        assert [name for name, _ in run.launches] == ["icd_loss_kernel"]

    def test_of_the_parts(self) -> None:
        case = Case(options=SMALL)
        student = case.tensors().requiring_grad(*STUDENT).student
        with interpreted() as run:
            grad(region_logits(*student, backend=TRITON, **SMALL).sum(), student)
            logits = [logits.requires_grad_() for logits in case.local_logits()]
            grad(gram_kl(*logits, backend=TRITON, **SMALL), logits[0])
        names = [name for name, _ in run.launches]
        assert names == ["region_logits_kernel", "fold_kernel", "backward_kernel", "gram_kl_kernel", "scale_kernel"]

    @pytest.mark.parametrize("gram", GRAMS)
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_nothing_else_runs(self, gram: str, reduction: str) -> None:
        """No copy, cast or fill around the launches."""
        from icd_kernels.backends.triton import backward, icd_loss

        forward_operator: Any = icd_loss.icd_loss
        backward_operator: Any = backward.icd_loss_backward
        student = Network(2, 2, 2, layout="channels_last", dtype=torch.bfloat16, bias_dtype=torch.float16)
        tensors = Case(student=student, teacher=Network(3, 3, 3, dtype=torch.float32)).tensors()
        named = make_options(scales=(1, 2), gram=gram, normalize="l2", temperature=2.0, reduction=reduction)
        problem = lower(
            named, tensors.student_weight.shape[0], tensors.student_features.shape, tensors.teacher_features.shape
        )
        options: Any = problem.options
        loss_of(tensors, TRITON, gram=gram, reduction=reduction, **SMALL)
        features, weight = tensors.student[:2]
        with _Kernels() as kernels:
            loss, *saved = forward_operator(*tensors, *options, *problem[1:], True, True)
            layout: Any = (features.shape, features.stride(), features.dtype, torch.float16)
            backward_operator(loss, *saved, weight, *layout, *options, problem.student_finest, (True, True, True))
        assert kernels.seen == []


class TestTorch:
    @pytest.mark.parametrize("gram", GRAMS)
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_opcheck(self, gram: str, reduction: str) -> None:
        tensors = Case(classes=3, student=Network(2, 2, 2), teacher=Network(2, 2, 2)).tensors()
        operators = getattr(torch.ops, OPERATORS)
        named = make_options(scales=(1, 2), gram=gram, pyramid="nested", normalize="l2", reduction=reduction)
        options = lower_gram(named, 3)
        torch.library.opcheck(operators.icd_loss.default, (*tensors, *options, 2, 2, True, True))
        outcome = operators.icd_loss(*tensors, *options, 2, 2, True, True)
        features, weight = tensors.student[:2]
        layout = (features.shape, features.stride(), features.dtype, weight.dtype)
        arguments = (outcome[0], *outcome[1:], weight, *layout, *options, 2, (True, True, True))
        torch.library.opcheck(operators.icd_loss_backward.default, arguments)

    def test_opcheck_of_the_parts(self) -> None:
        case = Case(classes=3, student=Network(2, 2, 2))
        features, weight, bias = case.tensors()[:3]
        operators = getattr(torch.ops, OPERATORS)
        torch.library.opcheck(operators.region_logits.default, (features, weight, bias, (1, 2), 2, True))
        logits, pooled = operators.region_logits(features, weight, bias, (1, 2), 2, True)
        layout = (features.shape, features.stride(), features.dtype, weight.dtype)
        arguments = (logits, pooled, weight, *layout, (1, 2), 2, (True, True, True))
        torch.library.opcheck(operators.region_logits_backward.default, arguments)
        options = lower_gram(make_options(scales=(1, 2), gram="spatial", normalize="l2", reduction="none"), 3)
        torch.library.opcheck(operators.gram_kl.default, (logits, logits, *options, True))
        loss, saved = operators.gram_kl(logits, logits, *options, True)
        torch.library.opcheck(operators.gram_kl_backward.default, (loss, saved, torch.float32, *options))

    def test_compile(self) -> None:
        tensors = Case(options=SMALL).tensors().requiring_grad(*STUDENT)
        compiled = torch.compile(lambda t: loss_of(t, TRITON, **SMALL), fullgraph=True, backend="aot_eager")
        expected, got = loss_of(tensors, TRITON, **SMALL), compiled(tensors)
        assert bits(got, *grad(got, tensors.student)) == bits(expected, *grad(expected, tensors.student))

    def test_auto_never_interprets(self) -> None:
        assert available_backends()[0] == TRITON
        assert choose("auto", "cpu").name != TRITON
        assert choose(TRITON, "cpu").name == TRITON

    def test_module(self) -> None:
        tensors = Case().tensors().requiring_grad(*STUDENT)
        loss = ICDLoss.released(scales=(1, 2), backend=TRITON)
        heads = (tensors[1:3], tensors[4:6])
        result = loss(tensors[0], heads[0], tensors[3], heads[1])
        reference = ICDLoss.released(scales=(1, 2), backend="reference")(tensors[0], heads[0], tensors[3], heads[1])
        torch.testing.assert_close(result, reference)
