"""How long one run of the command line takes, as a multiple of importing what it cannot do without.

python benchmarks/startup.py
"""

import os
import subprocess
import sys
import tempfile

from _timing import machine, seconds, table

IMPORTS = "import hydra, jax, optax, flax.linen"


def run(*command: str, cache: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "WANDB_MODE": "offline", **environment},
        check=True,
        capture_output=True,
    )


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        train = ("-m", "src.train", f"hydra.run.dir={scratch}/run")
        fresh = iter(range(100))

        def cold() -> None:
            run(*train, "tracker=disk", cache=f"{scratch}/cold{next(fresh)}")

        measured = {
            "imports alone (the floor)": seconds(lambda: run("-c", IMPORTS, cache=scratch)),
            "a run, empty compilation cache": seconds(cold, repeats=3),
            "a run, warm cache, record only": seconds(lambda: run(*train, "tracker=disk", cache=f"{scratch}/warm")),
            "a run, warm cache, W&B offline": seconds(lambda: run(*train, cache=f"{scratch}/warm")),
            "a refused command line": seconds(
                lambda: subprocess.run([sys.executable, *train, "lr_fine=abc"], check=False, capture_output=True)
            ),
        }
    floor = measured["imports alone (the floor)"]
    table(
        ("python -m src.train", "median seconds", "ratio to the imports"),
        [(name, f"{value:.2f}", f"{value / floor:.2f}") for name, value in measured.items()],
    )


if __name__ == "__main__":
    main()
