"""What tiles change: latents, indices and images of one photograph, tiled against whole.

    python benchmarks/tiles.py runs/demo/tokenizers/base  # adds rows to results/tiles_cpu.csv
    python benchmarks/tiles.py                            # LlamaGen's full size, random weights

Decoded are the same indices, those of the whole image, so that each side's differences are its own.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from record import append_row, commit

from vqkern import build_quantizer
from vqkern.bench import Case, environment
from vqkern.data import load_photographs, to_float
from vqkern.tokenizers import Tiles, VQGANConfig, build_tokenizer, from_pretrained

CASES = {
    (512, 512): [(256, 0), (256, 32), (256, 64)],
    (1440, 2560): [(512, 0), (512, 64), (512, 128)],
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", nargs="?", help="folder that `save_pretrained` wrote")
    parser.add_argument("--height", nargs="*", type=int, default=[h for h, _ in CASES])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default="benchmarks/results/tiles_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.tokenizer is None:
        torch.manual_seed(0)
        quantizer = build_quantizer("vanilla_sphere", dim=8, codebook_size=16384, channel_dim=1)
        tokenizer = build_tokenizer(VQGANConfig(), quantizer).eval()
        name = "llamagen, random weights"
    else:
        tokenizer = from_pretrained(args.tokenizer)
        name = Path(args.tokenizer).name
    for (height, width), tilings in CASES.items():
        if height in args.height:
            compare(name, tokenizer, photograph(height, width), tilings, Path(args.out))


def photograph(height: int, width: int) -> torch.Tensor:
    """The astronaut, resized, [1, 3, height, width]."""
    image = to_float(load_photographs()[0][0].pixels)[None]
    if image.shape[2:] != (height, width):
        image = F.interpolate(image, (height, width), mode="bicubic", antialias=True)
    return image.clamp(-1, 1)


def compare(name: str, tokenizer, images: torch.Tensor, tilings: list, out: Path) -> None:
    start = time.perf_counter()
    index = tokenizer.encode(images)
    whole_seconds = time.perf_counter() - start
    latent, decoded = tokenizer.latent(images), tokenizer.decode(index)
    for size, halo in tilings:
        tiles = Tiles(size, halo)
        start = time.perf_counter()
        tiled_index = tokenizer.encode(images, tiles=tiles)
        seconds = time.perf_counter() - start
        tiled = tokenizer._any_size(images, tiles)
        difference = (tokenizer.decode(index, tiles=tiles) - decoded).abs()
        row = {
            "tokenizer": name,
            "height": images.shape[2],
            "width": images.shape[3],
            "tile": size,
            "halo": halo,
            "latents_relative": float((tiled - latent).norm() / latent.norm()),
            "indices_equal": float((tiled_index == index).double().mean()),
            "pixels_mean": float(difference.mean()),
            "pixels_largest": float(difference.max()),
            "encode_seconds": round(seconds, 2),
            "encode_whole_seconds": round(whole_seconds, 2),
            "threads": torch.get_num_threads(),
            **environment(Case(1, 1, 1), commit()),
        }
        print(*(f"{key} {value}" for key, value in list(row.items())[:11]), flush=True)
        append_row(out, row)


if __name__ == "__main__":
    main()
