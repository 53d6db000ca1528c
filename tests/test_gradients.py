"""Gradients: right (against finite differences), only those asked for, in the student's layout, and only once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    COMPILED,
    EVERY_BACKEND,
    LAYOUTS,
    STUDENT,
    Case,
    Network,
    Tensors,
    feature_map,
    loss_of,
    option_grid,
)
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from icd_kernels import gram_kl, region_logits

pytestmark = pytest.mark.usefixtures("poisoned_memory")

GEOMETRIES = [
    pytest.param((1, 2), (2, 4), id="folds"),
    pytest.param((3, 1, 2), (2, 4), id="overlaps"),
]


@pytest.mark.parametrize("backend", EVERY_BACKEND)
class TestFiniteDifferences:
    @pytest.mark.parametrize(("scales", "size"), GEOMETRIES)
    @pytest.mark.parametrize("options", option_grid())
    def test_icd_loss(
        self, backend: str, options: dict[str, Any], scales: tuple[int, ...], size: tuple[int, int]
    ) -> None:
        student = Network(channels=2, height=size[0], width=size[1])
        case = Case(batch=2, classes=3, student=student, seed=3)
        tensors = case.tensors().requiring_grad(*STUDENT)

        def compute(*student: Tensor) -> Tensor:
            networks = Tensors(student[0], student[1], student[2], *tensors[3:])
            return loss_of(networks, backend, scales=scales, temperature=0.7, **options)

        assert gradcheck(compute, tensors.student)

    @pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
    @pytest.mark.parametrize(("scales", "size"), GEOMETRIES)
    def test_region_logits(self, backend: str, pyramid: str, scales: tuple[int, ...], size: tuple[int, int]) -> None:
        tensors = Case(batch=2, classes=3, student=Network(channels=2, height=size[0], width=size[1])).tensors()
        student = tensors.requiring_grad(*STUDENT).student
        assert gradcheck(lambda *t: region_logits(*t, scales=scales, pyramid=pyramid, backend=backend), student)

    @pytest.mark.parametrize("options", option_grid(pyramid="adaptive"))
    def test_gram_kl(self, backend: str, options: dict[str, Any]) -> None:
        options = {name: value for name, value in options.items() if name != "pyramid"}
        student, teacher = Case(batch=3, classes=3, options={"scales": (2, 1)}).local_logits()
        assert gradcheck(
            lambda logits: gram_kl(logits, teacher, scales=(2, 1), temperature=0.7, backend=backend, **options),
            student.requires_grad_(),
        )


WANTED = [
    pytest.param(names, id="+".join(name.removeprefix("student_") for name in names))
    for names in (STUDENT[:1], STUDENT[1:2], STUDENT[2:], STUDENT[:2], STUDENT[1:], STUDENT)
]


@pytest.mark.parametrize("backend", EVERY_BACKEND)
class TestOnlyThoseAskedFor:
    @pytest.mark.parametrize("wanted", WANTED)
    @pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_each_alone_is_what_it_is_among_all(
        self, backend: str, wanted: tuple[str, ...], gram: str, reduction: str
    ) -> None:
        alone, among_all = (Case().tensors().requiring_grad(*names) for names in (wanted, STUDENT))
        for tensors in (alone, among_all):
            loss_of(tensors, backend, gram=gram, reduction=reduction).sum().backward()
        for name in STUDENT:
            gradient, expected = getattr(alone, name).grad, getattr(among_all, name).grad
            if name in wanted:
                torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
            else:
                assert gradient is None

    def test_region_logits(self, backend: str) -> None:
        for wanted in STUDENT:
            tensors = Case().tensors().requiring_grad(wanted)
            region_logits(*tensors[:3], backend=backend).sum().backward()
            assert [name for name in STUDENT if getattr(tensors, name).grad is not None] == [wanted]

    def test_the_teacher_gets_none_though_it_requires_one(self, backend: str) -> None:
        tensors = Case().tensors().requiring_grad(*Tensors._fields)
        loss_of(tensors, backend).backward()
        for name in Tensors._fields:
            assert (getattr(tensors, name).grad is None) == name.startswith("teacher"), name
        only_teacher = Case().tensors().requiring_grad("teacher_features", "teacher_weight", "teacher_bias")
        assert not loss_of(only_teacher, backend).requires_grad

    def test_the_teachers_logits_get_none_though_they_require_one(self, backend: str) -> None:
        student, teacher = (logits.requires_grad_() for logits in Case().local_logits())
        gram_kl(student, teacher, backend=backend).backward()
        assert student.grad is not None
        assert teacher.grad is None

    def test_student_as_its_own_teacher(self, backend: str) -> None:
        """The same tensor on both sides is still a constant on the teacher's."""
        logits = Case().local_logits()[0].requires_grad_()
        weaker = Case(seed=1).local_logits()[1]
        (alone,) = grad(gram_kl(logits, weaker, backend=backend), logits)
        (both,) = grad(gram_kl(logits, weaker, backend=backend) + gram_kl(weaker, logits, backend=backend), logits)
        torch.testing.assert_close(both, alone)

    def test_nothing_requires_one(self, backend: str) -> None:
        loss = loss_of(Case().tensors(), backend)
        assert not loss.requires_grad
        assert loss.grad_fn is None

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_no_grad(self, backend: str, context: Any) -> None:
        tensors = Case().tensors().requiring_grad(*STUDENT)
        with context():
            loss = loss_of(tensors, backend)
            logits = region_logits(*tensors[:3], backend=backend)
            kl = gram_kl(logits, logits, backend=backend)
        assert all(result.grad_fn is None and not result.requires_grad for result in (loss, logits, kl))
        torch.testing.assert_close(loss.clone(), loss_of(tensors, backend).detach(), rtol=1e-13, atol=0)


class _Recorded(TorchDispatchMode):
    """Records the results of every operator called by the name of its last part."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.results[func.overloadpacket.__name__] = result
        return result


@pytest.mark.parametrize("backend", COMPILED)
class TestNoWork:
    """What was not asked for is not computed: the operators return it empty."""

    @pytest.mark.parametrize("wanted", WANTED)
    def test_backward(self, backend: str, wanted: tuple[str, ...]) -> None:
        tensors = Case().tensors().requiring_grad(*wanted)
        with _Recorded() as recorded:
            loss_of(tensors, backend).backward()
        gradients = recorded.results["icd_loss_backward"]
        assert [gradient.numel() > 0 for gradient in gradients] == [name in wanted for name in STUDENT]
        _, saved, pooled = recorded.results["icd_loss"]
        assert saved.numel() > 0
        assert (pooled.numel() > 0) == ("student_weight" in wanted)

    def test_forward_without_gradient(self, backend: str) -> None:
        with _Recorded() as recorded, torch.no_grad():
            loss_of(Case().tensors().requiring_grad(*STUDENT), backend)
        assert [tensor.numel() for tensor in recorded.results["icd_loss"]] == [1, 0, 0]


@pytest.mark.parametrize("backend", COMPILED)
class TestUpstream:
    @pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_gradients_scale_with_what_comes_in(self, backend: str, gram: str, reduction: str) -> None:
        """Also an upstream gradient that is expanded, of another memory layout, or zero for an image."""
        options = {"gram": gram, "reduction": reduction}
        tensors = Case(batch=4).tensors().requiring_grad(*STUDENT)
        size = (4,) if reduction == "none" else ()
        strided = torch.tensor([2.0, 9.0, -1.0, 9.0, 0.0, 9.0, 0.5, 9.0], dtype=torch.float64)[::2]
        upstreams = [torch.tensor(-3.0, dtype=torch.float64).expand(size), strided if size else strided[3]]
        for upstream in upstreams:
            expected = grad(loss_of(tensors, "reference", **options), tensors.student, upstream)
            got = grad(loss_of(tensors, backend, **options), tensors.student, upstream)
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)

    def test_twice_through_a_retained_graph(self, backend: str) -> None:
        tensors = Case().tensors().requiring_grad(*STUDENT)
        loss = loss_of(tensors, backend)
        first = grad(loss, tensors.student, retain_graph=True)
        second = grad(loss, tensors.student)
        assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))

    def test_a_strided_upstream_gradient_of_the_logits(self, backend: str) -> None:
        tensors = Case().tensors().requiring_grad(*STUDENT)
        upstream = feature_map((2, 5, 21, 1), "permuted").squeeze(3)
        expected = grad(region_logits(*tensors[:3], backend="reference"), tensors.student, upstream)
        for stand_in in (upstream, upstream.contiguous(), upstream.transpose(1, 2).contiguous().transpose(1, 2)):
            got = grad(region_logits(*tensors[:3], backend=backend), tensors.student, stand_in)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def _losses(backend: str) -> list[tuple[Tensor, Tensor]]:
    """The loss of icd_loss and of gram_kl, each with the tensor it depends on."""
    tensors = Case().tensors().requiring_grad("student_features")
    logits = Case().local_logits()[0].requires_grad_()
    kl = gram_kl(logits, logits.detach().roll(1), backend=backend)
    return [(loss_of(tensors, backend), tensors.student_features), (kl, logits)]


@pytest.mark.parametrize("backend", COMPILED)
class TestForwardMode:
    """The fused backends have no forward-mode derivative: asked for one, they say so, and never give 0."""

    @pytest.mark.parametrize("wanted", ["student_features", "student_weight", "student_bias", "teacher_features"])
    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_icd_loss(self, backend: str, wanted: str, requires_grad: bool) -> None:
        tensors = Case().tensors()
        leaf = getattr(tensors, wanted).requires_grad_(requires_grad)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
            loss_of(tensors._replace(**{wanted: forward_ad.make_dual(leaf, torch.ones_like(leaf))}), backend)

    def test_by_functions(self, backend: str) -> None:
        features, weight, _ = Case().tensors().student
        student, teacher = Case().local_logits()
        calls: list[Any] = [
            (lambda x: region_logits(x, weight, backend=backend), features),
            (lambda x: gram_kl(x, teacher, backend=backend), student),
        ]
        for function, tensor in calls:
            with pytest.raises(RuntimeError, match="no forward-mode derivative"):
                torch.func.jvp(function, (tensor,), (torch.ones_like(tensor),))

    def test_the_reference_has_it(self, backend: str) -> None:
        student, teacher = Case().local_logits()
        along = torch.func.jvp(
            lambda x: gram_kl(x, teacher, backend="reference"), (student,), (torch.ones_like(student),)
        )[1]
        (gradient,) = grad(gram_kl(student.requires_grad_(), teacher, backend=backend), student)
        torch.testing.assert_close(along, gradient.sum())


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("index", [pytest.param(0, id="icd_loss"), pytest.param(1, id="gram_kl")])
class TestSecondDerivative:
    """Not computed: an error, never a wrong number."""

    def test_grad_of_grad(self, backend: str, index: int) -> None:
        loss, leaf = _losses(backend)[index]
        (first,) = grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=r"second derivative.*backend='reference'"):
            grad(first.square().sum(), leaf)

    def test_gradient_penalty(self, backend: str, index: int) -> None:
        loss, leaf = _losses(backend)[index]
        (first,) = grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            (loss + first.square().sum() + leaf.square().sum()).backward()

    def test_penalty_by_grad(self, backend: str, index: int) -> None:
        """Where the loss reaches the leaf by another way, so that nothing looks unused."""
        loss, leaf = _losses(backend)[index]
        (first,) = grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            grad(leaf.square().sum() + first.square().sum(), leaf, allow_unused=True)

    def test_backward_with_create_graph(self, backend: str, index: int) -> None:
        loss, leaf = _losses(backend)[index]
        loss.backward(create_graph=True)
        assert leaf.grad is not None
        with pytest.raises(RuntimeError, match="second derivative"):
            grad(leaf.grad.sum(), leaf)

    def test_upstream_that_requires_grad(self, backend: str, index: int) -> None:
        loss, leaf = _losses(backend)[index]
        factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        (first,) = grad(loss * factor, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            grad(first.sum(), factor)

    def test_first_derivative_with_create_graph(self, backend: str, index: int) -> None:
        (expected,) = grad(*_losses(backend)[index])
        (got,) = grad(*_losses(backend)[index], create_graph=True)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("wanted", STUDENT)
def test_second_derivative_by_another_input(backend: str, wanted: str) -> None:
    """The gradient by the features depends on the weight and the bias too, and so on for each."""
    tensors = Case().tensors().requiring_grad(*STUDENT)
    for result in (loss_of(tensors, backend), region_logits(*tensors[:3], backend=backend).square().sum()):
        (first,) = grad(result, getattr(tensors, wanted), create_graph=True)
        for tensor in tensors.student:
            with pytest.raises(RuntimeError, match="second derivative"):
                grad(first.square().sum(), tensor, retain_graph=True, allow_unused=True)


def test_second_derivative_of_the_reference_is_right() -> None:
    student, teacher = Case(batch=2, classes=3, options={"scales": (2,)}).local_logits()
    compute = lambda logits: gram_kl(logits, teacher, scales=(2,), backend="reference")  # noqa: E731
    assert torch.autograd.gradgradcheck(compute, student.requires_grad_())


@pytest.mark.parametrize("backend", COMPILED)
class TestLayout:
    """The gradient by the features comes back dense, with the student's own order of strides."""

    @pytest.mark.parametrize("layout", sorted(LAYOUTS))
    @pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (1, 1, 4, 2), (3, 2, 1, 4)])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("function", ["icd_loss", "region_logits"])
    def test_order_of_strides(
        self, backend: str, layout: str, shape: tuple[int, int, int, int], dtype: torch.dtype, function: str
    ) -> None:
        network = Network(shape[1], *shape[2:], layout=layout, dtype=dtype)
        tensors = Case(batch=shape[0], student=network).tensors().requiring_grad("student_features")
        features = tensors.student_features
        got, expected = (self.gradient(function, tensors, name) for name in (backend, "reference"))
        tolerance = 0.01 if dtype == torch.bfloat16 else 1e-11
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
        assert got.dtype == dtype
        assert is_dense(got)
        if not layout.startswith("expanded"):
            assert order_of_strides(got) == order_of_strides(features)

    def gradient(self, function: str, tensors: Tensors, backend: str) -> Tensor:
        result = loss_of(tensors, backend) if function == "icd_loss" else region_logits(*tensors[:3], backend=backend)
        return grad(result, tensors.student_features, torch.ones_like(result))[0]

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "token_grid"])
    def test_a_dense_layout_keeps_its_strides(self, backend: str, layout: str) -> None:
        student = Network(layout=layout)
        tensors = Case(student=student).tensors().requiring_grad("student_features")
        (got,) = grad(loss_of(tensors, backend), tensors.student_features)
        assert got.stride() == tensors.student_features.stride()

    @pytest.mark.parametrize("class_tokens", [0, 1])
    def test_a_vision_transformers_tokens(self, backend: str, class_tokens: int) -> None:
        """From (B, tokens, C) to the loss and back: the tokens' gradient is the reference's, zero for a class token."""
        tensors = Case(student=Network(channels=6)).tensors()
        values = feature_map((2, class_tokens + 16, 6, 1)).squeeze(3)
        gradients = []
        for name in (backend, "reference"):
            tokens = values.clone().requires_grad_()
            grid = tokens[:, class_tokens:].transpose(1, 2).unflatten(2, (4, 4))
            loss_of(tensors._replace(student_features=grid), name).backward()
            gradients.append(tokens.grad)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-15)

    def test_memory_shared_between_pixels(self, backend: str) -> None:
        """An expanded map's gradient flows back to the one pixel it was made from."""
        tensors = Case(student=Network(channels=6)).tensors()
        pixel = feature_map((2, 6, 1, 1)).requires_grad_()
        gradients = []
        for name in (backend, "reference"):
            loss = loss_of(tensors._replace(student_features=pixel.expand(2, 6, 4, 4)), name)
            gradients.append(grad(loss, pixel)[0])
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-15)


def is_dense(tensor: Tensor) -> bool:
    """Every element has a place of its own, and there is no gap between them."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def order_of_strides(tensor: Tensor) -> list[int]:
    """The dimensions longer than 1, by falling stride."""
    longer = [dim for dim in range(tensor.ndim) if tensor.shape[dim] > 1]
    return sorted(longer, key=tensor.stride, reverse=True)
