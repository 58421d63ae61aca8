"""vqkern: exact, fast vector quantization with very large codebooks."""

from .ops import CodeSums, NearestCode, code_sums, nearest_code, squared_mmd

__version__ = "0.1.0"
__all__ = [
    "CodeSums",
    "NearestCode",
    "code_sums",
    "nearest_code",
    "squared_mmd",
]
