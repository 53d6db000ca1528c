"""Bad input: TypeError or ValueError that names the argument, what was expected and what came, from every backend."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import COMPILED, EVERY_BACKEND, Case, Network, Tensors, loss_of
from torch import Tensor, nn

from icd_kernels import BackendUnavailableError, ICDLoss, available_backends, backends, gram_kl, icd_loss, region_logits
from icd_kernels.backends import ENVIRONMENT_VARIABLE
from icd_kernels.backends.base import Backend

ANY_BACKEND = pytest.mark.parametrize("backend", [pytest.param("auto"), *EVERY_BACKEND])

BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"scales": ()}, ValueError, r"scales .*at least one.*\(\)"),
    ({"scales": (1, 0)}, ValueError, r"scales .*1 or more.*\(1, 0\)"),
    ({"scales": (-2,)}, ValueError, r"scales .*1 or more.*\(-2,\)"),
    ({"scales": (1.0, 2.0)}, TypeError, r"scales .*ints.*float"),
    ({"scales": (True,)}, TypeError, r"scales .*ints.*bool"),
    ({"scales": 4}, TypeError, r"scales .*sequence of ints.*int: 4"),
    ({"scales": "124"}, TypeError, r"scales .*sequence of ints.*str: '124'"),
    ({"scales": None}, TypeError, r"scales .*sequence of ints.*NoneType"),
    ({"gram": "classes"}, ValueError, r"gram .*\('class', 'spatial', 'sample'\).*'classes'"),
    ({"gram": None}, TypeError, r"gram .*NoneType"),
    ({"pyramid": "chained"}, ValueError, r"pyramid .*\('adaptive', 'nested'\).*'chained'"),
    ({"pyramid": 1}, TypeError, r"pyramid .*int: 1"),
    ({"normalize": "L2"}, ValueError, r"normalize .*\('none', 'l2', 'zscore', .*\).*'L2'"),
    ({"normalize": None}, TypeError, r"normalize .*NoneType"),
    ({"reduction": "batchmean"}, ValueError, r"reduction .*\('mean', 'sum', 'none'\).*'batchmean'"),
    ({"reduction": None}, TypeError, r"reduction .*NoneType"),
    ({"temperature": 0}, ValueError, r"temperature .*above 0.*got 0"),
    ({"temperature": -1.5}, ValueError, r"temperature .*above 0.*got -1.5"),
    ({"temperature": float("nan")}, ValueError, r"temperature .*finite.*nan"),
    ({"temperature": float("inf")}, ValueError, r"temperature .*finite.*inf"),
    ({"temperature": "4"}, TypeError, r"temperature .*number.*str: '4'"),
    ({"temperature": True}, TypeError, r"temperature .*number.*bool"),
    ({"scale_weights": (1, 2)}, ValueError, r"scale_weights .*3 scales.*2: \(1, 2\)"),
    ({"scale_weights": ()}, ValueError, r"scale_weights .*3 scales.*0: \(\)"),
    ({"scale_weights": (1, -2, 3)}, ValueError, r"scale_weights .*0 or more.*\(1, -2, 3\)"),
    ({"scale_weights": (1, float("nan"), 3)}, ValueError, r"scale_weights .*finite.*nan"),
    ({"scale_weights": (1, float("inf"), 3)}, ValueError, r"scale_weights .*finite.*inf"),
    ({"scale_weights": (1, "2", 3)}, TypeError, r"scale_weights .*numbers.*str"),
    ({"scale_weights": 1.0}, TypeError, r"scale_weights .*sequence of numbers.*float: 1.0"),
]


def named(parameters: list[Any]) -> list[Any]:
    return [pytest.param(*values, id=f"{values[0]}") for values in parameters]


@ANY_BACKEND
class TestOptions:
    @pytest.mark.parametrize(("options", "error", "message"), named(BAD_OPTIONS))
    def test_icd_loss(self, backend: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            loss_of(Case().tensors(), backend, **options)

    @pytest.mark.parametrize(("options", "error", "message"), named(BAD_OPTIONS))
    def test_the_others(self, backend: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
        if "pyramid" not in options:
            with pytest.raises(error, match=message):
                gram_kl(*Case().local_logits(), backend=backend, **options)
        if options.keys() & {"scales", "pyramid"}:
            with pytest.raises(error, match=message):
                region_logits(*Case().tensors()[:3], backend=backend, **options)

    @pytest.mark.parametrize(("options", "error", "message"), named(BAD_OPTIONS))
    def test_module(self, backend: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
        """Wrong options fail when the module is made, not at the first batch."""
        with pytest.raises(error, match=message):
            ICDLoss(backend=backend, **options)


def bad_tensors(prefix: str) -> list[tuple[str, Any, type[Exception], str]]:
    """Name, what to put there, and the error; for a batch of 2, 5 classes, 3 channels and a 4 x 4 map."""
    features, weight, bias = (f"{prefix}_{name}" for name in ("features", "weight", "bias"))
    return [
        (features, torch.zeros(2, 3, 4), ValueError, rf"{features} .*\(B, C, H, W\).*\(2, 3, 4\)"),
        (features, torch.zeros(2, 3, 4, 4, 1), ValueError, rf"{features} .*\(B, C, H, W\).*\(2, 3, 4, 4, 1\)"),
        (features, torch.zeros(2, 3, 0, 4), ValueError, rf"{features} .*pixel.*\(2, 3, 0, 4\)"),
        (features, torch.zeros(2, 3, 4, 4, dtype=torch.int64), TypeError, rf"{features} .*float32.*torch.int64"),
        (features, torch.zeros(2, 3, 4, 4, dtype=torch.bool), TypeError, rf"{features} .*float32.*torch.bool"),
        (features, torch.zeros(2, 3, 4, 4, dtype=torch.complex64), TypeError, rf"{features} .*torch.complex64"),
        (features, torch.zeros(2, 3, 4, 4).to_sparse(), TypeError, rf"{features} .*dense.*sparse"),
        (features, [[1.0]], TypeError, rf"{features} .*torch.Tensor.*\(B, C, H, W\).*list"),
        (features, None, TypeError, rf"{features} .*torch.Tensor.*NoneType"),
        (weight, torch.zeros(5), ValueError, rf"{weight} .*\(K, C\).*\(5,\)"),
        (weight, torch.zeros(5, 3, 1, 1), ValueError, rf"{weight} .*\(K, C\).*\(5, 3, 1, 1\)"),
        (weight, torch.zeros(5, 7), ValueError, rf"{weight} .*3 channels of {features}.*\(5, 7\)"),
        (weight, torch.zeros(1, 3), ValueError, rf"{weight} .*2 classes.*\(1, 3\)"),
        (weight, torch.zeros(5, 3, dtype=torch.int32), TypeError, rf"{weight} .*float32.*torch.int32"),
        (weight, torch.zeros(5, 3, device="meta"), ValueError, rf"{weight} .*device of {features}.*cpu.*meta"),
        (weight, nn.Linear(3, 5), TypeError, rf"{weight} .*torch.Tensor.*Linear"),
        (bias, torch.zeros(5, 1), ValueError, rf"{bias} .*\(K,\).*\(5, 1\)"),
        (bias, torch.zeros(()), ValueError, rf"{bias} .*\(K,\).*\(\)"),
        (bias, torch.zeros(4), ValueError, rf"{bias} .*classes of {weight}.*5.*\(4,\)"),
        (bias, torch.zeros(5, dtype=torch.int64), TypeError, rf"{bias} .*float32.*torch.int64"),
        (bias, torch.zeros(5, device="meta"), ValueError, rf"{bias} .*device of {features}.*cpu.*meta"),
        (bias, 0.5, TypeError, rf"{bias} .*torch.Tensor.*\(K,\).*float"),
    ]


DISAGREEING: list[tuple[str, Tensor, type[Exception], str]] = [
    ("teacher_features", torch.zeros(3, 3, 4, 4), ValueError, r"teacher_features .*batch.*student_features.*2.*\(3, 3"),
    ("student_features", torch.zeros(4, 3, 4, 4), ValueError, r"teacher_features .*batch.*student_features.*4.*\(2, 3"),
    ("teacher_features", torch.zeros(2, 3, 4, 4, device="meta"), ValueError, r"teacher_weight .*device.*meta.*cpu"),
]


@ANY_BACKEND
class TestTensors:
    def tensors(self) -> Tensors:
        return Case(teacher=Network()).tensors()

    @pytest.mark.parametrize(
        ("name", "value", "error", "message"), [*bad_tensors("student"), *bad_tensors("teacher"), *DISAGREEING]
    )
    def test_icd_loss(self, backend: str, name: str, value: Any, error: type[Exception], message: str) -> None:
        """Bad tensors fail, also after good ones, which are remembered."""
        tensors = self.tensors()
        loss_of(tensors, backend)
        with pytest.raises(error, match=message):
            loss_of(tensors._replace(**{name: value}), backend)

    def test_classes_that_disagree(self, backend: str) -> None:
        tensors = self.tensors()._replace(teacher_weight=torch.zeros(6, 3), teacher_bias=None)
        with pytest.raises(ValueError, match=r"teacher_weight .*classes of student_weight, 5.*\(6, 3\)"):
            loss_of(tensors, backend)

    def test_networks_on_two_devices(self, backend: str) -> None:
        tensors = self.tensors()
        elsewhere = {name: getattr(tensors, name).to("meta") for name in Tensors._fields if name.startswith("teacher")}
        with pytest.raises(ValueError, match=r"teacher_features .*device of student_features, cpu, got meta"):
            loss_of(tensors._replace(**elsewhere), backend)

    @pytest.mark.parametrize(("name", "value", "error", "message"), bad_tensors("student"))
    def test_region_logits(self, backend: str, name: str, value: Any, error: type[Exception], message: str) -> None:
        """The same, but that its arguments have no prefix."""
        tensors = self.tensors()._replace(**{name: value})
        with pytest.raises(error, match=message.replace("student_", "")) as raised:
            region_logits(*tensors[:3], backend=backend)
        assert "student" not in str(raised.value)

    @pytest.mark.parametrize(
        ("student", "teacher", "error", "message"),
        [
            ((2, 5), (2, 5, 21), ValueError, r"student_logits .*\(B, K, N\).*\(2, 5\)"),
            ((2, 5, 21), (2, 5, 21, 1), ValueError, r"teacher_logits .*\(B, K, N\).*\(2, 5, 21, 1\)"),
            ((2, 5, 20), (2, 5, 21), ValueError, r"student_logits .*21 regions.*\(1, 2, 4\).*\(2, 5, 20\)"),
            ((2, 5, 21), (2, 5, 22), ValueError, r"teacher_logits .*21 regions.*\(1, 2, 4\).*\(2, 5, 22\)"),
            ((2, 1, 21), (2, 1, 21), ValueError, r"student_logits .*2 classes.*\(2, 1, 21\)"),
            ((2, 5, 21), (3, 5, 21), ValueError, r"teacher_logits .*batch.*student_logits, 2.*\(3, 5, 21\)"),
            ((2, 5, 21), (2, 6, 21), ValueError, r"teacher_logits .*classes.*student_logits, 5.*\(2, 6, 21\)"),
        ],
    )
    def test_gram_kl(
        self,
        backend: str,
        student: tuple[int, ...],
        teacher: tuple[int, ...],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            gram_kl(torch.zeros(student), torch.zeros(teacher), backend=backend)

    def test_gram_kl_of_integers_and_of_no_tensors(self, backend: str) -> None:
        logits = torch.zeros(2, 5, 21)
        with pytest.raises(TypeError, match=r"teacher_logits .*float32.*torch.int64"):
            gram_kl(logits, logits.long(), backend=backend)
        with pytest.raises(TypeError, match=r"student_logits .*torch.Tensor.*NoneType"):
            gram_kl(None, logits, backend=backend)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"teacher_logits .*device of student_logits, cpu, got meta"):
            gram_kl(logits, logits.to("meta"), backend=backend)


class TestHeads:
    @pytest.mark.parametrize("side", ["student_head", "teacher_head"])
    @pytest.mark.parametrize(
        ("head", "error", "message"),
        [
            (nn.Conv2d(3, 5, 3), ValueError, r"1 x 1 convolution.*kernel_size=\(3, 3\)"),
            (nn.Conv2d(3, 6, 1, groups=3), ValueError, r"1 x 1 convolution with one group.*groups=3"),
            ((torch.zeros(5, 3),), ValueError, r"pair \(weight, bias\).*1 item"),
            ((torch.zeros(5, 3), None, None), ValueError, r"pair \(weight, bias\).*3 items"),
            (nn.Conv1d(3, 5, 1), TypeError, r"nn.Linear.*Conv1d"),
            (torch.zeros(5, 3), TypeError, r"nn.Linear.*Tensor"),
            (None, TypeError, r"nn.Linear.*NoneType"),
        ],
    )
    def test_wrong_ones(self, side: str, head: Any, error: type[Exception], message: str) -> None:
        features = torch.zeros(2, 3, 4, 4)
        heads = {"student_head": nn.Linear(3, 5), "teacher_head": nn.Linear(3, 5), side: head}
        with pytest.raises(error, match=f"{side} .*{message}"):
            ICDLoss()(features, heads["student_head"], features, heads["teacher_head"])

    @pytest.mark.parametrize(
        ("weight", "error", "message"),
        [("2", TypeError, "number, got str"), (True, TypeError, "bool"), (float("nan"), ValueError, "finite, got nan")],
    )
    def test_weight_of_the_loss(self, weight: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"weight must be .*{message}"):
            ICDLoss(weight=weight)


class TestBackend:
    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("numpy", ValueError, r"backend must be one of .*'auto'.*'cpp'.*'reference'.*got 'numpy'"),
            ("", ValueError, r"backend must be one of .*got ''"),
            (None, TypeError, r"backend must be a string, got NoneType"),
        ],
    )
    def test_unknown(self, name: Any, error: type[Exception], message: str) -> None:
        tensors = Case().tensors()
        with pytest.raises(error, match=message):
            loss_of(tensors, name)
        with pytest.raises(error, match=message):
            region_logits(*tensors[:3], backend=name)
        with pytest.raises(error, match=message):
            gram_kl(*Case().local_logits(), backend=name)

    def test_available_ones_are_known_and_in_order(self) -> None:
        order = ("triton", "cuda", "cpp", "reference")
        ours = [name for name in available_backends() if name in order]  # other tests may register one of their own
        assert ours == [name for name in order if name in ours]
        assert ours[-1] == "reference"

    def test_environment_variable_sets_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It changes "auto" alone: a named backend stays the named one."""
        asked: list[str] = []
        recording = [_recording(name, asked) for name in ("cpp", "reference")]
        monkeypatch.setattr(backends, "BACKENDS", tuple(recording))
        tensors = Case().tensors()
        loss_of(tensors, "auto")
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
        loss_of(tensors, "auto")
        loss_of(tensors, "cpp")
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, "auto")
        loss_of(tensors, "auto")
        assert asked == ["cpp", "reference", "cpp", "cpp"]

    def test_environment_variable_with_a_bad_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda13")
        tensors = Case().tensors()
        with pytest.raises(ValueError, match=rf"{ENVIRONMENT_VARIABLE}.*one of .*'reference'.*'cuda13'"):
            loss_of(tensors, "auto")
        loss_of(tensors, "reference")

    def test_unavailable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A named backend raises an error that says what is missing; "auto" passes it over."""
        asked: list[str] = []
        missing = _recording("cpp", asked, missing="no extension here. Build it: make setup")
        monkeypatch.setattr(backends, "BACKENDS", (missing, _recording("reference", asked)))
        tensors = Case().tensors()
        with pytest.raises(BackendUnavailableError, match=r"'cpp' is not available: no extension.*make setup"):
            loss_of(tensors, "cpp")
        loss_of(tensors, "auto")
        assert asked == ["reference"]
        assert available_backends() == ("reference",)

    @pytest.mark.parametrize("backend", COMPILED)
    def test_of_another_device(self, backend: str) -> None:
        meta = Case().tensors().mapped(lambda tensor: tensor.to("meta"))
        with pytest.raises(ValueError, match=rf"'{backend}' runs on .*'cpu'.*, got tensors on 'meta'"):
            loss_of(meta, backend)

    def test_without_the_extension(self) -> None:
        """A process in which it cannot be loaded: the package imports, works, and says how to get it."""
        script = (
            "import sys; sys.modules['icd_kernels._C'] = None\n"
            "import torch, icd_kernels\n"
            "print(icd_kernels.available_backends())\n"
            "z = torch.randn(2, 3, 21)\n"
            "print(icd_kernels.gram_kl(z, z.roll(1)).item() > 0)\n"
            "icd_kernels.gram_kl(z, z)\n"
            "icd_kernels.gram_kl(z, z, backend='cpp')\n"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert run.returncode == 1
        available, computed = run.stdout.splitlines()
        assert "cpp" not in available
        assert "reference" in available
        assert computed == "True"
        warned = [line for line in run.stderr.splitlines() if "UserWarning" in line]
        assert len(warned) == 1  # of two calls
        assert re.search(
            r"plain PyTorch reference on 'cpu', .*slower. backend 'cpp' is not available: .*wheel", warned[0]
        )
        error = run.stderr.splitlines()[-1]
        assert re.search(
            r"BackendUnavailableError: backend 'cpp' is not available: .*C\+\+\d\d compiler.*pip install", error
        )

    def test_arguments_by_position_end_with_the_biases(self) -> None:
        tensors = Case().tensors()
        networks = (*tensors[:2], *tensors[3:5], tensors.student_bias, tensors.teacher_bias)
        with pytest.raises(TypeError, match="positional"):
            icd_loss(*networks, (1, 2))  # type: ignore[call-arg]


def _recording(name: str, asked: list[str], missing: str | None = None) -> Backend:
    """A stand-in backend that notes that it was asked."""

    def compute(*arguments: Any) -> Tensor:
        asked.append(name)
        return torch.zeros(())

    return Backend(name, ("cpu",), missing, compute, compute, compute, compute)
