"""Prepare data sets: crop a folder once and pack it into tar shards, or check packed shards."""

import argparse
import os
import sys
from pathlib import Path

from vqkern.files import require_apart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `vqkern data` and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    packing = actions.add_parser("pack", help="crop images once and write them to tar shards")
    packing.add_argument("data", help="folder of images, tar shards or volumes, or a .tar file")
    packing.add_argument("--out", required=True, help="folder for the shards; resumed where begun")
    add_crop_arguments(packing)
    packing.add_argument(
        "--shard-size", type=int, default=4096, help="images a shard (%(default)s)"
    )
    checking = actions.add_parser("check", help="compare packed shards with their index")
    checking.add_argument("data", help="folder that `vqkern data pack` wrote")


def add_crop_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that `data pack` and `tokenize` share."""
    parser.add_argument("--size", type=int, default=256, help="side in pixels (%(default)s)")
    parser.add_argument(
        "--crop", default="adm", help="adm, var, center or whole: see docs/data.md (%(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="decoding processes (%(default)s)"
    )
    parser.add_argument(
        "--max-damaged",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="stop when a larger share of the images is damaged (%(default)s)",
    )


def default_workers() -> int:
    """One less than the processor's threads, at least 1 and at most 8."""
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def run(args: argparse.Namespace) -> int:
    """Runs one action; 0, or 130 after Ctrl-C.

    Raises:
        ValueError, OSError: an option, the data or the output folder does not serve.
    """
    if args.action == "check":
        return _check(args.data)
    from vqkern.data import Crop, CroppedImages, open_source
    from vqkern.data.pack import INDEX_FILE, pack

    require_apart(args.out, args.data)
    images = CroppedImages(open_source(args.data), Crop(args.crop, args.size))
    index = pack(images, args.out, args.shard_size, args.max_damaged, args.workers)
    count = sum(entry["images"] for entry in index["shards"])
    print(f"{count} images in {len(index['shards'])} shards in {args.out}")
    report_damage(index["damaged"], str(Path(args.out) / INDEX_FILE))
    return 0


def report_damage(damaged: list[dict], where: str) -> None:
    """Says on stderr how many images were left out, and which file names them."""
    if damaged:
        noun = "image was" if len(damaged) == 1 else "images were"
        print(f"{len(damaged)} damaged {noun} left out, see {where}", file=sys.stderr)


def _check(folder: str) -> int:
    from vqkern.data.pack import INDEX_FILE, check_index

    index = check_index(Path(folder), sums=True)
    if index is None:
        raise ValueError(f"packed folder {folder!r} has no {INDEX_FILE}")
    count = sum(entry["images"] for entry in index["shards"])
    print(f"{count} images in {len(index['shards'])} shards, all as indexed")
    return 0
