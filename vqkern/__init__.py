"""vqkern: exact, fast vector quantization with very large codebooks."""

from . import quantizers
from .ops import CodeSums, NearestCode, code_sums, nearest_code, squared_mmd
from .quantizers import QuantizeResult, build_quantizer

__version__ = "0.1.0"
__all__ = [
    "CodeSums",
    "NearestCode",
    "QuantizeResult",
    "build_quantizer",
    "code_sums",
    "nearest_code",
    "quantizers",
    "squared_mmd",
]
