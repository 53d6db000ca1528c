"""The processes that share a run, as torchrun starts them; one alone is a group of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from training.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from training.networks import Network

T = TypeVar("T")

LEAST_SHARE = 2
"""Images that every process gets of a batch: BatchNorm needs two."""

PATIENCE = timedelta(hours=2)
"""How long a process waits while the first one extracts an archive or evaluates. torchrun itself ends those that wait
for a process that has died."""


class ToldByFirstError(UsageError):
    """A UsageError of the first process, raised in the others, which need not say it again."""


class Processes(NamedTuple):
    """This process among those of the run. A UsageError that is raised in one is to be raised in all."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those of this machine."""
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        """What torchrun says in WORLD_SIZE, RANK, LOCAL_RANK and LOCAL_WORLD_SIZE; this process alone without it.

        Raises:
            UsageError: WORLD_SIZE is there, but not what torchrun sets with it.
        """
        world_size = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
        if world_size <= 1:
            return ALONE
        return cls(_number("RANK"), world_size, _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE"))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that evaluates, writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which of every batch's images are this process's."""
        return slice(self.rank, None, self.world_size)

    def weights(self, images: int, batch_size: int, steps: int) -> list[float]:
        """What an epoch's losses, means over this process's shares, are multiplied by.

        The mean over the processes is then that over the batch, though shares may differ by an image.

        Args:
            images: of the epoch.
            batch_size: of all batches but the last, which may be smaller.
            steps: batches of the epoch.
        """
        sizes = (min(batch_size, images - step * batch_size) for step in range(steps))
        return [len(range(self.rank, size, self.world_size)) * self.world_size / size for size in sizes]

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """The group of the processes, which may talk to each other within."""
        if self.world_size == 1:
            yield
            return
        import torch
        import torch.distributed as dist

        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        try:
            yield
        except UsageError:
            dist.destroy_process_group()
            raise
        dist.destroy_process_group()  # not after other errors: it may wait for a process that waits for this one

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, for all; it runs in no other. The others wait.

        Raises:
            UsageError: in all of them, what the first raised; there it may have been an OSError.
        """
        if self.world_size == 1:
            return make()
        import torch
        import torch.distributed as dist

        made: list[Any] = [None, None]  # the result, or the error's text
        if self.is_first:
            try:
                made[0] = make()
            except (UsageError, OSError) as error:
                made[1] = str(error)
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
        if made[1] is not None:
            raise (UsageError if self.is_first else ToldByFirstError)(made[1])
        return made[0]

    def after_first(self, make: Callable[[], T]) -> T:
        """What `make` returns here; the others begin when the first has ended, and find what files it left."""
        made: list[T] = []
        self.from_first(lambda: made.append(make()))
        return made[0] if self.is_first else make()

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """Each number's sum over the processes."""
        if self.world_size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def parallel(self, network: Network) -> Network:
        """The network with gradients that are means over the processes; they all begin with the first one's state."""
        if self.world_size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        return cast("Network", DistributedDataParallel(network))  # called alike, and only called

    def take_buffers_of_first(self, network: nn.Module) -> None:
        """Makes BatchNorm's running statistics, which each process has of its own shares, those of the first."""
        if self.world_size == 1:
            return
        import torch.distributed as dist

        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


ALONE = Processes()


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise UsageError(
            f"the environment variable {variable} must be a whole number where WORLD_SIZE is set, got {text!r}: start "
            "several processes with torchrun, or unset WORLD_SIZE"
        )
    return int(text)
