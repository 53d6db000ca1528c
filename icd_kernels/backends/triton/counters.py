"""Counters that launches leave at zero, so that they are allocated and filled once per device and never again.

Launches that may run at the same time must not share a slot. Outside a capture a slot belongs to a stream, whose
launches follow each other. A captured launch may be replayed on any stream, beside anything, so each gets a slot of its
own for good; once those are used up, or where a device is first used inside a capture, its counters are allocated and
zeroed inside the graph, which costs one memset node in every replay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from icd_kernels.backends.triton.structs import GROUPS, Counters

SLOT = 2048
"""Numbers of one slot: ticket and end, then seven kinds of arrivals; a power of two, to be reset by one store."""
STREAM_SLOTS = 64
CAPTURE_SLOTS = 64


class Slot(NamedTuple):
    """One slot, its parts by kind, and the stream whose launches may use it; None where that is not known."""

    table: Tensor
    counters: Counters
    stream: int | None


@dataclass
class _Slots:
    """The slots of one device."""

    table: Tensor
    by_stream: dict[int, Slot] = field(default_factory=dict)
    captured: int = 0


_DEVICES: dict[torch.device, _Slots] = {}


def counters_for(device: torch.device) -> Slot:
    """Counters, all zero, for one launch on the current stream of `device`."""
    is_cuda = device.type == "cuda"
    if is_cuda and torch.cuda.is_current_stream_capturing():
        return _captured(device)
    slots = _DEVICES.get(device)
    if slots is None:
        slots = _DEVICES[device] = _Slots(_zeros(STREAM_SLOTS + CAPTURE_SLOTS, device))
        if is_cuda:
            torch.cuda.current_stream(device).synchronize()  # once per device: other streams must find zeros
    stream = torch.cuda.current_stream(device).cuda_stream if is_cuda else 0
    found = slots.by_stream.get(stream)
    if found is None:
        taken = len(slots.by_stream)
        slot = slots.table[taken] if taken < STREAM_SLOTS else _zeros(1, device)[0]
        found = slots.by_stream[stream] = _views(slot, stream)
    return found


def _captured(device: torch.device) -> Slot:
    slots = _DEVICES.get(device)
    if slots is None or slots.captured == CAPTURE_SLOTS:
        return _views(_zeros(1, device)[0])
    slots.captured += 1
    return _views(slots.table[STREAM_SLOTS + slots.captured - 1])


def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros((count, SLOT), dtype=torch.int32, device=device)


def _views(slot: Tensor, stream: int | None = None) -> Slot:
    first = SLOT - 7 * GROUPS
    return Slot(slot, Counters(slot, *slot[first:].split(GROUPS)), stream)
