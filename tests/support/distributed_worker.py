"""What two processes find: python -m torch.distributed.run --nproc-per-node 2 .. distributed_worker.py RESULTS.json

A check returns an error relative to what is right, or a text. What every process returned is written, by rank.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_network import SmallNetwork
from torch import Tensor, nn
from torch.autograd import grad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from icd_kernels import ICDLoss, NetworkOutput, gram_kl, icd_loss, make_objective
from icd_kernels.distributed import GatheredICDLoss, full_head, gather_batch

IMAGES, CLASSES = 8, 5
EQUAL, UNEQUAL = (4, 4), (5, 3)
SECONDS = 60

Loss = Callable[..., Tensor]
"""Of (student, teacher, images, labels)."""


def made(channels: int, seed: int) -> SmallNetwork:
    return SmallNetwork(channels, CLASSES, seed).double()


def sharded_network(network: SmallNetwork) -> SmallNetwork:
    fully_shard(network.head)
    fully_shard(network)
    return network


def head_of(network: Any) -> tuple[Tensor, Tensor | None]:
    return full_head(network.module.head if isinstance(network, DistributedDataParallel) else network.head)


def output(network: nn.Module, images: Tensor) -> NetworkOutput:
    return network(images)._replace(head=head_of(network))


def icd(module: Callable[..., Tensor]) -> Loss:
    def loss(student: nn.Module, teacher: SmallNetwork, images: Tensor, _labels: Tensor) -> Tensor:
        return module(student(images).features, head_of(student), teacher(images).features, teacher.head).mean()

    return loss


def objective(method: str) -> Loss:
    module = make_objective(method, num_classes=CLASSES)

    def loss(student: nn.Module, teacher: SmallNetwork, images: Tensor, labels: Tensor) -> Tensor:
        return module(output(student, images), output(teacher, images), labels, epoch=20).total  # the ramp is over

    return loss


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 13, 11, dtype=torch.float64, generator=generator)
    return images, torch.randint(CLASSES, (IMAGES,), generator=generator)


def own(tensor: Tensor, counts: tuple[int, ...] = EQUAL) -> Tensor:
    """This process's rows."""
    return tensor.split(counts)[dist.get_rank()]


def gradient_error(
    loss: Loss, whole: Loss, counts: tuple[int, ...] = EQUAL, wrap: Callable[[SmallNetwork], nn.Module] | None = None
) -> float:
    """The student's gradient of `loss`, each process with its shard, against that of `whole` in one with all images."""
    teacher, student, single = made(7, seed=1), (wrap or DistributedDataParallel)(made(4, seed=2)), made(4, 2)
    loss(student, teacher, *(own(tensor, counts) for tensor in batch())).backward()
    whole(single, teacher, *batch()).backward()
    return relative_error(gradient(student.parameters()), gradient(single.parameters()))


def gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    grads = (parameter.grad for parameter in parameters)
    return torch.cat([getattr(one, "full_tensor", lambda one=one: one)().flatten() for one in grads])


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of the largest element."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def gathered(counts: tuple[int, ...] = EQUAL, *, equal_batches: bool = False, **options: Any) -> float:
    options["gram"] = "sample"
    module = GatheredICDLoss(equal_batches=equal_batches, **options)
    return gradient_error(icd(module), icd(ICDLoss(**options)), counts)


def gathered_compiled() -> float:
    module = torch.compile(GatheredICDLoss(gram="sample", equal_batches=True), fullgraph=True, backend="aot_eager")
    return gradient_error(icd(module), SAMPLE)


def gathered_value() -> float:
    """Every process has the loss of the whole batch, image by image."""
    teacher, student = made(7, seed=1), made(4, seed=2)
    options: dict[str, Any] = {"gram": "sample", "normalize": "l2", "reduction": "none", "weight": 3.0}
    losses = []
    for module, images in ((GatheredICDLoss(**options), own(batch()[0], UNEQUAL)), (ICDLoss(**options), batch()[0])):
        losses.append(module(student(images).features, student.head, teacher(images).features, teacher.head))
    return relative_error(*losses)


def summed_gradient() -> float:
    """A loss that every process has counts once for each of them where gradients are summed, not averaged."""
    values = batch()[0]
    rows = own(values, UNEQUAL).clone().requires_grad_()
    gather_batch(rows).pow(3).sum().backward()
    assert rows.grad is not None
    return relative_error(rows.grad, dist.get_world_size() * 3 * own(values, UNEQUAL) ** 2)


def second_derivative() -> float:
    """With R processes and f = Σ x³: the first is R·3x², and that of its square R²·36x³."""
    values = batch()[0]
    rows = own(values, UNEQUAL).clone().requires_grad_()
    (first,) = grad(gather_batch(rows).pow(3).sum(), rows, create_graph=True)
    (second,) = grad(first.square().sum(), rows)
    return relative_error(second, dist.get_world_size() ** 2 * 36 * own(values, UNEQUAL) ** 3)


def no_rows() -> float:
    """A process whose shard is empty."""
    values = batch()[0]
    return relative_error(gather_batch(own(values, (IMAGES, 0))), values)


def message(call: Callable[[], object]) -> str:
    try:
        return f"nothing, but {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def other_rows() -> str:
    return message(lambda: gather_batch(torch.zeros(2, 3 + dist.get_rank())))


def other_group() -> str:
    group = dist.new_group([0])
    rows = torch.zeros(2)
    return message(lambda: gather_batch(rows, group) is rows)


def sharded_argument(name: str) -> str:
    """A DTensor in place of one argument of the loss."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    arguments: dict[str, Any] = {
        "student_features": torch.ones(4, 3, 4, 4),
        "student_weight": torch.ones(CLASSES, 3),
        "teacher_features": torch.ones(4, 2, 4, 4),
        "teacher_weight": torch.ones(CLASSES, 2),
        "student_bias": torch.ones(CLASSES),
    }
    arguments[name] = distribute_tensor(arguments[name], mesh, [Shard(0)])
    return message(lambda: icd_loss(**arguments))


def sharded_logits() -> str:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    logits = torch.ones(4, CLASSES, 21)
    return message(lambda: gram_kl(logits, distribute_tensor(logits, mesh, [Shard(0)])))


def sharded_head() -> str:
    """An objective with a head that FSDP2 holds."""
    sharded = sharded_network(made(4, seed=2))(own(batch()[0]))
    return message(lambda: make_objective("icd-kd", num_classes=CLASSES)(sharded, sharded, own(batch()[1])))


def flattened_head() -> str:
    """The first FSDP leaves a part of one long vector, which may be empty, in the place of a weight."""
    network, images = made(4, seed=2), own(batch()[0])
    wrapped = FullyShardedDataParallel(network, use_orig_params=True, device_id=torch.device("cpu"))
    features = wrapped(images).features
    return message(lambda: ICDLoss()(features, network.head, features, network.head))


METHODS = ("icd-kd", "icd-dkd", "icd-nkd")
LOSSES = {
    "class": icd(ICDLoss.paper()),
    "spatial": icd(ICDLoss.released()),
    **{name: objective(name) for name in METHODS},
}
SAMPLE = icd(ICDLoss(gram="sample"))

CHECKS: dict[str, Callable[[], float | str]] = {
    **{f"ddp {name}": partial(gradient_error, loss, loss) for name, loss in LOSSES.items()},
    "ddp sample": partial(gradient_error, SAMPLE, SAMPLE),
    "gathered mean": gathered,
    "gathered sum": partial(gathered, reduction="sum"),
    "gathered none": partial(gathered, reduction="none"),
    "gathered reference": partial(gathered, backend="reference"),
    "gathered nested": partial(gathered, pyramid="nested", normalize="zscore", scales=(1, 3)),
    "gathered equal_batches": partial(gathered, equal_batches=True),
    "gathered unequal": partial(gathered, UNEQUAL),
    "gathered compiled": gathered_compiled,
    "gathered value": gathered_value,
    "summed gradient": summed_gradient,
    "second derivative": second_derivative,
    "no rows": no_rows,
    "other rows": other_rows,
    "other group": other_group,
    "fsdp class": partial(gradient_error, LOSSES["class"], LOSSES["class"], wrap=sharded_network),
    "fsdp icd-kd": partial(gradient_error, LOSSES["icd-kd"], LOSSES["icd-kd"], wrap=sharded_network),
    "student_features": partial(sharded_argument, "student_features"),
    "student_weight": partial(sharded_argument, "student_weight"),
    "student_bias": partial(sharded_argument, "student_bias"),
    "teacher_weight": partial(sharded_argument, "teacher_weight"),
    "teacher_logits": sharded_logits,
    "sharded head": sharded_head,
    "flattened head": flattened_head,
}


def found(check: Callable[[], float | str]) -> list[float | str]:
    every: list[float | str] = [""] * dist.get_world_size()
    dist.all_gather_object(every, check())
    return every


def main(results: Path) -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # whatever hangs, ends
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=SECONDS / 2))
    written = {name: found(check) for name, check in CHECKS.items()}
    if dist.get_rank() == 0:
        results.write_text(json.dumps(written, indent=2))
    dist.barrier()
    # Not by way of the interpreter's end: now and then a thread of gloo is still there then, and torch aborts.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
