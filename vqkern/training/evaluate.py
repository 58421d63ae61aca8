"""Measure the tokenizer of a run: quantization error, usage of the codes, and its images.

Of the images PSNR and SSIM; with --inception rFID and the Inception Score, with --lpips LPIPS.
Their networks are files that have to be there already.

Without --data the images are the regions of the five photographs that training never sees. With
it they are a folder's, or those of tar shards or volumes, cropped to --size as the protocol does.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from vqkern.data import Crop, load_photographs, ordered_batches, to_float
from vqkern.losses.perceptual import LPIPS_FILES, load_lpips
from vqkern.metrics import (
    PROTOCOLS,
    InceptionScores,
    eight_bits,
    fidelity,
    mean_psnr,
    protocol_named,
    quantization_error,
)
from vqkern.public_files import sha256_of
from vqkern.quantizers import Usage
from vqkern.tokenizers import Tokenizer, from_pretrained
from vqkern.training.batches import every_image_of
from vqkern.training.build import pretrained_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern eval`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or of a tokenizer")
    parser.add_argument("--data", help="folder of images, in place of the photographs' regions")
    parser.add_argument("--size", type=int, help="side of their crops (256)")
    parser.add_argument("--protocol", default="rgb", choices=PROTOCOLS, help="(%(default)s)")
    parser.add_argument("--inception", metavar="FILE", help="network for rFID and IS")
    parser.add_argument("--lpips", metavar="FILE", help="network for LPIPS, that of the protocol")
    parser.add_argument("--batch", type=int, default=16, help="images at once (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def run(args: argparse.Namespace) -> int:
    """Prints the figures and writes them to RUN/eval-PROTOCOL.json.

    Raises:
        ValueError: no tokenizer there, no images, or images that cannot be read.
    """
    from vqkern.training.ranks import device_of

    if args.data is None and args.size is not None:
        raise ValueError("--size: the photographs' regions have one size; it goes with --data")
    args.size = 256 if args.size is None else args.size
    for name in ("size", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: got {getattr(args, name)}, expected at least 1")
    tokenizer = from_pretrained(pretrained_folder(args.run_folder))
    if args.data is None:
        images, described = held_out_photographs(), "held-out regions of the photographs"
    else:
        crop = protocol_named(args.protocol).crop
        images, described = folder_images(args.data, args.size, args.batch, crop), args.data
    device = device_of(args.device)
    lpips = None if args.lpips is None else Lpips(args.lpips, args.protocol, device)
    inception = None if args.inception is None else InceptionScores(args.inception, device)
    figures = evaluate(
        tokenizer.to(device), images, args.protocol, lpips=lpips, inception=inception
    )
    figures["data"] = described
    figures["crop"] = "none" if args.data is None else f"{crop} {args.size}"
    path = Path(args.run_folder) / f"eval-{args.protocol}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:20} {value:.6g}" if isinstance(value, float) else f"{name:20} {value}")
    return 0


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
    usages = list(_flat(quantizer.usage()))
    quantizer.reset_usage()
    figures = {
        **protocol_named(protocol).described(),
        "images": images_seen,
        "quantization_error": error / images_seen,
        "quantization_error_per_channel": error / images_seen / quantizer.dim,
        "codes_hit": sum(u.codes_hit for u in usages) / len(usages),
        "utilization": sum(u.utilization for u in usages) / len(usages),
        "perplexity": sum(u.perplexity for u in usages) / len(usages),
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
    for part in ordered_batches(images, cut):
        if part.damaged:
            raise ValueError(part.damaged[0].reason)
        yield to_float(part.images)


def _flat(usage: Usage | list) -> Iterator[Usage]:
    if isinstance(usage, Usage):
        yield usage
        return
    for part in usage:
        yield from _flat(part)
