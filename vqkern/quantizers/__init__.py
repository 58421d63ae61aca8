"""Quantizers: points of the grid of code parametrisation, update rule, alignment and structure."""

from .alignment import MMD, PriorWasserstein, Wasserstein
from .base import Quantizer, QuantizeResult
from .bridge import VQBridge
from .codes import MLP5, Linear, Table
from .compose import CODEBOOK_FREE, STRUCTURES
from .estimators import IndexBackprop, rotation_trick, straight_through
from .information import Contestant, fair_comparison, information, information_of
from .kmeans import kmeans
from .multiscale import MultiScale
from .presets import PRESETS, build_quantizer
from .product import Groups, Halves, Product, default_keep_probabilities
from .projected import Projected
from .residual import Residual
from .scalar import BSQ, FSQ, LFQ
from .sphere import Spherical
from .updates import EMA, Gradient, Online, Revival, UpdateRule
from .usage import Usage
from .variational import VariationalQuantizer
from .vector import VectorQuantizer

__all__ = [
    "BSQ",
    "CODEBOOK_FREE",
    "Contestant",
    "EMA",
    "FSQ",
    "Gradient",
    "Groups",
    "Halves",
    "IndexBackprop",
    "LFQ",
    "Linear",
    "MLP5",
    "MMD",
    "MultiScale",
    "Online",
    "PRESETS",
    "PriorWasserstein",
    "Product",
    "Projected",
    "QuantizeResult",
    "Quantizer",
    "Residual",
    "Revival",
    "STRUCTURES",
    "Spherical",
    "Table",
    "UpdateRule",
    "Usage",
    "VQBridge",
    "VariationalQuantizer",
    "VectorQuantizer",
    "Wasserstein",
    "build_quantizer",
    "default_keep_probabilities",
    "fair_comparison",
    "information",
    "information_of",
    "kmeans",
    "rotation_trick",
    "straight_through",
]
