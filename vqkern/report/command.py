"""Compare training runs on one page: curves, pictures, settings that differ.

The page is one file without scripts or pictures from elsewhere. Its pictures are the regions of the
five photographs that training never sees, or with --data the first images of a folder.
"""

import argparse
from pathlib import Path

import torch

from vqkern.data import CROPS
from vqkern.machine import add_device_argument, choose_device
from vqkern.report.environment import describe_environment
from vqkern.report.results import Strip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vqkern report`."""
    fixed = [name for name in CROPS if not name.endswith("_random")]
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that `vqkern train` wrote")
    parser.add_argument("--out", help="the page (RUN/report.html; of several runs, report.html)")
    parser.add_argument("--data", help="folder of images, in place of the photographs' regions")
    parser.add_argument("--crop", default="adm", choices=fixed, help="of --data (%(default)s)")
    parser.add_argument("--size", type=int, help="side of the crops (256)")
    parser.add_argument("--pictures", type=int, default=6, help="images of --data (%(default)s)")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints where it is.

    Raises:
        ValueError: a folder is no run, an image cannot be read, a package is missing.
        OSError: the page cannot be written.
    """
    from vqkern.report.comparison import write_comparison
    from vqkern.report.runs import read_runs

    _check_packages()
    if args.pictures < 0:
        raise ValueError(f"--pictures: got {args.pictures}, expected at least 0")
    runs = read_runs(args.runs)
    device = choose_device(args.device, "--device")
    pictures = _pictures(args, runs)
    if pictures is not None:
        for one in runs:
            pictures.add(one, device)
    out = Path("report.html") if len(runs) > 1 else runs[0].folder / "report.html"
    out = out if args.out is None else Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(runs, pictures, describe_environment(device), out)
    for problem in [] if pictures is None else pictures.problems:
        print(problem)
    print(f"Page: {out}")
    return 0


def _pictures(args: argparse.Namespace, runs: list):
    from vqkern.report.comparison import Pictures

    if args.data is None:
        if args.size is not None:
            raise ValueError("--size: the photographs' regions have one size; it goes with --data")
        if not args.pictures:
            return None
        intro = "Regions of the photographs that come with scikit-image"
        if any(one.recipe.get("data", {}).get("folder") for one in runs):
            # What a folder holds is not known here: it may be these very pictures.
            intro += ", not of a run's own images; --data FOLDER shows those of a folder."
            return Pictures("Photographs", intro, _photographs())
        intro += "; no training crop touches them."
        return Pictures("Held-out regions", intro, _photographs())
    size = 256 if args.size is None else args.size
    strips = _folder(args.data, args.crop, size, args.pictures)
    if not strips:
        return None
    intro = f"The first images of {args.data}, {args.crop} crops of {size} pixels."
    return Pictures("Pictures", intro, strips)


def _photographs() -> list[Strip]:
    from vqkern.data import load_photographs, to_float

    pictures, regions = load_photographs()
    return [
        Strip(picture.name, picture.source, to_float(region.cut(picture.pixels)))
        for picture, region in zip(pictures, regions, strict=True)
    ]


def _folder(folder: str, crop: str, size: int, count: int) -> list[Strip]:
    import numpy as np

    from vqkern.data import Crop, open_source, to_float

    cut, source = Crop(crop, size), open_source(folder)
    strips = []
    for number in range(min(count, len(source))):
        pixels = torch.from_numpy(np.array(cut(source.load(number)))).permute(2, 0, 1)
        strips.append(Strip(source.names[number], "", to_float(pixels.contiguous())))
    return strips


def _check_packages() -> None:
    import importlib.util

    for package in ("matplotlib", "PIL"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"reports need {package}, which is not installed: pip install 'vqkern[train]'"
            )
