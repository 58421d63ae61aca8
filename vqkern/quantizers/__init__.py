"""Quantizers: points of the grid of code parametrisation, update rule, alignment and structure."""

from .alignment import MMD, PriorWasserstein, Wasserstein
from .base import Quantizer, QuantizeResult, Usage
from .codes import Table
from .presets import PRESETS, build_quantizer
from .updates import EMA, Gradient
from .vector import VectorQuantizer

__all__ = [
    "EMA",
    "Gradient",
    "MMD",
    "PRESETS",
    "PriorWasserstein",
    "QuantizeResult",
    "Quantizer",
    "Table",
    "Usage",
    "VectorQuantizer",
    "Wasserstein",
    "build_quantizer",
]
