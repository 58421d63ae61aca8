"""Named PSNR and SSIM: rounding, luma, range, against formulas written out here."""

import numpy as np
import pytest
import torch

from vqkern.data import CROPS
from vqkern.metrics import PROTOCOLS, eight_bits, fidelity, mean_psnr


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


def test_uniform_windows_are_scikit_images_own():
    from skimage.metrics import structural_similarity

    a, b = pair()
    got = {name: fidelity(a, b, name).ssim for name in ("rgb-uniform", "llamagen", "vaevq")}
    floats = [((x.double() + 1) * 127.5).clamp(0, 255).numpy() for x in (a, b)]
    for n, (x, y) in enumerate(zip(bytes_of(a), bytes_of(b), strict=True)):
        once = structural_similarity(x, y, channel_axis=0, data_range=255)
        twice = structural_similarity(x / 255, y / 255, channel_axis=0, data_range=2.0)
        exact = structural_similarity(floats[0][n], floats[1][n], channel_axis=0, data_range=255)
        assert float(got["rgb-uniform"][n]) == pytest.approx(once, abs=1e-9)
        assert float(got["llamagen"][n]) == pytest.approx(twice, abs=1e-9) and twice > once
        assert float(got["vaevq"][n]) == pytest.approx(exact, abs=1e-9)


def test_floats_are_not_rounded_and_bytes_are():
    a, _ = pair()
    near = torch.from_numpy(bytes_of(a)) / 127.5 - 1
    for name, protocol in PROTOCOLS.items():
        same = bool(fidelity(near, near + 1e-4, name).psnr.isinf().all())
        assert same == protocol.rounded, name
    assert eight_bits(near).equal(torch.from_numpy(bytes_of(a)).to(torch.uint8))
    # What the programs write, 127.5 x + 128 truncated, is the same rounding.
    written = (127.5 * a.double() + 128).clamp(0, 255).to(torch.uint8)
    assert written.equal(eight_bits(a))


def test_mean_psnr_of_images_or_of_their_mean_error():
    a, b = pair()
    b[0] = a[0] + 0.5
    values = fidelity(a, b, "mgvq").psnr
    assert mean_psnr(values, "rgb") == pytest.approx(float(values.mean()))
    error = ((a.double() - b.double().clamp(-1, 1)) * 127.5).square().mean()
    assert mean_psnr(values, "mgvq") == pytest.approx(float(10 * (255**2 / error).log10()))
    assert mean_psnr(values, "mgvq") < mean_psnr(values, "rgb") - 1


def test_every_protocol_says_what_it_does():
    described = [protocol.described() for protocol in PROTOCOLS.values()]
    assert len({tuple(sorted(d.items())) for d in described}) == len(PROTOCOLS)
    assert all(protocol.crop in CROPS and protocol.note for protocol in PROTOCOLS.values())


@pytest.mark.parametrize(
    ("shape", "protocol", "message"),
    [((2, 3, 16, 16), "rgb2", "protocol: got 'rgb2'"), ((2, 1, 16, 16), "y", r"\[B, 3, H, W\]")],
)
def test_bad_arguments_are_named(shape, protocol, message):
    with pytest.raises(ValueError, match=message):
        fidelity(torch.zeros(shape), torch.zeros(shape), protocol)
