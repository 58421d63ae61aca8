"""Named evaluation measures; each docstring says exactly what is computed."""

from vqkern.metrics.images import psnr, ssim
from vqkern.metrics.latents import quantization_error

__all__ = ["psnr", "quantization_error", "ssim"]
