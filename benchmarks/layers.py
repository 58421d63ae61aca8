"""A training step of every layer against the sum of the kernels that it calls, in turns.

    python benchmarks/layers.py [NAME ...] [--threads 2]

A step is forward and backward with a gradient for z, at K = 65,536 codes, D = 16 channels and
N = 8,192 vectors; the optimiser is left out. The kernels are not listed by hand: one step is
watched, and every call of an operation of this package, of a matrix product, convolution or
attention is recorded with its inputs and repeated alone. What the layer takes beyond them is its
own: autograd, sums of losses, usage, layout. Writes results/layers_cpu.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from record import commit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import vqkern
from vqkern.bench.report import hardware
from vqkern.quantizers import CODEBOOK_FREE, PRESETS, STRUCTURES

RESULTS = Path(__file__).resolve().parent / "results"
N, K, D = 8192, 65536, 16
ROUNDS, WARM_UP = 15, 2
NAMES = [*PRESETS, *CODEBOOK_FREE, "mgvq", *(f"vanilla_{s}" for s in STRUCTURES)]
# What only moves or adds numbers is the layer's own work.
PRODUCTS = {
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution",
    "aten::convolution_backward", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Keeps the calls of kernels, with copies of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name.startswith("vqkern::") or name in PRODUCTS:
            copied = tree_map(_copy, (args, kwargs or {}))
            self.calls.append((name, func, *copied))
        return func(*args, **(kwargs or {}))


def _copy(value):
    return value.detach().clone() if isinstance(value, Tensor) else value


def layer(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """(what puts the layer back to its start, a training step)."""
    torch.manual_seed(0)
    maps = name.endswith("_var")
    quantizer = vqkern.build_quantizer(
        name, dim=D, codebook_size=4**8 if name.startswith("fsq") else K,
        **({"levels": (2,) * D} if name == "fsq" else {}),
    )  # fmt: skip
    channels = quantizer.in_channels
    shape = (N // 256, 16, 16, channels) if maps else (N, channels)
    z = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(*shape[:-1], D) / N
    start = {k: v.clone() for k, v in quantizer.state_dict().items()}

    def restore() -> None:
        quantizer.load_state_dict(start)
        quantizer.zero_grad()
        z.grad = None
        torch.manual_seed(1)

    def step() -> None:
        quantized, _, loss = quantizer(z)
        targets, slopes = [quantized], [upstream]
        if loss.requires_grad:
            targets, slopes = [*targets, loss], [*slopes, torch.ones_like(loss)]
        torch.autograd.backward(targets, slopes)

    return restore, step


def measure(name: str, rounds: int) -> dict:
    """Medians in milliseconds of the step and of its kernels, and what these are."""
    restore, step = layer(name)
    restore()
    with Watch() as watch:
        step()

    @torch.no_grad()
    def kernels() -> None:
        for _, func, args, kwargs in watch.calls:
            func(*args, **kwargs)

    samples = {"step": [], "kernels": []}
    for number in range(WARM_UP + rounds):
        for label, call in (("step", step), ("kernels", kernels))[:: 1 if number % 2 else -1]:
            restore()
            began = time.perf_counter()
            call()
            if number >= WARM_UP:
                samples[label].append(1e3 * (time.perf_counter() - began))
    counts = Counter(call[0].split("::")[1] for call in watch.calls)
    row = {"layer": name, "n": N, "k": K, "d": D, "rounds": rounds}
    for label, times in samples.items():
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        row |= {f"{label}_ms": median, f"{label}_lower_ms": low, f"{label}_upper_ms": high}
    ratio = row["step_ms"] / row["kernels_ms"] if watch.calls else float("nan")
    calls = " + ".join(f"{n} {k}" if n > 1 else k for k, n in sorted(counts.items()))
    return row | {"ratio": ratio, "kernels": calls}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, help="layers (default: all presets)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    parser.add_argument("--out", type=Path, default=RESULTS / "layers_cpu.csv")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows = []
    print("| layer | step, ms | its kernels, ms | ratio | kernels |\n|---|---|---|---|---|")
    for name in options.names:
        row = measure(name, options.rounds)
        print(
            f"| `{name}` | {row['step_ms']:.1f} | {row['kernels_ms']:.1f} | {row['ratio']:.2f} | "
            f"{row['kernels']} |",
            flush=True,
        )
        rows.append(row)
    here = {
        "hardware": hardware("cpu"), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "commit": commit(),
    }  # fmt: skip
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *here])
        writer.writeheader()
        for row in rows:
            figures = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(figures | here)


if __name__ == "__main__":
    main()
