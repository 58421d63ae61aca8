"""A training step of `VectorQuantize` with its default options: vector-quantize-pytorch's own, the
same layer accelerated, and the drop-in. Times taken in turns, and peak memory against K.

python benchmarks/interop.py writes benchmarks/results/interop_cpu.csv and .png.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import commit
from torch import nn

from vqkern.bench import Case
from vqkern.bench.measure import interleave
from vqkern.bench.memory import return_free_heap
from vqkern.bench.report import environment
from vqkern.machine import (
    peak_since_reset,
    peak_since_start,
    reset_peak_memory,
    resident_memory,
)

RESULTS = Path(__file__).resolve().parent / "results"
N, D = 8192, 32
TIMED = 16384
SIZES = (1024, 4096, 16384, 65536, 262144)
# Measured: the library's step takes 24 bytes for every vector and code.
LIBRARY_BYTES = 24
COLUMNS = (
    "measure,contestant,options,n,k,d,median_s,best_s,rounds,extra_bytes,library_over_it,threads,"
    "hardware,vqkern,backend,torch,python,system,commit,utc"
).split(",")
LIBRARY, ACCELERATED, DROP_IN = "vector-quantize-pytorch", "the same, accelerated", "vqkern.interop"
OPTIONS = {"defaults": {}, "rotation_trick=False": {"rotation_trick": False}}


def layer(contestant: str, codes: int, options: dict) -> nn.Module:
    """A layer of K = `codes`."""
    if contestant == DROP_IN:
        from vqkern.interop import VectorQuantize

        return VectorQuantize(D, codes, **options)
    from vector_quantize_pytorch import VectorQuantize

    made = VectorQuantize(D, codes, **options)
    if contestant == ACCELERATED:
        import vqkern

        assert vqkern.accelerate(made).replaced
    return made


def step(made: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Forward, backward and update."""

    def call() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        quantized, _, loss = made(leaf)
        (quantized.sum() + loss).backward()
        return leaf.grad

    return call


def times(seconds: float, threads: int) -> list[dict]:
    """Rows of the timed steps, all contestants on the same codes."""
    x = torch.randn(1, N, D)
    rows = []
    for label, options in OPTIONS.items():
        layers = {name: layer(name, TIMED, options) for name in (LIBRARY, ACCELERATED, DROP_IN)}
        for made in layers.values():
            made.load_state_dict(layers[LIBRARY].state_dict())
        calls = {name: step(made, x) for name, made in layers.items()}
        index = {name: made(x)[1] for name, made in layers.items()}
        assert torch.equal(index[DROP_IN], index[ACCELERATED])
        same = float((index[DROP_IN] == index[LIBRARY]).float().mean())
        print(f"{label}: {same:.4%} of the indices agree")
        expected = {}
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            expected[name] = time.perf_counter() - start
        samples, errors = interleave(calls, expected, seconds)
        assert not errors, errors
        theirs = statistics.median(samples[LIBRARY])
        for name, taken in samples.items():
            median = statistics.median(taken)
            rows.append(
                {
                    "measure": "time",
                    "contestant": name,
                    "options": label,
                    "k": TIMED,
                    "median_s": f"{median:.5f}",
                    "best_s": f"{min(taken):.5f}",
                    "rounds": len(taken),
                    "library_over_it": f"{theirs / median:.1f}",
                }
            )
            print(f"{label:22} {name:26} {median * 1e3:9.1f} ms  {theirs / median:6.1f}x")
    return rows


def memory(budget: int) -> list[dict]:
    """Rows of peak memory, each measured in a process of its own."""
    rows = []
    for codes in SIZES:
        for name in (LIBRARY, ACCELERATED, DROP_IN):
            if name == LIBRARY and LIBRARY_BYTES * N * codes > budget:
                print(f"K={codes}: {name} would take {LIBRARY_BYTES * N * codes / 1e9:.0f} GB")
                continue
            command = [sys.executable, __file__, "--one", name, "--codes", str(codes)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            extra = int(answer.stdout.split()[-1])
            rows.append(
                {
                    "measure": "memory",
                    "contestant": name,
                    "options": "defaults",
                    "k": codes,
                    "extra_bytes": extra,
                }
            )
            print(f"K={codes:7} {name:26} {extra / 2**20:10.1f} MiB")
    return rows


def peak(name: str, codes: int) -> int:
    """Bytes that a step needs on top of the layer and its input."""
    step(layer(name, 256, {}), torch.randn(1, 64, D))()  # libraries are loaded, threads started
    made, x = layer(name, codes, {}), torch.randn(1, N, D)
    gc.collect()
    return_free_heap()  # what `accelerate` tried the layer with
    resets = reset_peak_memory()
    before = resident_memory() if resets else peak_since_start()
    step(made, x)()
    return (peak_since_reset() if resets else peak_since_start()) - before


def draw(path: Path) -> Path:
    """The memory curve of the CSV at `path`, as a PNG beside it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "memory"]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, colour in ((LIBRARY, "#e07a5f"), (ACCELERATED, "#7fb069"), (DROP_IN, "#0b6e4f")):
        points = [(int(r["k"]), int(r["extra_bytes"]) / 2**20) for r in rows]
        points = [p for p, r in zip(points, rows, strict=True) if r["contestant"] == name]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    scale = [(k, 4 * (N * D + k * D) / 2**20) for k in SIZES]
    axes.plot(*zip(*scale, strict=True), ":", color="#6d6875", label="4 (N D + K D) bytes")
    axes.set(xscale="log", yscale="log", xlabel="codes K", ylabel="MiB on top of the layer")
    axes.set_title(f"Peak memory of a training step, N = {N:,}, D = {D}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=140)
    return path.with_suffix(".png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=30.0, help="timed rounds of a case")
    parser.add_argument("--memory-budget", type=float, default=4e9, help="bytes (%(default)g)")
    parser.add_argument("--part", choices=("time", "memory", "all"), default="all")
    parser.add_argument("--out", type=Path, default=RESULTS / "interop_cpu.csv")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--codes", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.one:
        print(peak(args.one, args.codes))
        return 0
    kept = []
    if args.out.exists():
        with open(args.out, newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["measure"] != args.part]
    kept = [] if args.part == "all" else kept
    threads = torch.get_num_threads()
    new = [] if args.part == "memory" else times(args.seconds, threads)
    new += [] if args.part == "time" else memory(int(args.memory_budget))
    where = environment(Case(N, TIMED, D), commit())
    rows = [*kept, *({"n": N, "d": D, "threads": threads, **where, **row} for row in new)]
    rows.sort(key=lambda row: row["measure"] != "time")
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if any(row["measure"] == "memory" for row in rows):
        print(f"wrote {args.out} and {draw(args.out)}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    raise SystemExit(main())
