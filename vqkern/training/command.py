"""Train a tokenizer by a recipe, alone or under torchrun; started again, it goes on.

After RECIPE, any setting of the recipe can be given another value: --optim.lr 5e-5.
"""

import argparse
import sys
from pathlib import Path

from vqkern.training.config import load_recipe, recipe_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern train`."""
    names = ", ".join(recipe_names())
    parser.allow_abbrev = False
    parser.set_defaults(overrides=[])
    parser.add_argument("recipe", help=f"a .yaml file, or one of: {names}")
    parser.add_argument("--data", help="folder of images, in place of the recipe's data.folder")
    parser.add_argument("--out", required=True, help="folder for the run")


def run(args: argparse.Namespace) -> int:
    """Trains; 0, or 128 and the signal's number where a signal ended the run.

    Raises:
        ValueError, OSError: see `vqkern.training.engine.train`.
    """
    overrides = list(args.overrides)
    if args.data is not None:
        overrides += ["--data.folder", str(Path(args.data).absolute())]
    recipe = load_recipe(args.recipe, overrides)
    from vqkern.training.engine import train

    result = train(recipe, args.out)
    if result.signal is not None:
        print(
            f"stopped after step {result.step} of {recipe.optim.steps}, which is saved; "
            f"the same command goes on",
            file=sys.stderr,
        )
        return 128 + result.signal
    return 0
