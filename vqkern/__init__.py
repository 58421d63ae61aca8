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


_LOADED_WHEN_ASKED_FOR = ("data", "interop", "losses", "metrics", "tokenizers", "training")


def __getattr__(name: str):
    # Loaded when first asked for: most users of the kernels need none of them.
    if name in _LOADED_WHEN_ASKED_FOR:
        from importlib import import_module

        return import_module(f".{name}", __name__)
    if name == "accelerate":
        from .interop import accelerate

        return accelerate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LOADED_WHEN_ASKED_FOR})
