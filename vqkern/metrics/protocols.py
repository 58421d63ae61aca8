"""PSNR and SSIM by name: the same images score differently under each, so a score names its own.

| name  | images compared                                    | PSNR         | SSIM               |
|-------|----------------------------------------------------|--------------|--------------------|
| `rgb` | 8-bit RGB, rounded to nearest                      | over R, G, B | mean of 3 channels |
| `y`   | luma of 8-bit RGB (BT.601, 16 .. 235), not rounded | of the luma  | of the luma        |

Both take the range to be 255, average over images (not over their squared errors), and use SSIM's
11 x 11 Gaussian window.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vqkern.metrics.images import psnr, ssim


class Fidelity(NamedTuple):
    """PSNR in dB and SSIM of each image, float64 [B]."""

    psnr: Tensor
    ssim: Tensor


def fidelity(images: Tensor, reference: Tensor, protocol: str = "rgb") -> Fidelity:
    """PSNR and SSIM of images in [-1, 1] under a named protocol.

    Args:
        images, reference: floating point [B, 3, H, W]; sides of at least 11.
        protocol: One of `PROTOCOLS`.

    Raises:
        ValueError: an unknown protocol, or shapes that do not fit.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: got {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected shape [B, 3, H, W], got {list(images.shape)}")
    seen = PROTOCOLS[protocol]
    a, b = seen(images), seen(reference)
    return Fidelity(psnr(a, b, data_range=255.0), ssim(a, b, data_range=255.0))


def _eight_bits(images: Tensor) -> Tensor:
    return ((images.double() + 1) * 127.5).round().clamp(0, 255)


def _luma(images: Tensor) -> Tensor:
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=images.device)
    weighted = _eight_bits(images) / 255 * weights.view(1, 3, 1, 1)
    return weighted.sum(1, keepdim=True) + 16


PROTOCOLS: dict[str, Callable[[Tensor], Tensor]] = {"rgb": _eight_bits, "y": _luma}
