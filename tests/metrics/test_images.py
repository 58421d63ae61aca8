"""PSNR and SSIM against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqkern.data import load_photographs, to_float
from vqkern.metrics import psnr, quantization_error, ssim


def pairs():
    generator = torch.Generator().manual_seed(0)
    pictures, regions = load_photographs()
    originals = [to_float(r.cut(p.pixels)) for p, r in zip(pictures, regions, strict=True)]
    reference = torch.stack(originals)
    noise = torch.randn(reference.shape, generator=generator)
    scale = torch.tensor([0.01, 0.05, 0.1, 0.3, 1.0]).view(-1, 1, 1, 1)
    return (reference + noise * scale).clamp(-1, 1), reference


def test_psnr_is_scikit_images():
    images, reference = pairs()
    for got, image, wanted in zip(psnr(images, reference), images, reference, strict=True):
        expected = peak_signal_noise_ratio(
            wanted.numpy().astype(np.float64), image.numpy().astype(np.float64), data_range=2.0
        )
        assert float(got) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("data_range", [2.0, 1.0])
def test_ssim_is_scikit_images(data_range):
    images, reference = pairs()
    images, reference = images[..., :61, :87], reference[..., :61, :87]
    got = ssim(images, reference, data_range=data_range)
    for value, image, wanted in zip(got, images, reference, strict=True):
        expected = structural_similarity(
            image.double().numpy(),
            wanted.double().numpy(),
            channel_axis=0,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(value) == pytest.approx(expected, abs=1e-9)


def test_equal_images():
    image = torch.rand(2, 3, 16, 16)
    assert bool(psnr(image, image).isinf().all())
    assert ssim(image, image).tolist() == pytest.approx([1.0, 1.0])


def test_quantization_error_sums_channels_and_averages_tokens():
    z = torch.zeros(2, 3, 5, 4)
    quantized = torch.ones(2, 3, 5, 4) * 2
    assert float(quantization_error(z, quantized, channel_dim=1)) == 12.0
    assert float(quantization_error(z[:, :, :, :2], quantized[..., :2], channel_dim=-1)) == 8.0


def test_bad_arguments_are_named():
    image = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(image, image[0])
    with pytest.raises(ValueError, match="window of 11"):
        ssim(image[..., :10, :], image[..., :10, :])
    with pytest.raises(ValueError, match="differs from z"):
        quantization_error(image, image[0])
    with pytest.raises(ValueError, match="at least one token"):
        quantization_error(image[:0], image[:0])
