"""Find a learning rate for fine-tuning by a range test: a short run whose rate grows until the loss diverges.

python scripts/lr_find.py strategy=full optimizer=adam data=digits
python scripts/lr_find.py --low 1e-6 --high 1 --steps 200 strategy=lora --out outputs/lr_find
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import _root  # noqa: F401
import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from src.config.choices import Kind
from src.config.identity import register_resolvers
from src.config.messages import sentence
from src.config.schema import CONF, register_schema
from src.errors import UserError, run_script
from src.recipe.configure import make_plan
from src.tracking.cache import stage_cache


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A learning-rate range test of fine-tuning.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the configuration, as for src.train")
    parser.add_argument("--low", type=float, default=1e-7, help="first rate (default: %(default)s)")
    parser.add_argument("--high", type=float, default=10.0, help="last rate (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="updates (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/lr_find"), help="folder for curve.csv and curve.png")
    return parser.parse_args()


def main() -> None:
    """Run the test, print the suggestions, write the curve."""
    arguments = read_arguments()
    register_resolvers()
    register_schema()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            plan = make_plan(compose("config", overrides=arguments.overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(sentence(error)) from error

    if plan.recipe.recipe is Kind.sequence:
        raise UserError("recipe is 'sequence'; allowed: transfer, because a range test has one fine-tuning")

    from src.analysis.plots import plot_range_test
    from src.recipe.lr_find import range_test, suggestions
    from src.recipe.pretrain import pretrain_or_load
    from src.recipe.resolve import resolve
    from src.training.calls import execute
    from src.training.compiled import prepare_jax
    from src.types import ignore

    prepare_jax()
    data = plan.source.load()
    run = resolve(plan.recipe, data)
    pre = execute(pretrain_or_load(run, stage_cache(plan.study), ignore))
    test = range_test(plan.recipe, data, pre.params, low=arguments.low, high=arguments.high, steps=arguments.steps)
    found = suggestions(test)
    for name, rate in found.items():
        print(f"{name:>12}  lr_fine={rate:.2g}")
    if math.isclose(test.rates[-1], arguments.high):
        print(f"the loss did not diverge up to {arguments.high:g}; try a higher --high")
    arguments.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(test._asdict()).to_csv(arguments.out / "curve.csv", index=False)
    plot_range_test(test.rates, test.losses, test.smoothed, found, arguments.out / "curve.png")
    print(f"curve: {arguments.out / 'curve.png'}, {arguments.out / 'curve.csv'}")


if __name__ == "__main__":
    run_script(main)
