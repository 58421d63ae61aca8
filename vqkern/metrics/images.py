"""Fidelity of reconstructed images: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_UNIFORM_WINDOW = 7
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


def ssim(
    images: Tensor, reference: Tensor, *, data_range: float = 2.0, window: str = "gaussian"
) -> Tensor:
    """Structural similarity of each image (Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13).

    K1 = .01, K2 = .03. Only positions whose window lies inside the image count; the mean is over
    these positions and the channels, each channel taken for itself.

    Args:
        images, reference: [B, C, H, W] with sides of at least 11.
        data_range: Largest minus smallest possible value; 2 for images in [-1, 1].
        window: "gaussian", 11 x 11 with sigma 1.5, weights that add up to 1 and population
            covariances, as in the paper; "uniform", 7 x 7 with sample covariances, as scikit-image
            does unless it is told otherwise.

    Returns:
        float64 [B], at most 1.

    Raises:
        ValueError: shapes differ, are not [B, C, H, W], or have a side below 11; another window.
    """
    _check_pair(images, reference)
    if window not in ("gaussian", "uniform"):
        raise ValueError(f"window: got {window!r}, expected 'gaussian' or 'uniform'")
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images: sides {images.shape[2]} x {images.shape[3]} are below SSIM's window of "
            f"{SSIM_WINDOW}"
        )
    x, y = images.double(), reference.double()
    weight = _weights(window).to(x.device)
    mean_x, mean_y = _blur(x, weight), _blur(y, weight)
    count = SSIM_UNIFORM_WINDOW**2
    unbiased = count / (count - 1) if window == "uniform" else 1.0
    variance_x = unbiased * (_blur(x * x, weight) - mean_x.square())
    variance_y = unbiased * (_blur(y * y, weight) - mean_y.square())
    covariance = unbiased * (_blur(x * y, weight) - mean_x * mean_y)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def _weights(window: str) -> Tensor:
    """Along one side; both windows are products of these."""
    if window == "uniform":
        return torch.full((SSIM_UNIFORM_WINDOW,), 1 / SSIM_UNIFORM_WINDOW, dtype=torch.float64)
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    return weight / weight.sum()


def _blur(x: Tensor, weight: Tensor) -> Tensor:
    """Separable weighted mean around every position of every channel, without padding."""
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(flat, weight.view(1, 1, -1, 1))
    return F.conv2d(flat, weight.view(1, 1, 1, -1)).unflatten(0, x.shape[:2]).squeeze(2)


def _check_pair(images: Tensor, reference: Tensor) -> None:
    if images.ndim != 4 or images.shape != reference.shape:
        raise ValueError(
            f"images and reference: expected two equal shapes [B, C, H, W], "
            f"got {list(images.shape)} and {list(reference.shape)}"
        )
