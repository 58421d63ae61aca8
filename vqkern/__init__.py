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
    "accelerate",
    "build_quantizer",
    "certificates",
    "code_sums",
    "covariance_sqrt",
    "gaussian_w2",
    "interop",
    "nearest_code",
    "prior_w2",
    "quantizers",
    "squared_mmd",
]


def __getattr__(name: str):
    # Loaded when first asked for: most users of the kernels need neither.
    if name in ("accelerate", "interop"):
        from importlib import import_module

        interop = import_module(".interop", __name__)
        return interop if name == "interop" else interop.accelerate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
