"""Operations of loops whose length is known: XLA's count of a compiled program takes the body of each once.

What a body repeats, its matrix products and convolutions, is added here. A loop over a number of updates has no known
length and stays one update. The text read is HLO (https://openxla.org/xla/operation_semantics: Dot, Conv).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
DOT = re.compile(r" dot\((?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+), .*lhs_contracting_dims=\{([\d,]*)\}")
CONVOLUTION = re.compile(r" convolution\((.*?)\), (?:window=\{(.*?)\}, )?dim_labels=(\w+)_(\w+)->(\w+)")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
DILATIONS = ("stride", "lhs_dilate", "rhs_dilate")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass
class Computation:
    """What a computation of a program does itself, and which others it runs how often."""

    flops: float = 0.0
    calls: list[tuple[str, int]] = field(default_factory=list)


def repeated_flops(program: str) -> float:
    """Return the operations of matrix products that loops of known length repeat after their first pass.

    Args:
        program: the optimized HLO of a compiled program, as text.
    """
    if "known_trip_count" not in program:
        return 0.0
    found, entry = computations(program)
    once = {name: Computation(own.flops, [(other, 1) for other, _ in own.calls]) for name, own in found.items()}
    return total(found, entry, {}) - total(once, entry, {})


def computations(program: str) -> tuple[dict[str, Computation], str]:
    """Return a program's computations by name, and the name of the one it begins with."""
    found: dict[str, Computation] = {}
    shapes: dict[str, list[int]] = {}
    current, entry = Computation(), ""
    for line in program.splitlines():
        if head := COMPUTATION.match(line):
            current, shapes = found.setdefault(head[1], Computation()), {}
            entry = head[1] if line.startswith("ENTRY") else entry
        elif instruction := INSTRUCTION.match(line):
            name, what = instruction.groups()
            if shape := SHAPE.match(what):
                shapes[name] = dims(shape[1])
            if dot := DOT.search(what):
                inner = math.prod(shapes[dot[1]][axis] for axis in dims(dot[2]))
                current.flops += 2.0 * inner * math.prod(shapes[name])
            if taken := CONVOLUTION.search(what):
                x, kernel = (shapes[operand.split("%")[-1]] for operand in re.split(r", (?=\w+\[|%)", taken[1]))
                current.flops += convolution_flops(x, kernel, shapes[name], taken[2] or "", taken.groups()[2:])
            if " while(" in what or " fusion(" in what or " call(" in what:
                trips = int(known[1]) if (known := TRIPS.search(what)) else 1
                current.calls += [(called, trips) for called in CALLED.findall(what)]
    return found, entry


def convolution_flops(x: list[int], kernel: list[int], result: list[int], window: str, labels: Sequence[str]) -> float:
    """Return the operations of a convolution, products with the zeros around or between its inputs left out.

    Args:
        x: shape of the inputs.
        kernel: shape of the kernel.
        result: shape of the outputs.
        window: such as ``size=3x3 pad=1_1x1_1 stride=2x2 lhs_dilate=2x2 rhs_dilate=2x2``.
        labels: of the three shapes' axes, such as ``b01f``, ``01io``, ``b01f``.
    """
    of_x, of_kernel, of_result = labels
    said = {key: value.split("x") for key, _, value in (part.partition("=") for part in window.split())}
    found = 2.0 * result[of_result.index("b")] * result[of_result.index("f")] * kernel[of_kernel.index("i")]
    for axis in map(str, range(len(labels[0]) - 2)):
        stride, spread, apart = (int(said[key][int(axis)]) if key in said else 1 for key in DILATIONS)
        before = int(said["pad"][int(axis)].split("_")[0]) if "pad" in said else 0
        length = (x[of_x.index(axis)] - 1) * spread + 1
        starts = range(0, result[of_result.index(axis)] * stride, stride)
        places = (start + i * apart - before for start in starts for i in range(kernel[of_kernel.index(axis)]))
        found *= sum(0 <= place < length and place % spread == 0 for place in places)
    return found


def dims(numbers: str) -> list[int]:
    """Return the numbers of ``"4,16"``."""
    return [int(number) for number in numbers.split(",") if number]


def total(found: Mapping[str, Computation], name: str, known: dict[str, float]) -> float:
    """Return the operations of a computation with all that it runs."""
    if name not in known:
        own = found.get(name, Computation())
        known[name] = own.flops + sum(times * total(found, called, known) for called, times in own.calls)
    return known[name]
