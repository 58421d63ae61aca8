"""Quantizers: points of the grid of code parametrisation, update rule, alignment and structure."""

from .alignment import MMD
from .base import Quantizer, QuantizeResult, Usage
from .codes import Table
from .compose import CODEBOOK_FREE, STRUCTURES
from .multiscale import MultiScale
from .presets import PRESETS, build_quantizer
from .product import Groups, Halves, Product, default_keep_probabilities
from .residual import Residual
from .scalar import BSQ, FSQ, LFQ
from .sphere import Spherical
from .updates import EMA, Gradient
from .vector import VectorQuantizer

__all__ = [
    "BSQ",
    "CODEBOOK_FREE",
    "EMA",
    "FSQ",
    "Gradient",
    "Groups",
    "Halves",
    "LFQ",
    "MMD",
    "MultiScale",
    "PRESETS",
    "Product",
    "QuantizeResult",
    "Quantizer",
    "Residual",
    "STRUCTURES",
    "Spherical",
    "Table",
    "Usage",
    "VectorQuantizer",
    "build_quantizer",
    "default_keep_probabilities",
]
