"""Trainers: `train` by a recipe, as `vqkern train` does, and the short loops of `vqkern demo`.

train(load_recipe("photographs-vqgan"), "runs/vqgan")
"""

import importlib
from typing import TYPE_CHECKING

from vqkern.training.code_optimizer import code_optimizer
from vqkern.training.from_scratch import FromScratch, train_from_scratch
from vqkern.training.stages import OnStep, StepReport
from vqkern.training.transplant import (
    Adaptation,
    Substitution,
    adapt_decoder,
    encode_pool,
    substitute,
)

if TYPE_CHECKING:
    from vqkern.training.config import load_recipe
    from vqkern.training.engine import Result, train
    from vqkern.training.recipe import Recipe

__all__ = [
    "Adaptation",
    "FromScratch",
    "OnStep",
    "Recipe",
    "Result",
    "StepReport",
    "Substitution",
    "adapt_decoder",
    "code_optimizer",
    "encode_pool",
    "load_recipe",
    "substitute",
    "train",
    "train_from_scratch",
]

# Loaded when they are asked for: the engine brings torch's distributed checkpoints, which take
# longer to import than the rest of the package.
_LATER = {"Recipe": "recipe", "Result": "engine", "load_recipe": "config", "train": "engine"}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
