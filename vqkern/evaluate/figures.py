"""Figures of a tokenizer over images: of its codes, and of what it makes of the images."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from vqkern.data import Crop, load_photographs, ordered_batches, to_float
from vqkern.files import sha256_of
from vqkern.losses.perceptual import LPIPS_FILES, load_lpips
from vqkern.metrics import (
    InceptionScores,
    eight_bits,
    fidelity,
    mean_psnr,
    protocol_named,
    quantization_error,
)
from vqkern.quantizers.usage import usages
from vqkern.terminal import progress_bar
from vqkern.tokenizers import Tokenizer
from vqkern.training.batches import every_image_of


class Lpips:
    """LPIPS by a protocol's network, of images in [-1, 1].

    Raises:
        ValueError: see `load_lpips`.
    """

    def __init__(self, weights: str | Path, protocol: str, device: torch.device) -> None:
        self.network = protocol_named(protocol).lpips
        self.measure = load_lpips(weights, self.network).to(device)
        path = Path(weights)
        self.sha256 = sha256_of(path / LPIPS_FILES[self.network].name if path.is_dir() else path)

    def __call__(self, images: Tensor, reference: Tensor) -> list[float]:
        return self.measure(images, reference).flatten().tolist()


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer,
    batches: Iterable[Tensor],
    protocol: str = "rgb",
    *,
    lpips: Lpips | None = None,
    inception: InceptionScores | None = None,
) -> dict:
    """Figures of a tokenizer over batches of images in [-1, 1].

    Args:
        lpips, inception: Measured where given.

    Returns:
        quantization_error: E, mean over tokens of the squares summed over channels (of the mean,
            for a variational latent); quantization_error_per_channel: E / D. codes_hit,
            utilization, perplexity: over all tokens; means over the codebooks where there are
            several. images: how many. psnr, ssim: over images, as the keys protocol_... describe.
            lpips, rfid, inception_score: with the sha256 of their networks' files.

    Raises:
        ValueError: there is no image, or an unknown protocol.
    """
    tokenizer.eval()
    quantizer = tokenizer.quantizer
    if quantizer is None:
        raise ValueError(
            "this tokenizer has continuous latents and no quantizer: it has no error of "
            "quantization, and no codes to count; stage_1 gives it one"
        )
    quantizer.reset_usage()
    device = next(tokenizer.parameters()).device
    error, psnrs, ssims, distances, images_seen = 0.0, [], [], [], 0
    for images in batches:
        images = images.to(device)
        latent = tokenizer.latent(images)
        quantized, _, _ = quantizer(latent)
        place = latent[:, : quantized.shape[1]]
        error += float(quantization_error(place, quantized, channel_dim=1)) * len(images)
        reconstructed = tokenizer.decoder(quantized).clamp(-1, 1)
        reconstructed = reconstructed.float()
        scores = fidelity(reconstructed, images, protocol)
        if lpips is not None:
            distances += lpips(reconstructed, images)
        if inception is not None:
            inception.add(eight_bits(reconstructed), eight_bits(images))
        psnrs += scores.psnr.tolist()
        ssims += scores.ssim.tolist()
        images_seen += len(images)
    if not images_seen:
        raise ValueError("images: got none, expected at least one")
    found = usages(quantizer.usage())
    quantizer.reset_usage()
    figures = {
        **protocol_named(protocol).described(),
        "images": images_seen,
        "quantization_error": error / images_seen,
        "quantization_error_per_channel": error / images_seen / quantizer.dim,
        "codes_hit": sum(u.codes_hit for u in found) / len(found),
        "utilization": sum(u.utilization for u in found) / len(found),
        "perplexity": sum(u.perplexity for u in found) / len(found),
        "psnr": mean_psnr(torch.tensor(psnrs, dtype=torch.float64), protocol),
        "ssim": sum(ssims) / images_seen,
    }
    if lpips is not None:
        figures |= {"lpips": sum(distances) / images_seen, "lpips_network": lpips.network}
        figures["lpips_sha256"] = lpips.sha256
    if inception is not None:
        figures["rfid"] = inception.rfid()
        figures["inception_score"] = inception.inception_score()
        figures["inception_sha256"] = inception.sha256
    return figures


def held_out_photographs() -> Iterator[Tensor]:
    """The photographs' held-out regions, one batch [5, 3, 128, 128]."""
    pictures, regions = load_photographs()
    cut = [r.cut(p.pixels) for p, r in zip(pictures, regions, strict=True)]
    yield to_float(torch.stack(cut))


def folder_images(folder: str, size: int, batch: int, crop: str = "adm") -> Iterator[Tensor]:
    """All images of a source under a named crop, in batches [<= batch, 3, size, size].

    Raises:
        ValueError: see `every_image_of`; an image cannot be read.
    """
    images = every_image_of(folder, Crop(crop, size))
    numbers = range(len(images))
    cut = [list(numbers[start : start + batch]) for start in range(0, len(images), batch)]
    with progress_bar(len(images), unit="image", leave=False) as bar:
        for part in ordered_batches(images, cut):
            if part.damaged:
                raise ValueError(part.damaged[0].reason)
            yield to_float(part.images)
            bar.update(len(part.images))
