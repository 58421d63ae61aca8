"""Turn images into code indices: a saved tokenizer over a folder, to shards that numpy reads.

A run that was stopped goes on where it was; damaged images are left out and named.
"""

import argparse
from pathlib import Path

from vqkern.files import require_apart
from vqkern.machine import add_device_argument, choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern tokenize`."""
    from vqkern.data.command import add_crop_arguments

    parser.add_argument("tokenizer", metavar="RUN", help="folder of a run, or of a tokenizer")
    data = "folder of images, tar shards or volumes, or a .tar file"
    parser.add_argument("--data", required=True, help=data)
    parser.add_argument("--out", required=True, help="folder for the tokens; resumed where begun")
    add_crop_arguments(parser)
    parser.add_argument("--batch", type=int, default=32, help="images at once (%(default)s)")
    parser.add_argument("--shard-size", type=int, default=1024, help="images a shard (%(default)s)")
    add_device_argument(parser)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; 0 when all images are encoded.

    Raises:
        ValueError, OSError: an option, the tokenizer, the data or the folder does not serve.
    """
    import torch

    from vqkern.data import Crop, CroppedImages, open_source
    from vqkern.data.command import report_damage
    from vqkern.tokenize import MANIFEST_FILE, tokenize, tokenizer_files
    from vqkern.tokenizers import from_pretrained
    from vqkern.tokenizers.pretrained import pretrained_folder

    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads: got {args.threads}, expected at least 1")
        torch.set_num_threads(args.threads)
    require_apart(args.out, args.data)
    device = choose_device(args.device, "--device")
    folder = pretrained_folder(args.tokenizer)
    tokenizer = from_pretrained(folder).eval().to(device)
    images = CroppedImages(open_source(args.data), Crop(args.crop, args.size))
    manifest = tokenize(
        tokenizer,
        images,
        args.out,
        tokenizer_sha256=tokenizer_files(folder),
        batch_size=args.batch,
        shard_size=args.shard_size,
        workers=args.workers,
        max_share=args.max_damaged,
    )
    shape = " x ".join(map(str, manifest["index_shape"] or []))
    print(f"{manifest['images']} images of {shape} tokens in {args.out}")
    report_damage(manifest["damaged"], str(Path(args.out) / MANIFEST_FILE))
    if manifest["not_finite"]:
        print(f"{manifest['not_finite']} tokens are -1: their latents are not finite")
    return 0
