"""Class form linear in K by the Triton backend, in the interpreter, against the exact definition."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_linear_class import KINDS, SWITCH, TOLERANCE, errors, gradient_terms, logits, loss_and_gradient

from icd_kernels import gram_kl
from icd_kernels.backends.triton.operators import interprets

if not interprets():
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from programs import bits, interpreted

from icd_kernels.backends.triton import chebyshev, class_gram, configs

TRITON = "triton"


def assert_right(kind: str, classes: int, normalize: str) -> None:
    """float32 is no worse than eager PyTorch, float64 within 2e-11 of the definition."""
    student, teacher = logits(kind, classes)
    exact = loss_and_gradient(student, teacher, torch.float64, normalize=normalize, backend="reference")
    eager = loss_and_gradient(student, teacher, torch.float32, normalize=normalize, backend="reference")
    with interpreted() as run:
        single = loss_and_gradient(student, teacher, torch.float32, normalize=normalize, backend=TRITON)
        double = loss_and_gradient(student, teacher, torch.float64, normalize=normalize, backend=TRITON)
    assert [name for name, _ in run.launches].count("gram_kl_kernel") == 2  # one launch forward, however it is summed
    floors = 1e-6 * classes, gradient_terms(student, normalize)
    for measured, allowed in zip(errors(single, exact, *floors), errors(eager, exact, *floors), strict=True):
        assert measured <= allowed + TOLERANCE
    assert max(errors(double, exact, 1e-2 * classes, floors[1])) < 2e-11


@pytest.mark.parametrize("classes", [2, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_eager(monkeypatch: pytest.MonkeyPatch, kind: str, classes: int) -> None:
    if kind == "nodes hit" and classes == 2:
        pytest.skip("two classes are the ends alone: there is no node between them to hit")
    monkeypatch.setenv(SWITCH, "linear")
    assert_right(kind, classes, "none")


@pytest.mark.parametrize("normalize", ["l2", "zscore"])
@pytest.mark.parametrize("kind", ["gaussian", "peaked", "close", "all negative"])
def test_normalised(monkeypatch: pytest.MonkeyPatch, kind: str, normalize: str) -> None:
    monkeypatch.setenv(SWITCH, "linear")
    assert_right(kind, 70, normalize)


@pytest.mark.parametrize("kind", ["gaussian", "close", "span 1e4"])
def test_the_choice_is_right_either_way(kind: str) -> None:
    assert configs.class_sum(600) == "auto"
    assert_right(kind, 600, "none")


def test_rows_that_turn_out_close_are_summed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks too far apart for the bound that says so beforehand, and too close for float32 exponentials."""
    monkeypatch.setenv(SWITCH, "linear")
    noise, teacher = logits("gaussian", 300)
    student, teacher = (3 * teacher + 0.05 * noise).float().double(), (3 * teacher).float().double()
    exact = loss_and_gradient(student, teacher, torch.float64, backend="reference")
    with interpreted():
        single = loss_and_gradient(student, teacher, torch.float32, backend=TRITON)
    assert errors(single, exact, 0.0)[0] < 2e-7


def test_automatic_is_one_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaked logits of 600 classes are summed linearly, logits that span too much exactly."""
    for kind, form in (("peaked", "linear"), ("span 1e4", "exact")):
        student, teacher = logits(kind, 600)
        outcomes = {}
        for choice in ("automatic", "exact", "linear"):
            monkeypatch.setenv(SWITCH, choice)
            with interpreted():
                outcomes[choice] = bits(*loss_and_gradient(student, teacher, torch.float32, backend=TRITON))
        assert outcomes["automatic"] == outcomes[form]
    assert outcomes["exact"] == outcomes["linear"], "beyond the largest number of nodes there is only the exact sum"


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_shows(monkeypatch: pytest.MonkeyPatch, side: int, bad: float) -> None:
    monkeypatch.setenv(SWITCH, "linear")
    pair = [part.clone() for part in logits("gaussian", 70)]
    pair[side][0, 7, 0] = bad
    with interpreted():
        loss, gradient = loss_and_gradient(pair[0], pair[1], torch.float32, backend=TRITON)
    assert loss.isnan()
    assert gradient.isnan().any()


@pytest.mark.parametrize(
    ("header", "name", "constant"),
    [("chebyshev.h", "kNodeStep", chebyshev.NODE_STEP), ("class_rows.h", "kCloseRows", class_gram.CLOSE_MEAN)],
)
def test_constants_are_those_of_the_compiled_backends(header: str, name: str, constant: Any) -> None:
    text = (Path(__file__).parents[2] / "csrc/common" / header).read_text()
    found = re.search(rf"constexpr \w+ {name} = ([^;]+);", text)
    assert found is not None
    assert float(found[1]) == constant.value


def test_a_loss_alone_needs_no_workspace_of_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "linear")
    student, teacher = logits("gaussian", 130)
    exact = gram_kl(student, teacher, scales=(1,), backend="reference")
    with interpreted():
        loss = gram_kl(student, teacher, scales=(1,), backend=TRITON)
    assert float(loss) == pytest.approx(float(exact), rel=1e-12)
