"""Named evaluation measures; each docstring says exactly what is computed."""

from vqkern.metrics.images import psnr, ssim
from vqkern.metrics.latents import quantization_error
from vqkern.metrics.protocols import PROTOCOLS, Fidelity, fidelity

__all__ = ["PROTOCOLS", "Fidelity", "fidelity", "psnr", "quantization_error", "ssim"]
