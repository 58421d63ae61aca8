"""The operations, one folder each: `api.py` is the function, `reference.py` what it means."""

from .code_sums import CodeSums, code_sums
from .nearest_code import Certificate, NearestCode, certificates, nearest_code
from .squared_mmd import squared_mmd

__all__ = [
    "Certificate",
    "CodeSums",
    "NearestCode",
    "certificates",
    "code_sums",
    "nearest_code",
    "squared_mmd",
]
