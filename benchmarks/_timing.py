"""What every benchmark shares: honest timing, the machine, a Markdown table."""

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def seconds(run: Callable[[], object], repeats: int = 5, warmup: int = 1) -> float:
    """Return the median wall time of ``run`` over ``repeats`` calls, after ``warmup`` that do not count."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


Times = dict[str, float]  # seconds of one of some calls, "wall" and "processor"


def timed(work: Callable[[], object], times: int) -> Times:
    """Return the seconds of one of the ``times`` that ``work`` does something, by the clock and by the processors."""
    import jax

    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return {"wall": (time.perf_counter() - wall) / times, "processor": (time.process_time() - processor) / times}


def machine() -> str:
    """Return one line: date, processor, cores, versions."""
    import importlib.metadata

    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax", "wandb"))
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{today}, {os.cpu_count()} cores of {processor}, Python {platform.python_version()}, {versions}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, columns aligned."""
    lines = [list(header), ["-" * len(cell) for cell in header], *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
