"""`variance`: quantization error over the variance of the latents (unifying view, figures 2 and 5).

100,000 vectors from N(0, s^2 I) in 8 channels, five trials. VQ draws its 4,096 codes from the same
distribution, PQ 64 codes for each of two halves; FSQ has 4 levels a channel (65,536 codes), LFQ and
BSQ one bit a channel (256 codes). The error is that of the vectors as the quantizer compares them:
as they are for VQ, PQ and LFQ, bounded by the tanh for FSQ, on the sphere for BSQ. The paper shows
curves and no numbers: VQ and PQ rise linearly with the variance, PQ above VQ; LFQ has its minimum
in between; BSQ is constant; FSQ is not linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..ops import nearest_code
from ..quantizers import BSQ, FSQ, LFQ
from .frame import Cell, Experiment, Row, Work
from .tables import draw, format_table

METHODS = ("vq", "pq", "fsq", "lfq", "bsq")


@dataclass(frozen=True)
class Variance:
    """Settings, those of the paper's appendix K; `vq_codes` is K of VQ, a square number."""

    variances: tuple[float, ...] = (0.01, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
    dim: int = 8
    vectors: int = 100_000
    trials: int = 5
    vq_codes: int = 4096
    seed: int = 0


def cells(settings: Variance) -> list[Cell]:
    return [{"method": m, "variance": v} for m in METHODS for v in settings.variances]


def units(settings: Variance, cell: Cell) -> int:
    return settings.trials


def measure(settings: Variance, cell: Cell, work: Work) -> Row:
    errors = []
    for trial in range(settings.trials):
        # The same vectors for every method and, up to their scale, for every variance.
        generator = torch.Generator().manual_seed((settings.seed + 1) * 1_000_003 + trial)
        scale = cell["variance"] ** 0.5
        z = torch.randn(settings.vectors, settings.dim, generator=generator) * scale
        errors.append(one_error(cell["method"], z, scale, settings, generator))
        work.advance(1)
    mean = sum(errors) / len(errors)
    spread = (sum((e - mean) ** 2 for e in errors) / len(errors)) ** 0.5
    return {"error": mean, "deviation": spread}


def one_error(
    method: str, z: Tensor, scale: float, settings: Variance, generator: torch.Generator
) -> float:
    """Mean squared error of vectors z [N, D], summed over channels."""
    if method in ("vq", "pq"):
        parts = 1 if method == "vq" else 2
        k = settings.vq_codes if method == "vq" else round(settings.vq_codes**0.5)
        error = 0.0
        for part in z.chunk(parts, dim=1):
            codes = torch.randn(k, part.shape[1], generator=generator) * scale
            error += float(nearest_code(part, codes).distance.double().mean())
        return error
    if method == "fsq":
        quantizer = FSQ([4] * settings.dim)
    else:
        quantizer = (LFQ if method == "lfq" else BSQ)(settings.dim)
    quantizer.eval()
    compared = quantizer._compared(z, quantizer.encode(z)).double()
    return float((compared - quantizer.decode(quantizer.encode(z))).square().sum(-1).mean())


def linearity(rows: list[Row], method: str) -> float:
    """R^2 of the straight line through the errors of a method over the variance."""
    x = torch.tensor([float(r["variance"]) for r in rows if r["method"] == method]).double()
    y = torch.tensor([float(r["error"]) for r in rows if r["method"] == method]).double()
    if len(x) < 3 or float(y.std()) <= 1e-3 * float(y.mean()):
        return float("nan")
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1] ** 2)


_PAPER = {
    "vq": "linear",
    "pq": "about linear, above VQ",
    "fsq": "not linear",
    "lfq": "not linear, least at a moderate variance",
    "bsq": "nearly constant",
}


def table(rows: list[Row]) -> str:
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        best = min(mine, key=lambda row: row["error"])
        r2 = linearity(rows, method)
        lines.append(
            [
                method,
                f"{mine[0]['error']:.4f}",
                f"{mine[-1]['error']:.4f}",
                f"{best['variance']:g}",
                "-" if r2 != r2 else f"{r2:.5f}",
                _PAPER[method],
            ]
        )
    first, last = rows[0]["variance"], max(row["variance"] for row in rows)
    head = ["method", f"error at {first:g}", f"at {last:g}", "least at", "R^2 of a line", "paper"]
    return format_table(head, lines)


def plot(rows: list[Row], path: Path) -> None:
    panels = []
    for group in (("vq", "pq"), ("fsq",), ("lfq",), ("bsq",)):
        lines = []
        for method in group:
            mine = [row for row in rows if row["method"] == method]
            if mine:
                x = [row["variance"] for row in mine]
                lines.append((method, x, [row["error"] for row in mine], "o-"))
        if lines:
            title = ", ".join(group).upper()
            panels.append({"x": "variance", "y": "error", "lines": lines, "title": title})
    draw(path, panels)


EXPERIMENT = Experiment(
    name="variance",
    source="Unifying view, figures 2 and 5, appendix K",
    full=Variance(),
    quick=Variance(vectors=20_000, trials=2),
    cells=cells,
    units=units,
    measure=measure,
    table=table,
    plot=plot,
)
