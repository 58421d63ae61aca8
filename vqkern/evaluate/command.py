"""Measure the tokenizer of a run: quantization error, usage of the codes, and its images.

Of the images PSNR and SSIM; with --inception rFID and the Inception Score, with --lpips LPIPS.
Their networks are files that have to be there already.

Without --data the images are the regions of the five photographs that training never sees. With
it they are a folder's, or those of tar shards or volumes, cropped to --size as the protocol does.
"""

import argparse
import json
from pathlib import Path

from vqkern.evaluate.figures import Lpips, evaluate, folder_images, held_out_photographs
from vqkern.machine import add_device_argument, choose_device
from vqkern.metrics import PROTOCOLS, InceptionScores, protocol_named
from vqkern.tokenizers import from_pretrained
from vqkern.tokenizers.pretrained import pretrained_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern eval`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or of a tokenizer")
    parser.add_argument("--data", help="folder of images, in place of the photographs' regions")
    parser.add_argument("--size", type=int, help="side of their crops (256)")
    parser.add_argument("--protocol", default="rgb", choices=PROTOCOLS, help="(%(default)s)")
    parser.add_argument("--inception", metavar="FILE", help="network for rFID and IS")
    parser.add_argument("--lpips", metavar="FILE", help="network for LPIPS, that of the protocol")
    parser.add_argument("--batch", type=int, default=16, help="images at once (%(default)s)")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the figures and writes them to RUN/eval-PROTOCOL.json.

    Raises:
        ValueError: no tokenizer there, no images, or images that cannot be read.
    """
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
    device = choose_device(args.device, "--device")
    lpips = None if args.lpips is None else Lpips(args.lpips, args.protocol, device)
    inception = None if args.inception is None else InceptionScores(args.inception, device)
    figures = evaluate(
        tokenizer.to(device), images, args.protocol, lpips=lpips, inception=inception
    )
    figures["data"] = described
    figures["crop"] = "none" if args.data is None else f"{crop} {args.size}"
    for name, value in figures.items():
        print(f"{name:20} {value:.6g}" if isinstance(value, float) else f"{name:20} {value}")
    path = Path(args.run_folder) / f"eval-{args.protocol}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0
