"""What a point of a sweep costs: fused (map and vmap), basic and joblib, on the same sweep in one run.

python benchmarks/sweep.py [--points 10,100,1000]

The diabetes recipe, 200 updates of pre-training and 100 of fine-tuning, 4 strategies, everything written. Basic and
joblib are measured at 30 points and extrapolated: the seconds of a sweep of one point a strategy, then so much a point.
Every way starts with its programs compiled already and no pre-training kept.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import machine, table

STRATEGIES = "frozen,masked,full,discriminative"
WAYS = {
    "fused, map": ["hydra/launcher=fused", "hydra.launcher.mode=map"],
    "fused, vmap": ["hydra/launcher=fused", "hydra.launcher.mode=vmap"],
    "basic": ["hydra/launcher=basic"],
    "joblib, 2 processes": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}


BASIC_POINTS = 30


def grid(points: int) -> list[str]:
    """Return the sweep's arguments: 4 strategies x up to 5 seeds x rates; at least one point a strategy."""
    each = max(points // 4, 1)
    seeds = max(n for n in (1, 5) if each % n == 0 and (each >= 25 or n == 1))
    rates = ",".join(f"{0.0005 * 1.13**i:.6g}" for i in range(each // seeds))
    return [f"strategy={STRATEGIES}", f"lr_fine={rates}", f"seed={','.join(map(str, range(seeds)))}"]


def run(way: str, points: int, tracker: str, scratch: Path) -> tuple[float, int, int]:
    """Return a sweep's seconds, its number of jobs, and the peak memory of its largest process in MiB."""
    # A folder of its own each time: deleting the last one's thousands of files would slow the disk for this one.
    scratch_jax, scratch = scratch / "jax", Path(tempfile.mkdtemp(dir=scratch))
    folder = scratch / "sweep"
    arguments = [*WAYS[way], *grid(points), f"tracker={tracker}", f"hydra.sweep.dir={folder}"]
    command = [sys.executable, "-m", "src.train", "-m", *arguments, f"cache_folder={scratch}/stages"]
    measured = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); \
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    environment = {**os.environ, "WANDB_MODE": "offline", "JAX_COMPILATION_CACHE_DIR": str(scratch_jax)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", measured, *command], env=environment, check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    jobs = len(list(folder.glob("*/summary.json")))
    return seconds, jobs, int(done.stdout) // 1024


def best(way: str, points: int, tracker: str, scratch: Path, tries: int = 2) -> tuple[float, int, int]:
    """Return the quickest of some tries: the machine's own business only ever adds."""
    return min(run(way, points, tracker, scratch) for _ in range(tries))


def measured(way: str, sizes: list[int], tracker: str, scratch: Path) -> list[tuple[int, float, int, str]]:
    """Return, for each size, the number of jobs, the seconds, the peak memory, and how they were found."""
    if way.startswith("fused"):
        found = [best(way, size, tracker, scratch) for size in sizes]
        return [(jobs, seconds, memory, "") for seconds, jobs, memory in found]
    (base, few, _), (more, many, memory) = (best(way, size, tracker, scratch) for size in (4, BASIC_POINTS))
    slope = (more - base) / (many - few)
    return [(size, base + slope * (size - few), memory, f" (from {many} points)") for size in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", default="10,100,1000")
    sizes = [int(size) for size in parser.parse_args().points.split(",")]
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for way in WAYS:  # compiles
            for size in sizes if way.startswith("fused") else [BASIC_POINTS]:
                run(way, size, "disk", scratch)
        for tracker in ("disk", "wandb"):
            results = {way: measured(way, sizes, tracker, scratch) for way in WAYS}
            rows = []
            for way, found in results.items():
                for (jobs, seconds, memory, warn_once), (basic_jobs, basic, _, _) in zip(
                    found, results["basic"], strict=True
                ):
                    each, ratio = seconds / jobs, (basic / basic_jobs) / (seconds / jobs)
                    figures = (f"{seconds:.1f}", f"{1000 * each:.1f}", f"{ratio:.1f}", str(memory))
                    rows.append((way + warn_once, str(jobs), *figures))
            print(f"\nW&B {'off' if tracker == 'disk' else 'offline'}")
            table(("way", "points", "seconds", "ms a point", "times faster than basic", "peak MiB"), rows)


if __name__ == "__main__":
    main()
