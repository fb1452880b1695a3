"""Operations of loops whose length is known: XLA's count of a compiled program takes the body of each once.

What a body repeats, its matrix products, is added here. A loop over a number of updates has no known length and stays
one update. The text read is HLO (https://openxla.org/xla/operation_semantics#dot).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
DOT = re.compile(r" dot\((?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+), .*lhs_contracting_dims=\{([\d,]*)\}")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
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
            if " while(" in what or " fusion(" in what or " call(" in what:
                trips = int(known[1]) if (known := TRIPS.search(what)) else 1
                current.calls += [(called, trips) for called in CALLED.findall(what)]
    return found, entry


def dims(numbers: str) -> list[int]:
    """Return the numbers of ``"4,16"``."""
    return [int(number) for number in numbers.split(",") if number]


def total(found: Mapping[str, Computation], name: str, known: dict[str, float]) -> float:
    """Return the operations of a computation with all that it runs."""
    if name not in known:
        own = found.get(name, Computation())
        known[name] = own.flops + sum(times * total(found, called, known) for called, times in own.calls)
    return known[name]
