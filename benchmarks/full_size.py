"""A tokenizer of the public size: written, loaded, one photograph encoded and decoded.

    python benchmarks/full_size.py                 # adds its rows to results/full_size_cpu.csv

Weights are random, which changes neither time nor memory. They are written by `to_original` in the
public file's own format and read back by `from_original`, as a downloaded file would be. Memory is
what the process held at most during a step, interpreter and libraries included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from record import append_row, commit

from vqkern import build_quantizer
from vqkern.bench import Case, environment
from vqkern.data import Crop, load_photographs, to_float
from vqkern.report.environment import PeakMemory
from vqkern.tokenizers import VQGANConfig, build_tokenizer, from_original

SIZE = 256
# Format, sizes, and the quantizer, of vae_ch160v4096z32.pth and vq_ds16_c2i.pt.
TOKENIZERS = {
    "var": (
        VQGANConfig(latent_dim=32, z_channels=32, width=160, quant_kernel=3),
        ("vanilla_var", 4096),
    ),
    "llamagen": (VQGANConfig(), ("vanilla_sphere", 16384)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", nargs="*", default=list(TOKENIZERS), choices=TOKENIZERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default="benchmarks/results/full_size_cpu.csv")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a file that is there: see below
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        measure(args.format[0], Path(args.measure), args)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.format:
            path = Path(scratch) / f"{name}.pt"
            write(name, path)
            # A process of its own has not held the weights that were written.
            again = [sys.executable, __file__, "--format", name, "--measure", str(path)]
            again += ["--rounds", str(args.rounds), "--threads", str(args.threads)]
            subprocess.run([*again, "--out", args.out], check=True)


def write(name: str, path: Path) -> None:
    config, (preset, codes) = TOKENIZERS[name]
    torch.manual_seed(0)
    quantizer = build_quantizer(preset, dim=config.latent_dim, codebook_size=codes, channel_dim=1)
    build_tokenizer(config, quantizer).to_original(path, name)


@torch.inference_mode()
def measure(name: str, path: Path, args: argparse.Namespace) -> None:
    images = photograph()
    memory = PeakMemory(torch.device("cpu"))
    start = time.perf_counter()
    tokenizer = from_original(name, path)
    record(args, name, path, "load", [time.perf_counter() - start], memory)
    index = tokenizer.encode(images)
    latent = tokenizer.latent(images)
    for step, call in {
        "encode": lambda: tokenizer.encode(images),
        "quantize alone": lambda: tokenizer.quantizer.encode(latent),
        "decode": lambda: tokenizer.decode(index),
    }.items():
        memory.reset()
        call()
        seconds = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        record(args, name, path, step, seconds, memory)


def photograph() -> torch.Tensor:
    """One photograph, cropped as the public evaluations do, [1, 3, 256, 256]."""
    from PIL import Image

    pixels = load_photographs()[0][0].pixels.permute(1, 2, 0).numpy()
    cropped = np.array(Crop("adm", SIZE)(Image.fromarray(pixels)))
    return to_float(torch.from_numpy(cropped).permute(2, 0, 1)[None])


def record(args, name: str, path: Path, step: str, seconds: list[float], memory) -> None:
    """Appends a row, so that a measurement that is stopped leaves what it has."""
    row = {
        "format": name,
        "step": step,
        "image": f"{SIZE}x{SIZE}",
        "seconds": round(statistics.median(seconds), 4),
        "fastest": round(min(seconds), 4),
        "slowest": round(max(seconds), 4),
        "rounds": len(seconds),
        "peak_mib": round(memory.read()),
        "file_mb": round(path.stat().st_size / 1e6),
        "threads": torch.get_num_threads(),
        **environment(Case(1, 1, 1), commit()),
    }
    print(*(f"{key} {row[key]}" for key in list(row)[:9]), flush=True)
    out = Path(args.out)
    append_row(out, row)


if __name__ == "__main__":
    main()
