"""The terms in which memory traffic of the Triton backend is counted: accesses of buffers, launches, problems."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch

from icd_kernels.backends.triton.plan import Layout
from icd_kernels.options import Options

DZ = "dl/dz"
EVERY_DZ = "dl/dz of every cell"
NODES = "sums at nodes"
SAME_ADDRESS = "interpolation"
"""The part whose loads are of one address for many rows: of the first-level cache, hardly of anything behind it."""


class Access(NamedTuple):
    """Bytes of one buffer that one part of a launch loads and stores."""

    part: str
    buffer: str
    loaded: int
    stored: int


class Launch(NamedTuple):
    """What all programs of a launch load and store."""

    accesses: tuple[Access, ...]
    sizes: dict[str, int]
    """Bytes of every buffer, as far as it is used."""
    workspace: int
    """Bytes allocated for the time of the launch."""

    @property
    def asked(self) -> int:
        """Bytes that programs ask of the memory system, but for loads of one address by all."""
        return sum(entry.loaded + entry.stored for entry in self.accesses if entry.part != SAME_ADDRESS)

    @property
    def once(self) -> int:
        """Bytes, if whatever is loaded were loaded once, and whatever is stored were stored once."""
        loaded = {entry.buffer for entry in self.accesses if entry.loaded}
        stored = {entry.buffer for entry in self.accesses if entry.stored}
        return sum(self.sizes[buffer] for buffers in (loaded, stored) for buffer in buffers)

    def of(self, parts: Collection[str]) -> Launch:
        """Some of its parts, as if they were all."""
        return self._replace(accesses=tuple(entry for entry in self.accesses if entry.part in parts))


class Problem(NamedTuple):
    """A call of `icd_loss` that all gradients are wanted of."""

    tensors: tuple[Layout | None, ...]
    """Of the student's features, weight and bias, then the teacher's."""
    options: Options
    dtype: torch.dtype
    """Of the math."""

    def network(self, name: str) -> tuple[Layout, Layout, Layout | None]:
        """Features, weight and bias of "student" or "teacher"."""
        features, weight, bias = self.tensors[:3] if name == "student" else self.tensors[3:]
        assert features is not None
        assert weight is not None
        return features, weight, bias

    @property
    def batch(self) -> int:
        return self.network("student")[0].shape[0]

    @property
    def classes(self) -> int:
        return self.network("student")[1].shape[0]


class ExactSum(NamedTuple):
    """A class Gram summed exactly, and the blocks of its rows whose divergence is summed again, term by term."""

    again: int


class Nodes(NamedTuple):
    """Chebyshev nodes of one network's sums, and how many of its logits lie below zero."""

    positive: int
    negative: int
    columns: int
    below: int


class LinearSum(NamedTuple):
    """A class Gram summed in time linear in K."""

    student: Nodes
    teacher: Nodes


class PairsAgain(NamedTuple):
    """A block of rows of a spatial Gram of so many cells, whose divergence is summed again."""

    cells: int
    rows: int


Sums = Mapping[ExactSum | LinearSum | PairsAgain, int]
"""How often each of these happens in a launch."""


def loads(part: str, buffer: str, elements: int, dtype: torch.dtype) -> Access:
    return Access(part, buffer, elements * dtype.itemsize, 0)


def stores(part: str, buffer: str, elements: int, dtype: torch.dtype) -> Access:
    return Access(part, buffer, 0, elements * dtype.itemsize)
