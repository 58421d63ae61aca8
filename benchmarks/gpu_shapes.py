"""The shapes of record on a GPU: latency of a call, of its CUDA graph, and of each kernel in it.

A call from Python pays for some twenty launches; a replayed graph shows what the GPU itself needs.
Every search is checked against exact arithmetic on 64 rows first. Writes results/gpu_shapes.csv.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import vqkern

SEARCHES = {"A": (65536, 262144, 256), "B": (65536, 16384, 8), "C": (65536, 65536, 16)}
COLUMNS = ("op", "shape", "what", "median_ms", "note", "gpu", "torch", "triton")


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of `call` by device events, after two calls to warm up."""
    times = []
    for i in range(rounds + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`call`, captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def kernels_of(call: Callable[[], object]) -> list[tuple[str, float]]:
    """Name and milliseconds of the kernels of one call, longest first."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    found = [(e.key, e.self_device_time_total / 1e3) for e in profile.key_averages()]
    return sorted(found, key=lambda kernel: -kernel[1])


def short(kernel: str) -> str:
    """A kernel's name without its namespaces and arguments."""
    return re.sub(r"\(anonymous namespace\)::|vqkern::hopper::|^void ", "", kernel).split("(")[0][
        :60
    ]


def check_search(z: torch.Tensor, codes: torch.Tensor, index: torch.Tensor) -> str:
    """How many of 64 rows have another index than the CPU gives them."""
    rows = torch.randperm(len(z), device=z.device)[:64]
    expected = vqkern.nearest_code(z[rows].cpu(), codes.cpu()).index
    wrong = int((index[rows].cpu() != expected).sum())
    return f"{wrong} of 64 rows differ from the CPU's"


def searches() -> list[tuple[str, str, str, float, str]]:
    rows = []
    for name, (n, k, d) in SEARCHES.items():
        z, codes = torch.randn(n, d, device="cuda"), torch.randn(k, d, device="cuda")
        shape = f"{name} {n} {k} {d}"

        for backend, state in vqkern.backend.status("cuda").items():
            if backend not in ("cuda", "triton") or not state.available:
                continue

            def call(z=z, codes=codes, backend=backend):
                return vqkern.nearest_code(z, codes, backend=backend)

            with vqkern.certificates() as certificate:
                index = call().index
            note = check_search(z, codes, index)
            note += f"; {certificate.certified} of {n} certified, "
            note += f"{certificate.candidates} candidates"
            op = f"nearest_code {backend}"
            rows.append((op, shape, "call", median_ms(call, 20), note))
            rows.append((op, shape, "graph", median_ms(graph_of(call).replay, 20), ""))
            for kernel, milliseconds in kernels_of(call)[:8]:
                rows.append((op, shape, "kernel", milliseconds, short(kernel)))
        if name == "A":
            note = "four times a quarter of it"
            rows.append(("torch.mm fp16", shape, "call", product_ms(z, codes), note))
    return rows


def product_ms(z: torch.Tensor, codes: torch.Tensor) -> float:
    """A float16 matrix product of the same shape; a quarter of the rows, as N x K is large."""
    quarter, other = z[: len(z) // 4].half(), codes.half().T
    out = torch.empty(len(quarter), len(codes), dtype=torch.float16, device="cuda")
    return 4 * median_ms(lambda: torch.mm(quarter, other, out=out), 20)


def losses() -> list[tuple[str, str, str, float, str]]:
    rows = []
    n, k = 8192, 65536
    cases = [("squared_mmd", 16), *(("gaussian_w2", d) for d in (16, 32, 64))]
    for op, d in cases:
        x = torch.randn(n, d, device="cuda") + 0.5
        y = torch.randn(k, d, device="cuda", requires_grad=True)
        loss = getattr(vqkern, op)

        def call(loss=loss, x=x, y=y):
            return torch.autograd.grad(loss(x, y), y)

        shape = f"{n} {k} {d}"
        rows.append((op, shape, "call", median_ms(call, 20), "value and codes' gradient"))
        try:
            rows.append((op, shape, "graph", median_ms(graph_of(call).replay, 20), ""))
        except RuntimeError as error:
            torch.cuda.synchronize()
            rows.append((op, shape, "graph", float("nan"), str(error).split("\n")[0][:80]))
        for kernel, milliseconds in kernels_of(call)[:8]:
            rows.append((op, shape, "kernel", milliseconds, short(kernel)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        print("gpu_shapes: torch sees no CUDA device here", file=sys.stderr)
        return 2
    import triton

    where = (torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    with open(out / "gpu_shapes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for measure in (searches, losses):
            for op, shape, what, milliseconds, note in measure():
                print(f"{op:19} {shape:24} {what:7} {milliseconds:9.4f} ms  {note}", flush=True)
                writer.writerow((op, shape, what, f"{milliseconds:.5g}", note, *where))
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
