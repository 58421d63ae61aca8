"""How much of a codebook is used: four parametrisations, through the annealing of the rate.

    python benchmarks/utilization.py --device cuda
    python benchmarks/utilization.py --sizes 1024 --steps 200   # a trial of a minute on a CPU

FVQ (figure 3) at a small size: a small autoencoder of 8 x 8 patches of photographs, trained
end to end with its quantizer, whose codes are a free table, a linear map of one, a five-layer MLP or
VQBridge. Everything else is the same: data, seed, optimiser, rate. The rate rises, stays, then falls
to 1 %; the same runs without that fall are the comparison. Writes results/utilization.csv, a row per
measurement, and a picture beside it.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch
from compare import commit
from torch import Tensor, nn

import vqkern
from vqkern.bench.report import hardware
from vqkern.data.photographs import load_photographs

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = {"table": "vanilla", "linear": "linear", "mlp": "mlp", "fvq": "fvq"}
INIT = "normal"  # of the raw codes, of all kinds
LABELS = {"table": "free table", "linear": "linear map", "mlp": "five-layer MLP", "fvq": "VQBridge"}
SIZES = (1024, 4096, 16384, 65536)
PATCH, DIM, HIDDEN = 8, 16, 128
BATCH, RATE = 2048, 2e-3
WARM_UP, FALL, LEAST = 0.1, 0.3, 0.01  # of the steps, of the steps, of the rate
TOKENS_PER_CODE, FEWEST = 4, 65536  # measured with so many tokens a code


def patches(
    pictures: list[Tensor], generator: torch.Generator, number: int, device: torch.device
) -> Tensor:
    """Random patches of the photographs [number, 192], of mean about 0 and variance about 1."""
    counts = torch.tensor([float(p.shape[1] * p.shape[2]) for p in pictures])
    own = torch.multinomial(counts, number, replacement=True, generator=generator)
    out = torch.empty(number, 3 * PATCH * PATCH)
    for which, pixels in enumerate(pictures):
        rows = (own == which).nonzero().squeeze(1)
        windows = pixels.unfold(1, PATCH, 1).unfold(2, PATCH, 1)  # [3, h, w, 8, 8], a view
        top = torch.randint(windows.shape[1], (len(rows),), generator=generator)
        left = torch.randint(windows.shape[2], (len(rows),), generator=generator)
        out[rows] = windows[:, top, left].movedim(1, 0).flatten(1).float()
    return ((out - 100) / 70).to(device)


def rate(step: int, steps: int, annealed: bool) -> float:
    """Of FVQ: a linear rise, a plateau, and a linear fall to 1 %; the last left out if not so."""
    done = step / steps
    if done < WARM_UP:
        return max(done / WARM_UP, 0.005)
    if not annealed or done < FALL:
        return 1.0
    return 1 - (1 - LEAST) * (done - FALL) / (1 - FALL)


def build(kind: str, num_codes: int) -> list[nn.Module]:
    torch.manual_seed(0)

    def mlp(start: int, end: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(start, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
            nn.Linear(HIDDEN, end),
        )  # fmt: skip

    size = 3 * PATCH * PATCH
    # Latents of unit variance, which is about what all four kinds of codes start with.
    encoder = mlp(size, DIM).append(nn.LayerNorm(DIM, elementwise_affine=False))
    decoder = mlp(DIM, size)
    quantizer = vqkern.build_quantizer(KINDS[kind], dim=DIM, codebook_size=num_codes, init=INIT)
    return [encoder, quantizer, decoder]


@torch.no_grad()
def measure(encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module, held: Tensor) -> dict:
    """Use of the codes, error of the latents and of the pixels, over the held patches."""
    quantizer.eval()
    quantizer.reset_usage()
    latent_error = pixel_error = 0.0
    for part in held.split(8192):
        z = encoder(part)
        quantized = quantizer(z).quantized
        latent_error += float((quantized - z).square().sum())
        pixel_error += float((decoder(quantized) - part).square().sum())
    usage = quantizer.usage()
    quantizer.reset_usage()
    quantizer.train()
    return {
        "utilization": usage.utilization,
        "perplexity": usage.perplexity,
        "latent_error": latent_error / held.shape[0] / DIM,
        "pixel_error": pixel_error / held.numel(),
    }


def run(
    kind: str, num_codes: int, steps: int, annealed: bool, every: int, device: torch.device
) -> list[dict]:
    """One training run; a row per measurement."""
    modules = nn.ModuleList(build(kind, num_codes)).to(device)
    encoder, quantizer, decoder = modules
    optimizer = torch.optim.Adam(modules.parameters(), lr=RATE, betas=(0.9, 0.95))
    data, held_out = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    pictures = [picture.pixels for picture in load_photographs()[0]]
    held = patches(pictures, held_out, max(FEWEST, TOKENS_PER_CODE * num_codes), device)
    rows, began = [], time.perf_counter()
    pool: list[Tensor] = []  # patches are drawn many steps at a time
    for step in range(1, steps + 1):
        if not pool:
            pool = list(patches(pictures, data, 16 * BATCH, device).split(BATCH))
        batch = pool.pop()
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step, steps, annealed)
        quantized, _, loss = quantizer(encoder(batch))
        loss = loss + (decoder(quantized) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        if step % every == 0 or step == steps:
            row = {
                "codes": kind,
                "k": num_codes,
                "annealed": annealed,
                "step": step,
                "steps": steps,
                "rate": RATE * rate(step, steps, annealed),
                "tokens": len(held),
                **measure(encoder, quantizer, decoder, held),
            }
            rows.append(row)
            print(
                f"{kind:>7} {num_codes:>6} {'annealed' if annealed else 'constant'} {step:>5}: "
                f"{row['utilization']:7.2%} of the codes, perplexity {row['perplexity']:8.0f}, "
                f"pixel error {row['pixel_error']:.4f} ({time.perf_counter() - began:.0f} s)",
                flush=True,
            )
    return rows


def evenly(num_codes: int, tokens: int) -> float:
    """What share of the codes so many tokens would hit if each code were as likely."""
    return 1 - (1 - 1 / num_codes) ** tokens


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="codebook sizes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=RESULTS / "utilization.csv")
    options = parser.parse_args(arguments)
    rows = []
    largest = max(options.sizes)
    for num_codes in options.sizes:
        for kind in options.kinds:
            every = options.steps // 15 if num_codes == largest else options.steps
            for annealed in (True, False) if num_codes == largest else (True,):
                rows += run(kind, num_codes, options.steps, annealed, max(every, 1), options.device)
    here = {
        "seed": 0,
        "hardware": hardware(str(options.device)),
        "torch": torch.__version__,
        "commit": commit(),
    }
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *here])
        writer.writeheader()
        for row in rows:
            figures = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(figures | here)
    draw(rows, options.out.with_suffix(".png"))
    print(f"{options.out} and {options.out.with_suffix('.png')}")


def draw(rows: list[dict], path: Path) -> None:
    """Left: the end of the annealed runs against the codebook's size; right: the largest in time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted({row["k"] for row in rows})
    for number, kind in enumerate(dict.fromkeys(row["codes"] for row in rows)):
        own = [row for row in rows if row["codes"] == kind]
        ends = [r for r in own if r["annealed"] and r["step"] == r["steps"]]
        style = {"color": f"C{number}", "label": LABELS[kind]}
        left.plot(
            [r["k"] for r in ends], [100 * r["utilization"] for r in ends], marker="o", **style
        )
        for annealed, dash in ((True, "-"), (False, ":")):
            line = [r for r in own if r["k"] == sizes[-1] and r["annealed"] == annealed]
            right.plot(
                [r["step"] for r in line],
                [100 * r["utilization"] for r in line],
                linestyle=dash,
                **{**style, "label": style["label"] if annealed else None},
            )
    for axes in (left, right):
        axes.set_ylim(0, 102)
        axes.set_ylabel("codes hit, %")
        axes.grid(alpha=0.3)
    left.plot(
        sizes,
        [100 * evenly(k, max(FEWEST, TOKENS_PER_CODE * k)) for k in sizes],
        color="0.6",
        linestyle="--",
        label="perfectly even use",
    )
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [f"{k:,}" for k in sizes])
    left.set_xlabel("codes, at the end of training")
    right.set_xlabel(f"step, {sizes[-1]:,} codes (dotted: rate not annealed)")
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
