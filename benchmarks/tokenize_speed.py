"""`vqkern tokenize` against its encoder alone, in turns, in one process.

    python benchmarks/tokenize_speed.py            # adds its rows to results/tokenize_cpu.csv

The encoder alone gets one float batch that is in memory already, again and again. The whole run
decodes, crops, encodes, quantizes and writes shards, its workers' start included. Images are crops
of scikit-image's photographs: a folder of 400 x 320 JPEG files, and the same packed to 256 x 256
PNG shards. Weights are random, which changes no cost but the search's; the codes are a sample of
the encoder's latents on half of the images, as they are after training.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import append_row, commit

from vqkern import build_quantizer
from vqkern.bench import Case, environment
from vqkern.data import Crop, CroppedImages, load_photographs, open_source, pack, to_float
from vqkern.tokenize import tokenize
from vqkern.tokenizers import ConvConfig, VQGANConfig, build_tokenizer

SIZE = 256
# The last two are the encoder of LlamaGen's VQ-16 and LDM's vq-f16, at its full size.
ENCODERS = {
    "demo f8": ConvConfig(latent_dim=8),
    "quarter f16": ConvConfig(16, 4, (128, 256, 512), (2, 2, 2), 32),
    "public f16, 8 channels": VQGANConfig(latent_dim=8),
    "public f16, 16 channels": VQGANConfig(latent_dim=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS))
    parser.add_argument("--sizes", nargs="*", type=int, default=[65536, 262144])
    parser.add_argument("--data", nargs="*", default=["packed", "jpeg"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default="benchmarks/results/tokenize_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        sources = make_images(Path(scratch), args.images)
        for name in args.encoders:
            for codes in args.sizes:
                tokenizer, batch = make_tokenizer(name, codes, sources["packed"], args.batch)
                for kind in args.data:
                    row = measure(tokenizer, batch, sources[kind], Path(scratch), args)
                    print(name, codes, kind, row, flush=True)
                    write(Path(args.out), {"encoder": name, "codes": codes, "data": kind, **row})


def make_images(folder: Path, count: int) -> dict[str, CroppedImages]:
    rng = np.random.default_rng(0)
    pictures, _ = load_photographs()
    (folder / "jpeg").mkdir()
    for number in range(count):
        picture = pictures[number % len(pictures)].pixels.permute(1, 2, 0).numpy()
        high, wide = min(320, picture.shape[0]), min(400, picture.shape[1])
        top = rng.integers(picture.shape[0] - high + 1)
        left = rng.integers(picture.shape[1] - wide + 1)
        crop = np.ascontiguousarray(picture[top : top + high, left : left + wide])
        Image.fromarray(crop).save(folder / "jpeg" / f"{number:05d}.jpg", quality=90)
    jpeg = CroppedImages(open_source(folder / "jpeg"), Crop("adm", SIZE))
    pack(jpeg, folder / "packed")
    packed = CroppedImages(open_source(folder / "packed"), Crop("whole", SIZE))
    return {"jpeg": jpeg, "packed": packed}


def make_tokenizer(name: str, codes: int, images: CroppedImages, batch: int):
    """The tokenizer, and one batch of images for the encoder alone."""
    torch.manual_seed(0)
    config = ENCODERS[name]
    quantizer = build_quantizer(
        "vanilla", dim=config.latent_dim, codebook_size=codes, channel_dim=1
    )
    tokenizer = build_tokenizer(config, quantizer).eval()
    pixels = np.stack([images.read(n, None) for n in range(0, min(len(images), 2 * batch), 2)])
    pixels = to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    latents = tokenizer.latent(pixels).movedim(1, -1).flatten(0, -2)
    chosen = latents[torch.randint(len(latents), (codes,))]
    quantizer.load_codes(chosen + 0.1 * latents.std(0) * torch.randn_like(chosen))
    return tokenizer, pixels[:batch]


def measure(tokenizer, batch, images: CroppedImages, scratch: Path, args) -> dict:
    repeats = len(images) // len(batch)
    encoder, whole = [], []  # (seconds, processor seconds) an image
    tokenizer.encode(batch)
    for _ in range(args.rounds):
        with Clock(repeats * len(batch)) as clock:
            for _ in range(repeats):
                tokenizer.latent(batch)
        encoder.append(clock.per_image)
        with tempfile.TemporaryDirectory(dir=scratch) as out, Clock(len(images)) as clock:
            tokenize(tokenizer, images, out, batch_size=args.batch, workers=args.workers)
        whole.append(clock.per_image)
    latent = tokenizer.latent(batch)
    start = time.perf_counter()
    tokenizer.quantizer.encode(latent)
    quantizer = (time.perf_counter() - start) / len(batch)
    start = time.perf_counter()
    for number in range(min(64, len(images))):
        images.read(number, None)
    decoding = (time.perf_counter() - start) / min(64, len(images))
    alone, alone_cpu = (statistics.median(part) for part in zip(*encoder, strict=True))
    run, run_cpu = (statistics.median(part) for part in zip(*whole, strict=True))
    return {
        "latent_dim": tokenizer.config.latent_dim,
        "tokens_per_image": latent[0, 0].numel(),
        "images": len(images),
        "batch": args.batch,
        "workers": args.workers,
        "rounds": args.rounds,
        "encoder_images_per_s": round(1 / alone, 3),
        "tokenize_images_per_s": round(1 / run, 3),
        "share_of_encoder": round(alone / run, 4),
        "share_by_cpu_time": round(alone_cpu / run_cpu, 4),
        "encoder_ms_per_image": round(1e3 * alone, 3),
        "quantizer_ms_per_image": round(1e3 * quantizer, 3),
        "decoding_core_ms_per_image": round(1e3 * decoding, 3),
    }


class Clock:
    """Seconds an image of a block: by the wall, and of this process and its finished workers.

    The second says what share of two busy cores the encoder has, whatever else runs beside it.
    """

    def __init__(self, images: int) -> None:
        self.images = images

    def __enter__(self) -> "Clock":
        self.start = self.now()
        return self

    def __exit__(self, *error) -> None:
        self.per_image = tuple(
            (b - a) / self.images for a, b in zip(self.start, self.now(), strict=True)
        )

    @staticmethod
    def now() -> tuple[float, float]:
        times = os.times()
        cpu = times.user + times.system + times.children_user + times.children_system
        return time.perf_counter(), cpu


def write(path: Path, row: dict) -> None:
    """Appends a row, so that a measurement that is stopped leaves what it has."""
    row |= {"threads": torch.get_num_threads(), **environment(Case(1, 1, 1), commit())}
    append_row(path, row)


if __name__ == "__main__":
    main()
