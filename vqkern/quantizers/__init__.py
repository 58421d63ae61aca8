"""Quantizers: points of the grid of code parametrisation, update rule, alignment and structure."""

from .alignment import MMD
from .base import Quantizer, QuantizeResult, Usage
from .bridge import VQBridge
from .codes import MLP5, Linear, Table
from .estimators import rotation_trick, straight_through
from .information import Contestant, fair_comparison, information, information_of
from .kmeans import kmeans
from .presets import PRESETS, build_quantizer
from .updates import EMA, Gradient, Online, Revival, UpdateRule
from .variational import DCR, VariationalQuantizer
from .vector import VectorQuantizer

__all__ = [
    "Contestant",
    "DCR",
    "EMA",
    "Gradient",
    "Linear",
    "MLP5",
    "MMD",
    "Online",
    "PRESETS",
    "QuantizeResult",
    "Quantizer",
    "Revival",
    "Table",
    "UpdateRule",
    "Usage",
    "VQBridge",
    "VariationalQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "fair_comparison",
    "information",
    "information_of",
    "kmeans",
    "rotation_trick",
    "straight_through",
]
