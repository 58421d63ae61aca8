"""vqkern: exact, fast vector quantization with very large codebooks."""

from . import quantizers
from .ops import (
    Certificate,
    CodeSums,
    CovarianceSqrt,
    NearestCode,
    certificates,
    code_sums,
    covariance_sqrt,
    gaussian_w2,
    nearest_code,
    prior_w2,
    squared_mmd,
)
from .quantizers import QuantizeResult, build_quantizer

__version__ = "0.1.0"
__all__ = [
    "Certificate",
    "CodeSums",
    "CovarianceSqrt",
    "NearestCode",
    "QuantizeResult",
    "build_quantizer",
    "certificates",
    "code_sums",
    "covariance_sqrt",
    "gaussian_w2",
    "nearest_code",
    "prior_w2",
    "quantizers",
    "squared_mmd",
]
