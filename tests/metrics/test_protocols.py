"""Named PSNR and SSIM: rounding, luma, range, against formulas written out here."""

import numpy as np
import pytest
import torch

from vqkern.metrics import PROTOCOLS, fidelity


def pair():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 20, 24, generator=generator) * 2 - 1
    return a, (a + 0.1 * torch.randn(a.shape, generator=generator))


def bytes_of(images):
    return np.clip(np.rint((images.double().numpy() + 1) * 127.5), 0, 255)


def test_rgb_is_skimage_on_bytes():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = pair()
    scores = fidelity(a, b, "rgb")
    for x, y, decibels, similarity in zip(bytes_of(a), bytes_of(b), *scores, strict=True):
        assert float(decibels) == pytest.approx(peak_signal_noise_ratio(y, x, data_range=255))
        expected = structural_similarity(
            y, x, channel_axis=0, data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert float(similarity) == pytest.approx(expected, abs=2e-3)


def test_y_is_the_luma_of_bytes():
    a, b = pair()
    weights = np.array([65.481, 128.553, 24.966]).reshape(3, 1, 1) / 255
    luma = [(bytes_of(images) * weights).sum(1) + 16 for images in (a, b)]
    expected = 10 * np.log10(255**2 / ((luma[0] - luma[1]) ** 2).mean((1, 2)))
    np.testing.assert_allclose(fidelity(a, b, "y").psnr.numpy(), expected)


def test_protocols_differ_and_rounding_is_part_of_them():
    a, b = pair()
    values = [float(fidelity(a, b, name).psnr.mean()) for name in PROTOCOLS]
    assert len({round(v, 2) for v in values}) == len(PROTOCOLS)
    near = torch.from_numpy(bytes_of(a)) / 127.5 - 1
    assert bool(fidelity(near, near + 1e-4, "rgb").psnr.isinf().all())


@pytest.mark.parametrize(
    ("shape", "protocol", "message"),
    [((2, 3, 16, 16), "rgb2", "protocol: got 'rgb2'"), ((2, 1, 16, 16), "y", r"\[B, 3, H, W\]")],
)
def test_bad_arguments_are_named(shape, protocol, message):
    with pytest.raises(ValueError, match=message):
        fidelity(torch.zeros(shape), torch.zeros(shape), protocol)
