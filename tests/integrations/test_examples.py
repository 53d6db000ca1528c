"""The examples as a user runs them, each where its library is installed: tools/check_integrations.sh installs all."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels import FeatureTap, ICDLoss, available_backends, icd_loss, make_objective

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KD_TEMPERATURE = 4.0
ICD_TEMPERATURE, ICD_WEIGHT = 2.0, 2.0

CASES = {
    "torchvision_step.py": (("torchvision",), 2, {"ce", "kd", "icd"}),
    "timm_step.py": (("timm",), 2, {"ce", "sd-nkd", "icd"}),
    "lightning_module.py": (("lightning", "torchvision"), 1, {"ce", "sd-kd", "icd"}),
    "accelerate_loop.py": (("accelerate", "torchvision"), 4, {"ce", "sd-kd", "icd"}),
    "torchdistill/train.py": (("torchdistill", "torchvision"), 2, {"ce", "sd-kd", "icd"}),
    "mdistiller_style.py": ((), 2, {"ce", "sd-dkd", "icd"}),
}
"""Script: the libraries it needs, how many lines of terms it prints, and the terms beside the total."""


def skip_without(*libraries: str) -> None:
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: tools/check_integrations.sh installs it")


def run_example(script: str, folder: Path) -> str:
    """What the script prints, run in `folder` as by a user who has the package installed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / script)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def printed_terms(output: str) -> list[dict[str, float]]:
    """Every line of `name=value` pairs."""
    lines = [re.findall(r"(\S+)=(\S+)", line) for line in output.splitlines() if line.startswith("total=")]
    return [{name: float(value) for name, value in line} for line in lines]


@pytest.mark.parametrize("script", CASES)
def test_example_prints_finite_terms(script: str, tmp_path: Path) -> None:
    libraries, steps, names = CASES[script]
    skip_without(*libraries)
    lines = printed_terms(run_example(script, tmp_path))
    assert len(lines) == steps
    for terms in lines:
        assert set(terms) == names | {"total"}
        assert all(math.isfinite(value) for value in terms.values()), terms
        assert terms["icd"] > 0, terms


def load_example(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(script).stem, EXAMPLES / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def map_and_logits(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A torchvision ResNet written out."""
    stem = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = model.layer4(model.layer3(model.layer2(model.layer1(stem))))
    return features, model.fc(features.mean((2, 3)))


def hand_written_loss(student: Any, teacher: Any, images: Tensor, labels: Tensor) -> Tensor:
    """0.1 CE + 0.9 KD + 2 iCD in plain PyTorch."""
    with torch.no_grad():
        teacher_map, teacher_logits = map_and_logits(teacher, images)
    student_map, student_logits = map_and_logits(student, images)
    ce = F.cross_entropy(student_logits, labels)
    log_q, p = (student_logits / KD_TEMPERATURE).log_softmax(1), (teacher_logits / KD_TEMPERATURE).softmax(1)
    kd = KD_TEMPERATURE**2 * F.kl_div(log_q, p, reduction="batchmean")
    heads = student.fc.weight, teacher.fc.weight, student.fc.bias, teacher.fc.bias
    options: dict[str, Any] = {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "backend": "reference"}
    icd = icd_loss(student_map, heads[0], teacher_map, *heads[1:], temperature=ICD_TEMPERATURE, **options)
    return 0.1 * ce + 0.9 * kd + ICD_WEIGHT * icd


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(found) == len(list(model.parameters()))
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("backend", [name for name in available_backends() if name in ("cpp", "reference")])
def test_torchvision_step_has_the_gradients_of_a_hand_written_one(backend: str) -> None:
    skip_without("torchvision")
    example = load_example("torchvision_step.py")
    torch.manual_seed(1)
    teacher = example.resnet34(num_classes=example.NUM_CLASSES).double().eval()
    student = example.resnet18(num_classes=example.NUM_CLASSES).double().train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    labels = torch.randint(example.NUM_CLASSES, (4,))

    expected_loss = hand_written_loss(student, teacher, images, labels)
    expected_loss.backward()
    expected = gradients(student)

    taps = FeatureTap(student), FeatureTap(teacher)
    objective = make_objective("kd", num_classes=example.NUM_CLASSES)
    loss, _ = example.step_loss(*taps, objective, ICDLoss.released(backend=backend), images, labels)
    loss.backward()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(student), expected, rtol=1e-7, atol=1e-9)


def test_lightning_leaves_the_teacher_as_it_was() -> None:
    """Lightning keeps the modes that modules had before `fit`: a teacher in training mode would move its statistics."""
    skip_without("lightning", "torchvision")
    example = load_example("lightning_module.py")
    student, teacher = example.networks()
    module = example.Distillation(student, teacher)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    example.fit(module)
    assert module.global_step == 2
    assert not any(part.training for part in teacher.modules())
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
