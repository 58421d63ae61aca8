"""Named evaluation measures; each docstring says exactly what is computed."""

from vqkern.metrics.images import psnr, ssim
from vqkern.metrics.inception import InceptionScores
from vqkern.metrics.latents import quantization_error, usages
from vqkern.metrics.protocols import (
    PROTOCOLS,
    Fidelity,
    Protocol,
    eight_bits,
    fidelity,
    mean_psnr,
    protocol_named,
)

__all__ = [
    "PROTOCOLS",
    "Fidelity",
    "InceptionScores",
    "Protocol",
    "eight_bits",
    "fidelity",
    "mean_psnr",
    "protocol_named",
    "psnr",
    "quantization_error",
    "ssim",
    "usages",
]
