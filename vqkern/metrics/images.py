"""Fidelity of reconstructed images: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(images: Tensor, reference: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each image: 10 log10(data_range^2 / mean squared error).

    Args:
        images, reference: [B, C, H, W].
        data_range: Largest minus smallest possible value; 2 for images in [-1, 1].

    Returns:
        float64 [B] in dB; infinity for equal images. The mean over all of an image's values is
        taken before the logarithm.

    Raises:
        ValueError: shapes differ or are not [B, C, H, W].
    """
    _check_pair(images, reference)
    error = (images.double() - reference.double()).square().mean((1, 2, 3))
    return 10 * (data_range**2 / error).log10()


def ssim(images: Tensor, reference: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Structural similarity of each image (Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13).

    Gaussian window of 11 x 11 with sigma 1.5 and weights that add up to 1, K1 = .01, K2 = .03,
    biased (population) covariances. Only positions whose window lies inside the image count; the
    mean is over these positions and the channels, each channel taken for itself.

    Args:
        images, reference: [B, C, H, W] with sides of at least 11.
        data_range: Largest minus smallest possible value; 2 for images in [-1, 1].

    Returns:
        float64 [B], at most 1.

    Raises:
        ValueError: shapes differ, are not [B, C, H, W], or have a side below 11.
    """
    _check_pair(images, reference)
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images: sides {images.shape[2]} x {images.shape[3]} are below SSIM's window of "
            f"{SSIM_WINDOW}"
        )
    x, y = images.double(), reference.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x.square()
    variance_y = _blur(y * y) - mean_y.square()
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Separable Gaussian of every channel, without padding."""
    offset = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    weight = weight / weight.sum()
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(flat, weight.view(1, 1, -1, 1))
    return F.conv2d(flat, weight.view(1, 1, 1, -1)).unflatten(0, x.shape[:2]).squeeze(2)


def _check_pair(images: Tensor, reference: Tensor) -> None:
    if images.ndim != 4 or images.shape != reference.shape:
        raise ValueError(
            f"images and reference: expected two equal shapes [B, C, H, W], "
            f"got {list(images.shape)} and {list(reference.shape)}"
        )
