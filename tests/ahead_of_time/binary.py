"""What a compiled kernel does, read from its binary: order of memory, widths of loads, conflicts, loops.

No test on a CPU can see these, and the interpreter sees none of them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton


@dataclass(frozen=True)
class Instruction:
    """One machine instruction and the line of the kernel's source it comes from."""

    text: str
    source: str

    @property
    def name(self) -> str:
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]


@dataclass(frozen=True)
class Loop:
    """A loop of machine code: its instructions, and the source file that most of them come from."""

    source: str
    instructions: int
    counts: Counter[str]

    @property
    def exponentials(self) -> int:
        return self.counts["MUFU.EX2"]

    @property
    def spills(self) -> int:
        """Moves of registers to and from local memory."""
        return sum(count for name, count in self.counts.items() if name.startswith(("STL", "LDL")))

    @property
    def products(self) -> int:
        return sum(count for name, count in self.counts.items() if name.startswith(("HMMA", "HGMMA", "DMMA")))


@dataclass(frozen=True)
class Binary:
    """A kernel for an NVIDIA GPU."""

    registers: int
    shared: int
    stack: int
    """Bytes of local memory per thread: an array that did not fit the registers."""
    spills: int
    """Instructions that store registers to local memory."""
    instructions: int
    polls: int
    """Loops that look at a counter."""
    unordered_polls: int
    """Those after which something is read before the order is acquired."""
    loads: Counter[int]
    """Loads from global memory by their bytes per thread, those that poll left out."""
    copies: Counter[int]
    """Asynchronous copies to shared memory, likewise."""
    conflicting: int
    """Operands of pipelined products on tensor cores that lie in shared memory unswizzled: every bank conflicts."""
    loops: tuple[Loop, ...]

    def instructions_per_pair(self) -> dict[str, float]:
        """For each unrolled loop of the exact class sum: its instructions for a (row, column) pair of both networks.

        A pair has two exponentials. The other loops do the columns that are left.
        """
        sources = ("exact_class", "exponential")
        unrolled = [loop for loop in self.loops if loop.source in sources and loop.exponentials >= 32]
        return {f"loop {n}": loop.instructions / (loop.exponentials / 2) for n, loop in enumerate(unrolled, 1)}


def read(kernel: Any) -> Binary:
    """Reads a kernel that Triton compiled for an NVIDIA GPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        resources = tool("cuobjdump", "--dump-resource-usage", str(path))
        lines = tool("nvdisasm", "-g", "-c", str(path)).splitlines()
    code, labels = _parsed(lines)
    names = [instruction.name for instruction in code]
    polls, unordered = _polls(code)
    return Binary(
        registers=_number(r"REG:(\d+)", resources),
        shared=kernel.metadata.shared,
        stack=max(_number(r"STACK:(\d+)", resources), _number(r"LOCAL:(\d+)", resources)),
        spills=sum(name.startswith("STL") for name in names),
        instructions=len(code),
        polls=polls,
        unordered_polls=unordered,
        loads=Counter(_bytes(name) for name in names if name.startswith("LDG.") and "STRONG" not in name),
        copies=Counter(_bytes(name) for name in names if name.startswith("LDGSTS")),
        conflicting=_conflicting_operands(kernel.asm["ttgir"]),
        loops=tuple(_loops(code, labels)),
    )


def tool(name: str, *args: str) -> str:
    """The output of one of the tools that Triton carries."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout


def _parsed(lines: list[str]) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions in their order, and where labels stand among them."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    source = ""
    for line in lines:
        if found := re.match(r'\s*//## File "([^"]+)", line \d+', line):
            source = Path(found[1]).stem
        elif found := re.match(r"(\.L_x_\d+):", line):
            labels[found[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(Instruction(found[1].strip(), source))
    return code, labels


def _loops(code: list[Instruction], labels: dict[str, int]) -> list[Loop]:
    """Innermost loops of more than a few instructions."""
    spans = []
    for stop, instruction in enumerate(code):
        found = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction.text)
        if found and labels.get(found[1], stop + 1) <= stop:
            spans.append((labels[found[1]], stop))
    inner = [
        span
        for span in spans
        if not any(other != span and span[0] <= other[0] <= other[1] <= span[1] for other in spans)
    ]
    loops = []
    for start, stop in inner:
        body = code[start : stop + 1]
        if len(body) > 20:
            (source, _), *_ = Counter(instruction.source for instruction in body).most_common(1)
            loops.append(Loop(source, len(body), Counter(instruction.name for instruction in body)))
    return loops


def _polls(code: list[Instruction]) -> tuple[int, int]:
    """Volatile loads, and those after which an ordinary one comes before the first-level cache is invalidated.

    `wait_for` looks with volatile loads (STRONG.SYS), then acquires: that ends in CCTL.IVALL, after which nothing read
    is older than what was waited for.
    """
    polls = unordered = 0
    waiting = False
    for instruction in code:
        name = instruction.name
        if name.startswith("LDG") and "STRONG.SYS" in name:
            polls += 1
            waiting = True
        elif name.startswith("CCTL.IVALL"):
            waiting = False
        elif waiting and name.startswith(("LDG", "LDGSTS")) and "STRONG" not in name:
            unordered += 1
            waiting = False
    return polls, unordered + waiting


def _bytes(name: str) -> int:
    """How many bytes a load moves for each thread."""
    for part, size in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)):
        if part in name:
            return size
    return 4


def _conflicting_operands(ttgir: str) -> int:
    """Loads of a product's operand from an unswizzled buffer in shared memory that copies are pipelined into."""
    aliases = re.findall(r"^(#shared\d*) = .*maxPhase = 1,", ttgir, re.MULTILINE)
    found = 0
    for alias in aliases:
        found += len(re.findall(rf"ttg\.local_load .*{alias}, .*mutable>.* -> tensor<[^>]*#ttg\.dot_op.*mma", ttgir))
    return found


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in:\n{text[:2000]}"
    return int(found.group(1))
