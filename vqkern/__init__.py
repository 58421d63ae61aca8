"""vqkern: exact, fast vector quantization with very large codebooks."""

from . import quantizers
from .ops import (
    Certificate,
    CodeSums,
    NearestCode,
    certificates,
    code_sums,
    nearest_code,
    squared_mmd,
)
from .quantizers import QuantizeResult, build_quantizer

__version__ = "0.1.0"
__all__ = [
    "Certificate",
    "CodeSums",
    "NearestCode",
    "QuantizeResult",
    "build_quantizer",
    "certificates",
    "code_sums",
    "nearest_code",
    "quantizers",
    "squared_mmd",
]
