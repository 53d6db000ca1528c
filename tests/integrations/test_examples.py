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
from mdistiller_engine import installed, trained
from mdistiller_networks import resnet32x4
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
    "timm_task.py": (("timm",), 2, {"ce", "sd-dkd", "icd"}),
    "huggingface_trainer.py": (("transformers", "accelerate"), 2, {"ce", "sd-kd", "icd"}),
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


@pytest.mark.parametrize("compiled", [False, True])
def test_timm_task_has_the_objectives_gradients(compiled: bool) -> None:
    """The task's loss is that of the objective alone, with or without timm's own `compile`; an EMA follows."""
    skip_without("timm")
    example = load_example("timm_task.py")
    torch.manual_seed(1)
    teacher, student = (example.timm.create_model(name, num_classes=10) for name in ("resnet10t", "convnext_atto"))
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
    taps = FeatureTap(student.train()), FeatureTap(teacher.eval())
    with torch.no_grad():
        teacher_out = taps[1](images)
    expected_loss = make_objective("icd-dkd", num_classes=10)(taps[0](images), teacher_out, labels, epoch=20).total
    expected_loss.backward()
    expected = gradients(student)
    task = example.ICDTask(student, teacher, "icd-dkd", num_classes=10).train()
    task.epoch = 20
    task.setup_ema()
    if compiled:
        task.compile(backend="eager")
    result = task(images, labels)
    result["loss"].backward()
    torch.testing.assert_close(result["loss"], expected_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(student), expected, rtol=1e-4, atol=1e-5)
    task.update_ema(step=1)
    assert not teacher.training
    assert set(task.get_checkpoint_state()["state_dict"]) == set(student.state_dict())


def test_huggingface_trainer_accumulates_means(tmp_path: Path) -> None:
    """Two batches of four, accumulated, are one batch of eight: the trained weights agree."""
    skip_without("transformers", "accelerate")
    example = load_example("huggingface_trainer.py")
    weights = []
    for batch, steps in ((8, 1), (4, 2)):
        torch.manual_seed(2)
        student, teacher = example.networks()
        arguments = example.TrainingArguments(
            str(tmp_path / str(batch)),
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            learning_rate=0.1,
            optim="sgd",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        torch.manual_seed(3)
        data = example.images(8)
        method = {"teacher": teacher, "method": "icd-kd", "num_classes": 10}
        trainer = example.ICDTrainer(student, arguments, train_dataset=data, eval_dataset=data[:4], **method)
        trainer.train()
        weights.append({name: value.clone() for name, value in student.state_dict().items()})
        assert math.isfinite(trainer.evaluate()["eval_loss"])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_mdistiller_trains_the_distiller(monkeypatch: pytest.MonkeyPatch) -> None:
    """By mdistiller's own classes where it can be imported, else by a stand-in of its interface."""
    skip_without("yacs")
    if importlib.util.find_spec("mdistiller") is None:
        import yacs.config

        for name, module in installed(yacs.config).items():
            monkeypatch.setitem(sys.modules, name, module)
    example = load_example("mdistiller/icd_distiller.py")
    example.register()
    example.CFG.DISTILLER.TYPE = "ICD"
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(100, (4,))) for _ in range(2)]
    student, teacher = resnet32x4(), resnet32x4()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    losses = trained(student, teacher, batches)
    assert [set(step) for step in losses] == [{"loss_icd"}] * 4
    assert all(math.isfinite(step["loss_icd"]) for step in losses)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)


CLIENTS = {
    "torchvision": "torchvision_step.py",
    "timm": "timm_step.py",
    "timm.task": "timm_task.py",
    "Lightning": "lightning_module.py",
    "Accelerate": "accelerate_loop.py",
    "Hugging Face": "huggingface_trainer.py",
    "torchdistill": "torchdistill/train.py",
    "mdistiller": "mdistiller/icd_distiller.py",
}
"""Each client's example, by its heading in docs/integrations.md."""


@pytest.mark.parametrize("client", CLIENTS)
def test_the_lines_that_are_added_are_those_of_the_example(client: str) -> None:
    """The first block of a client's section is what a user adds: its lines stand in the example, and are counted."""
    document = (EXAMPLES.parent / "docs" / "integrations.md").read_text()
    section = document.split(f"\n## {client}\n")[1].split("\n## ")[0]
    block = section.split("```")[1].partition("\n")[2]
    added = [line.strip() for line in block.splitlines() if line.strip()]
    folder = (EXAMPLES / CLIENTS[client]).parent
    files = folder.iterdir() if folder != EXAMPLES else [EXAMPLES / CLIENTS[client]]
    lines = {line.strip() for file in files if file.is_file() for line in file.read_text().splitlines()}
    assert [line for line in added if line not in lines] == []
    row = next(line for line in document.splitlines() if line.startswith(f"| {client} |"))
    assert row.split("|")[3].strip() == str(len(added)), f"{client} adds {len(added)} lines"
