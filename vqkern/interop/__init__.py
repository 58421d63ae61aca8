"""Drop-ins for the quantizers people use today, and `accelerate` for models built with them.

`VectorQuantize`, `ResidualVQ`, `GroupedResidualVQ`, `FSQ`, `LFQ` and `SimVQ` have the calls and
state dicts of vector-quantize-pytorch; the modules `taming`, `llamagen`, `var` and `diffusers` have
a quantizer each. docs/interop.md says what is supported.
"""

from . import diffusers, llamagen, taming, var, vector_quantize_pytorch
from .report import Left, Replaced, Report
from .swap import accelerate
from .vector_quantize_pytorch import (
    FSQ,
    LFQ,
    GroupedResidualVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantize,
)

__all__ = [
    "FSQ",
    "GroupedResidualVQ",
    "LFQ",
    "Left",
    "Replaced",
    "Report",
    "ResidualVQ",
    "SimVQ",
    "VectorQuantize",
    "accelerate",
    "diffusers",
    "llamagen",
    "taming",
    "var",
    "vector_quantize_pytorch",
]
