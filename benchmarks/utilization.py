r"""How much of a codebook is used: four parametrisations, through the annealing of the rate.

    python benchmarks/utilization.py --jobs 8             # four minutes on 16 cores
    python benchmarks/utilization.py --sizes 1024 --steps 200    # a trial of a minute
    python benchmarks/utilization.py --sizes 16384 --steps 600 --points 12 --held 524288 \
        --codes fvq linear --jobs 2 --out utilization_16k_cpu.csv    # 32 features a code

FVQ's figure 3 at a small size. Features are patches of photographs, 8 x 8 pixels projected to 16
whitened channels; they stand still, and the codebook loss alone moves the codes: a free table, a
linear map of one, a five-layer MLP or VQBridge. Raw codes, data, seed, optimiser and rate are the
same for all. The rate rises, stays, then falls to 1 %; runs without the fall are the comparison.
Codes drawn from the features show what is within reach. Writes a CSV and a picture beside it.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

import vqkern
from vqkern.data.photographs import load_photographs
from vqkern.quantizers import Quantizer

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = {"table": "vanilla", "linear": "linear", "mlp": "mlp", "fvq": "fvq"}
LABELS = {"table": "free table", "linear": "linear map", "mlp": "five-layer MLP", "fvq": "VQBridge"}
SIZES = (1024, 4096, 16384, 65536)
PATCH, DIM, BATCH, RATE = 8, 16, 8192, 1e-2
WARM_UP, FALL, LEAST = 0.1, 0.3, 0.01  # of the steps, of the steps, of the rate
TRAINED, HELD = 1 << 20, 1 << 18  # features


def features(held: int = HELD) -> tuple[Tensor, Tensor]:
    """Random patches in 16 whitened channels: to train on, and to measure with."""
    generator = torch.Generator().manual_seed(0)
    pictures = [picture.pixels for picture in load_photographs()[0]]
    areas = torch.tensor([float(p.shape[1] * p.shape[2]) for p in pictures])

    def patches(number: int) -> Tensor:
        own = torch.multinomial(areas, number, replacement=True, generator=generator)
        drawn = torch.empty(number, 3 * PATCH * PATCH)
        for which, pixels in enumerate(pictures):
            rows = (own == which).nonzero().squeeze(1)
            windows = pixels.unfold(1, PATCH, 1).unfold(2, PATCH, 1)
            top = torch.randint(windows.shape[1], (len(rows),), generator=generator)
            left = torch.randint(windows.shape[2], (len(rows),), generator=generator)
            drawn[rows] = windows[:, top, left].movedim(0, 1).flatten(1).float()
        return drawn

    first = patches(TRAINED + HELD)
    mean = first[:TRAINED].mean(0)
    first -= mean
    variances, axes = torch.linalg.eigh(first[:TRAINED].T @ first[:TRAINED] / TRAINED)
    whitened = axes[:, -DIM:] / variances[-DIM:].sqrt()
    trained, measured = (first @ whitened).split([TRAINED, HELD])
    del first
    while len(measured) < held:
        measured = torch.cat([measured, (patches(HELD) - mean) @ whitened])
    return trained, measured[:held]


def rate(done: float, annealed: bool) -> float:
    """FVQ's: a linear rise, a plateau, and a linear fall, which is left out if not `annealed`."""
    if done < WARM_UP:
        return max(done / WARM_UP, 0.005)
    return 1.0 if done < FALL or not annealed else 1 - (1 - LEAST) * (done - FALL) / (1 - FALL)


@torch.no_grad()
def measure(quantizer: Quantizer, held: Tensor) -> dict[str, float]:
    """Use of the codes by the held features, and their mean squared error."""
    quantizer.eval()
    quantizer.reset_usage()
    parts = held.split(HELD)
    error = sum((quantizer(part).quantized - part).square().sum() for part in parts) / held.numel()
    usage = quantizer.usage()
    quantizer.train()
    return {
        "utilization": usage.utilization, "perplexity": usage.perplexity, "error": float(error)
    }  # fmt: skip


def run(
    kind: str, k: int, annealed: bool, steps: int, points: int, held: int, threads: int
) -> list[dict]:
    """One training run, measured `points` times; `drawn` are features as codes, not trained."""
    torch.set_num_threads(threads)
    trained, held = features(held)
    torch.manual_seed(0)
    began, rows = time.perf_counter(), []
    name = KINDS.get(kind, "vanilla")
    quantizer = vqkern.build_quantizer(name, dim=DIM, codebook_size=k, init="normal")
    if kind == "drawn":
        quantizer.load_codes(trained[:k])
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=RATE, betas=(0.9, 0.95))
    for step in range(1, steps + 1):
        if kind != "drawn":
            loss = quantizer(trained[torch.randint(TRAINED, (BATCH,))]).loss
            optimizer.param_groups[0]["lr"] = RATE * rate(step / steps, annealed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step == steps or (kind != "drawn" and step % max(1, steps // points) == 0):
            about = {
                "codes": kind, "k": k, "annealed": annealed, "step": step, "steps": steps,
                "held": len(held),
            }  # fmt: skip
            rows.append(about | measure(quantizer, held))
    rows[-1]["seconds"] = time.perf_counter() - began
    print(
        f"{kind:>6} {k:>6} {'annealed' if annealed else 'constant'}: "
        f"{rows[-1]['utilization']:.2%} of the codes, error {rows[-1]['error']:.4f}", flush=True
    )  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    from record import commit

    from vqkern.bench.report import hardware

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="codebook sizes")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--codes", nargs="+", default=[*KINDS], choices=KINDS)
    parser.add_argument("--points", type=int, default=20, help="measurements of the largest size")
    parser.add_argument("--held", type=int, default=HELD, help="features to measure with")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=RESULTS / "utilization_cpu.csv")
    options = parser.parse_args(arguments)
    largest, threads = max(options.sizes), max(1, os.cpu_count() // options.jobs)
    runs = [
        (
            kind,
            k,
            annealed,
            options.steps,
            options.points if k == largest else 1,
            options.held,
            threads,
        )
        for k in sorted(options.sizes, reverse=True)
        for kind in (
            *(kind for kind in ("fvq", "mlp", "linear", "table") if kind in options.codes),
            "drawn",
        )
        for annealed in ((True, False) if k == largest and kind != "drawn" else (True,))
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        rows = [row for done in pool.map(run, *zip(*runs, strict=True)) for row in done]
    here = {"hardware": hardware(), "torch": torch.__version__, "commit": commit()}
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys([*rows[0], "seconds", *here])))
        writer.writeheader()
        for row in rows:
            figures = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(figures | here)
    draw(rows, options.out.with_suffix(".png"))


def draw(rows: list[dict], path: Path) -> None:
    """Left, if there are several sizes: ends of the annealed runs against the number of codes;
    right: the largest, in time."""
    from matplotlib.figure import Figure

    sizes = sorted({row["k"] for row in rows})
    panels = 2 if len(sizes) > 1 else 1
    figure = Figure(figsize=(4.5 * panels, 3.6), layout="constrained")
    *first, right = figure.subplots(1, panels, squeeze=False)[0]

    def line(axes, own: list[dict], x: str, **style) -> None:
        axes.plot([r[x] for r in own], [100 * r["utilization"] for r in own], **style)

    for number, kind in enumerate(KINDS):
        if all(row["codes"] != kind for row in rows):
            continue
        own = [row for row in rows if row["codes"] == kind]
        ends = sorted(
            (r for r in own if r["annealed"] and r["step"] == r["steps"]), key=lambda r: r["k"]
        )
        for left in first:
            line(left, ends, "k", color=f"C{number}", marker="o")
        for annealed, dash in ((True, "-"), (False, ":")):
            part = [r for r in own if r["k"] == sizes[-1] and r["annealed"] == annealed]
            label = LABELS[kind] if annealed else None
            line(right, part, "step", color=f"C{number}", linestyle=dash, label=label)
    drawn = sorted((r for r in rows if r["codes"] == "drawn"), key=lambda r: r["k"])
    features = {"color": "0.5", "linestyle": "--"}
    right.axhline(100 * drawn[-1]["utilization"], **features, label="features as codes")
    right.set_xlabel(f"step, {sizes[-1]:,} codes (dotted: rate not annealed)")
    for left in first:
        line(left, drawn, "k", **features)
        left.set_xscale("log", base=2)
        left.set_xticks(sizes, [f"{k:,}" for k in sizes])
        left.set_xlabel("codes, at the end of training")
    for axes in (*first, right):
        axes.set_ylim(0, 102)
        axes.set_ylabel("codes hit, %")
        axes.grid(alpha=0.3)
    (first or [right])[0].legend(*right.get_legend_handles_labels(), fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
