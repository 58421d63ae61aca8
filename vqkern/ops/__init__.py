"""The operations, one folder each: `api.py` is the function, `reference.py` what it means."""

from .code_sums import CodeSums, code_sums
from .gaussian_w2 import (
    CovarianceSqrt,
    Moments,
    covariance_sqrt,
    gaussian_w2,
    merge,
    moments,
    prior_w2,
)
from .nearest_code import Certificate, NearestCode, certificates, nearest_code
from .squared_mmd import squared_mmd

__all__ = [
    "Certificate",
    "CodeSums",
    "CovarianceSqrt",
    "Moments",
    "NearestCode",
    "certificates",
    "code_sums",
    "covariance_sqrt",
    "gaussian_w2",
    "merge",
    "moments",
    "nearest_code",
    "prior_w2",
    "squared_mmd",
]
