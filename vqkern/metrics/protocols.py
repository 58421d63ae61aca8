"""Evaluation protocols by name: the same images score differently under each.

| name            | crop     | pixels | PSNR              | SSIM                   | LPIPS |
|-----------------|----------|--------|-------------------|------------------------|-------|
| `rgb`           | `adm`    | 8 bits | R, G, B           | Gaussian, R, G, B      | alex  |
| `y`             | `adm`    | 8 bits | luma              | Gaussian, luma         | alex  |
| `rgb-uniform`   | `adm`    | 8 bits | R, G, B           | uniform, R, G, B       | alex  |
| `vq-transplant` | `adm`    | floats | luma              | Gaussian, R, G, B      | alex  |
| `fvq`           | `center` | 8 bits | luma              | Gaussian, luma         | alex  |
| `llamagen`      | `adm`    | 8 bits | R, G, B           | uniform, range doubled | vgg   |
| `vaevq`         | `adm`    | floats | R, G, B           | uniform, R, G, B       | vgg   |
| `mgvq`          | `adm`    | floats | of the mean error | uniform, R, G, B       | vgg   |

The first three are vqkern's own, the others follow the papers' programs; `Protocol.note` says where
those leave no trace or cannot be followed exactly. PSNR and SSIM are means over images but for
`mgvq`, whose PSNR is that of the error averaged over all images. Gaussian windows are 11 x 11 with
population covariances (Wang et al.), uniform ones 7 x 7 with sample covariances (scikit-image's
defaults); of R, G, B the mean of three SSIMs. Luma is BT.601 in 16 .. 235. rFID and IS: of 8-bit
images, rounded to nearest, in all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vqkern.metrics.images import psnr, ssim


@dataclass(frozen=True)
class Protocol:
    """How images are compared.

    Attributes:
        name: In `PROTOCOLS`.
        crop: The named crop (`vqkern.data.CROPS`) of the program's validation images.
        rounded: Whether images are rounded to 8 bits before PSNR and SSIM.
        luma: Whether PSNR is of the luma alone. luma_ssim: Whether SSIM is.
        window: Of SSIM, gaussian or uniform.
        ssim_range: Range of values that SSIM is told, over the true one.
        mean_error: Whether PSNR is of the mean error of all images.
        lpips: Network of LPIPS, alex or vgg.
        note: What the name stands for.
    """

    name: str
    note: str
    crop: str = "adm"
    rounded: bool = True
    luma: bool = False
    luma_ssim: bool = False
    window: str = "gaussian"
    ssim_range: float = 1.0
    mean_error: bool = False
    lpips: str = "alex"

    def described(self) -> dict[str, str]:
        """What every result under this protocol is written with."""
        pixels = "8 bits, rounded to nearest" if self.rounded else "floats"
        side = {"gaussian": "11 x 11 Gaussian", "uniform": "7 x 7 uniform"}[self.window]
        of = "luma" if self.luma_ssim else "mean of R, G, B"
        averaged = "of the mean error" if self.mean_error else "mean over images"
        return {
            "protocol": self.name,
            "protocol_crop": self.crop,
            "protocol_pixels": pixels,
            "protocol_psnr": f"{'luma' if self.luma else 'R, G, B'}, {averaged}",
            "protocol_ssim": f"{side}, {of}, range x {self.ssim_range:g}",
            "protocol_note": self.note,
        }


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("rgb", "vqkern's default"),
        Protocol("y", "vqkern's, of the luma", luma=True, luma_ssim=True),
        Protocol("rgb-uniform", "vqkern's, with scikit-image's default SSIM", window="uniform"),
        Protocol(
            "vq-transplant",
            "VQ-Transplant and Wasserstein VQ: PSNR of the luma, SSIM of R, G, B",
            rounded=False,
            luma=True,
        ),
        Protocol(
            "fvq",
            "FVQ: a centre crop without resizing, luma; its JPEG round trip is left out",
            crop="center",
            luma=True,
            luma_ssim=True,
        ),
        Protocol(
            "llamagen",
            "LlamaGen: SSIM is told a range of 2 for images in [0, 1], which raises it",
            window="uniform",
            ssim_range=2.0,
            lpips="vgg",
        ),
        Protocol(
            "vaevq",
            "VAEVQ, as SEED-Voken: floats; its own resize by OpenCV is left out",
            rounded=False,
            window="uniform",
            lpips="vgg",
        ),
        Protocol(
            "mgvq",
            "MGVQ: PSNR of the mean error of all images",
            rounded=False,
            window="uniform",
            mean_error=True,
            lpips="vgg",
        ),
    )
}


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
    known = protocol_named(protocol)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected shape [B, 3, H, W], got {list(images.shape)}")
    pixels = [_pixels(batch, known.rounded) for batch in (images, reference)]
    seen = [_luma(batch) if known.luma else batch for batch in pixels]
    compared = [_luma(batch) if known.luma_ssim else batch for batch in pixels]
    similarity = ssim(*compared, data_range=255.0 * known.ssim_range, window=known.window)
    return Fidelity(psnr(*seen, data_range=255.0), similarity)


def mean_psnr(values: Tensor, protocol: str = "rgb") -> float:
    """One PSNR of many images', as a protocol averages them.

    Args:
        values: float [B] in dB.
    """
    values = values.double()
    if not protocol_named(protocol).mean_error:
        return float(values.mean())
    return float(-10 * (10 ** (-values / 10)).mean().log10())


def eight_bits(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, rounded to nearest: PNG files of them, as Inception sees them."""
    return _pixels(images, rounded=True).to(torch.uint8)


def protocol_named(name: str) -> Protocol:
    """Raises ValueError for an unknown name."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _pixels(images: Tensor, rounded: bool) -> Tensor:
    """Float64 in 0 .. 255."""
    pixels = (images.double() + 1) * 127.5
    return (pixels.round() if rounded else pixels).clamp(0, 255)


def _luma(pixels: Tensor) -> Tensor:
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=pixels.device)
    return (pixels / 255 * weights.view(1, 3, 1, 1)).sum(1, keepdim=True) + 16
